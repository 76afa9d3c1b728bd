"""A figure shows in Jupyter, has one look, and is the same file each time."""

import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from scipy.spatial.distance import pdist

from pdlib.methods import METHODS
from pdlib.profiles import load_profile
from pdlib.report import curves, style

HISTORY = pd.DataFrame({"step": [10, 20], "metric": "train_loss", "value": [0.2, 0.1]})
DRAW = """
import pandas as pd
from pdlib.report.curves import training_figure
history = pd.DataFrame({"step": [10, 20], "metric": "train_loss", "value": [0.2, 0.1]})
"""


@pytest.fixture(scope="module")
def executed():
    """Three cells: one returns a figure, one displays two, one draws by pyplot first."""
    sources = [
        DRAW + "training_figure(history)",
        "from IPython.display import display\ndisplay(training_figure(history), training_figure(history, note='b'))",
        "import matplotlib.pyplot as plt\nplt.subplots()\nfigure = training_figure(history)\nfigure",
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in sources], metadata=kernel)
    return NotebookClient(notebook, timeout=120).execute()


def shown(cell):
    return [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]


def test_jupyter_shows_each_figure_once_as_a_picture(executed):
    one, two, beside_pyplot = (shown(cell) for cell in executed.cells)
    assert [len(outputs) for outputs in (one, two, beside_pyplot)] == [1, 2, 2], "pyplot shows its own"
    for data in (*one, *two, *beside_pyplot):
        assert "image/png" in data, f"bare {data.get('text/plain')}"


def seen(colours, deficiency=None):
    """Colours as the eye sees them, in a space where distances are what it tells apart (CAM02-UCS)."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    if deficiency:
        space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
        rgb = cspace_convert(rgb, space, "sRGB1").clip(0, 1)
    return cspace_convert(rgb, "sRGB1", "CAM02-UCS")


AGREED, FEWER = load_profile("paper").members.agreement_methods, load_profile("paper").fewer_calls.starts


@pytest.mark.parametrize(
    ("names", "deficiency", "least"),
    [
        ([*METHODS, "no method"], None, 14),
        *(
            (shown, deficiency, 9)
            for shown in (AGREED, [*FEWER, "distilled"])
            for deficiency in ("deuteranomaly", "protanomaly")
        ),
    ],
)
def test_methods_can_be_told_apart_by_their_colours(names, deficiency, least):
    """All by most readers; those of one figure by readers without red or green cones (Machado et al. 2009)."""
    assert pdist(seen(map(style.method_colour, names), deficiency)).min() >= least


def luminance(colour):
    """Relative luminance of a colour, 0 to 1 (WCAG 2)."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("name", [*load_profile("paper").fewer_calls.starts, "pd_ddpm_1"])
def test_a_chain_s_name_in_its_colour_can_be_read_on_white(name):
    """Lines, points and large letters need a contrast of 3 (WCAG 2, 1.4.3 and 1.4.11)."""
    assert 1.05 / (luminance(style.method_colour(name)) + 0.05) >= 3


def test_the_same_figure_is_the_same_file(tmp_path):
    files = [style.save_figure(curves.training_figure(HISTORY, note="phantom"), tmp_path / n) for n in ("a", "b.1")]
    assert [p.name for p in files[1]] == ["b.1.png", "b.1.pdf"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 1000
    assert b"CreationDate" not in files[0][1].read_bytes()


def test_no_torch_is_loaded():
    modules = "pdlib.report.curves, pdlib.report.slices, pdlib.report.readme, pdlib.evaluation.metrics"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.fault("full disk")
def test_a_disk_that_is_full_names_the_picture_and_leaves_the_old_one(tmp_path, monkeypatch):
    figure = curves.training_figure(HISTORY)
    before = {path: path.read_bytes() for path in style.save_figure(figure, tmp_path / "a")}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match=r"a\.png"):
        style.save_figure(figure, tmp_path / "a")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
