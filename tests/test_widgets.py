"""Sliders: a move swaps the picture, quickly; where nothing can be moved, a picture stands for the widget."""

import base64
import io
import time

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from pdlib import widgets
from pdlib.report.scene import Call, Diffused, Result, Scene, Trial
from pdlib.workflow import run_notebook

QUICK = 0.3  # seconds from a move to a new picture
RNG = np.random.default_rng(0)
SHAPE = (3, 24, 20)


@pytest.fixture(scope="module")
def scene():
    brain = np.zeros(SHAPE)
    brain[:, 3:21, 3:17] = 1
    reference = np.zeros(SHAPE, np.uint8)
    reference[:, 8:12, 8:12] = 1
    flair = brain * RNG.normal(size=SHAPE) + 2 * reference
    return Scene("a case", flair, reference, 1, [4, 5, 6], 1.0, "phantom")


def result(t_prime):
    members = RNG.random((2, *SHAPE))
    mean, variance = members.mean(axis=0), members.var(axis=0)
    return Result("pd_ddpm", t_prime, members, mean, variance, mean >= 0.5, 0.5 + t_prime / 100, 2 * t_prime, 1.0)


@pytest.fixture(scope="module")
def viewers(scene):
    noisy = [RNG.normal(size=SHAPE[1:]) for _ in range(3)]
    states = [Diffused(t, 0.9, 0.4, one, one) for t, one in enumerate(noisy, 1)]
    trials = {(op, shape): Trial(noisy[0], noisy[1], 1.0, 2.0) for op in ("norm", "noise") for shape in ("1", "2")}
    calls = [Call(3 - i, one, np.clip(one, 0, 1)) for i, one in enumerate(noisy)]
    return {
        "forward": widgets.forward_viewer(scene, scene.reference, states, 3, 1, stills=2),
        "chain": widgets.chain_viewer(scene, calls, stills=2),
        "t_prime": widgets.t_prime_viewer(scene, [result(t) for t in (5, 10, 20)], 20, 1, stills=3),
        "volume": widgets.volume_viewer(scene, result(5), 0.5),
        "kernels": widgets.kernel_playground(trials),
    }


NAMES = ["forward", "chain", "t_prime", "volume", "kernels"]


@pytest.mark.parametrize("name", NAMES)
def test_every_control_changes_the_picture_quickly_and_back(viewers, name):
    viewer = viewers[name]
    for control in viewer.controls.values():
        before, picture = control.value, bytes(viewer.picture.value)
        choices = [value[1] if isinstance(value, tuple) else value for value in getattr(control, "options", [0.9])]
        other = next(value for value in choices if value != before)
        started = time.perf_counter()
        control.value = other
        assert time.perf_counter() - started < QUICK
        drawn = bytes(viewer.picture.value)
        assert drawn.startswith(b"\x89PNG") and drawn != picture
        control.value = before
        assert bytes(viewer.picture.value) == picture, "the state is the controls' alone"


@pytest.mark.parametrize("name", NAMES)
def test_one_output_holds_the_widget_and_a_picture(viewers, name):
    bundle = viewers[name]._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == viewers[name].model_id
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    one = Image.open(io.BytesIO(viewers[name].picture.value))
    assert still.width == one.width and still.height % one.height == 0, "pictures, one below the other"


def test_a_still_shows_the_first_and_the_last_frame(viewers):
    still, frame = (Image.open(io.BytesIO(part)) for part in (viewers["chain"].still, viewers["chain"].draw(number=2)))
    assert still.height == 2 * frame.height
    bottom = np.asarray(still.convert("RGB"))[frame.height :]
    assert np.array_equal(bottom, np.asarray(frame.convert("RGB")))


def test_the_browser_paints_hits_extras_and_misses(scene):
    found = result(5)
    viewer = widgets.volume_viewer(scene, found._replace(mean=scene.reference.astype(float)), 0.5)
    colours = {tuple(colour) for colour in np.asarray(Image.open(io.BytesIO(viewer.picture.value))).reshape(-1, 3)}
    green, orange, blue = (0, 158, 115), (230, 159, 0), (86, 180, 233)
    assert {green, orange, blue} <= colours, "the legend has all three"

    def painted(viewer, colour):
        page = np.asarray(Image.open(io.BytesIO(viewer.picture.value)))[:-40]  # without the legend
        return int((page == colour).all(axis=-1).sum())

    assert painted(viewer, green) and not painted(viewer, orange) and not painted(viewer, blue)
    nothing = widgets.volume_viewer(scene, found._replace(mean=np.zeros(SHAPE)), 0.5)
    assert painted(nothing, blue) == painted(viewer, green) and not painted(nothing, green)


def test_a_copy_of_papermill_shows_the_picture_and_asks_the_net_for_nothing(tmp_path, monkeypatch):
    cell = "from pdlib import widgets\nimport ipywidgets\nfrom pdlib.report.style import PaperFigure\n"
    cell += "from pdlib.report.scene import png\nslider = ipywidgets.IntSlider(max=3)\n"
    cell += "widgets.Viewer({'n': slider}, lambda n: png(PaperFigure(figsize=(1 + n, 1))), [{'n': 0}])"
    cells = [nbformat.v4.new_code_cell("profile: str = 'smoke'", metadata={"tags": ["parameters"]})]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(cell)], metadata=about)
    nbformat.write(notebook, tmp_path / "one.ipynb")
    monkeypatch.setattr("pdlib.workflow.NOTEBOOKS", tmp_path)
    run_notebook("one", tmp_path / "executed.ipynb", {})
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    (output,) = executed.cells[-1].outputs
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= set(output.data)
    html, _ = HTMLExporter(template_name="basic").from_notebook_node(executed)
    assert "data:image/png;base64" in html and "widget-view" not in html and "unpkg" not in html
