"""What a figure or a table shows is what it was given; the same figure is the same file."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import rows
from matplotlib.axes import Axes

from pdlib.evaluation.stats import mean_interval
from pdlib.report import figures

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


def line(ax: Axes, label: str):
    return next(one for one in ax.lines if one.get_label().startswith(label))


def test_t_prime_curves_are_the_means_given():
    rng = np.random.default_rng(0)
    truth, parts = {}, []
    for split in ("validation", "test"):
        parts.append(rows("attention_unet", [0.5, 0.7], split=split))
        for t in (100, 300, 50):
            for metric in ("dice", "uncertainty"):
                truth[split, metric, t] = rng.random(4)
                parts.append(rows("pd_ddpm", truth[split, metric, t], metric, split=split, t_prime=t, ensemble_size=5))
    figure = figures.t_prime_figure(
        pd.concat(parts), method="pd_ddpm", preseg="attention_unet", steps=1000, chosen=[100], interval=INTERVAL
    )
    for ax, metric in zip(figure.axes, ("dice", "uncertainty"), strict=True):
        for split in ("validation", "test"):
            curve = line(ax, f"{split} (n = 4)")
            np.testing.assert_array_equal(curve.get_xdata(), [50, 100, 300])
            np.testing.assert_allclose(curve.get_ydata(), [truth[split, metric, t].mean() for t in (50, 100, 300)])
        assert line(ax, "$T'$ = 100").get_xdata()[0] == 100
    assert line(figure.axes[0], "test, Attention").get_ydata()[0] == pytest.approx(0.6)
    band = figure.axes[0].collections[1].get_paths()[0].vertices
    expected = mean_interval(truth["test", "dice", 50], **INTERVAL)
    assert set(band[band[:, 0] == 50][:, 1]) == {expected["low"], expected["high"]}


def test_ensemble_deviation_is_over_random_ensembles():
    values = {(1, 0): [0.5, 0.7], (1, 1): [0.7, 0.9], (4, 0): [0.8, 0.8], (4, 1): [0.8, 0.84]}
    scores = pd.concat([rows("pd_ddpm", v, ensemble_size=size, seed=seed) for (size, seed), v in values.items()])
    left, right = figures.ensemble_figure(scores, method="pd_ddpm").axes
    np.testing.assert_allclose(left.lines[0].get_ydata().astype(float), [0.7, 0.81])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.2 / 2**0.5, 0.02 / 2**0.5])
    assert left.get_legend_handles_labels()[1] == ["test (n = 2, 2 ensembles a size)"]


def test_training_curve_and_its_best():
    history = pd.DataFrame({"step": [10, 20, 30], "metric": "dice", "value": [0.2, 0.7, 0.6]})
    (ax,) = figures.training_figure(history).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.value)
    assert (ax.lines[1].get_xdata()[0], ax.lines[1].get_ydata()[0]) == (20, 0.7)


@pytest.mark.parametrize(
    ("values", "scale"), [([0.4, 0.3, 0.2], "linear"), ([4, 0.3, 0.2], "log"), ([4, -1, 0], "linear")]
)
def test_a_loss_has_no_best(values, scale):
    history = pd.DataFrame({"step": [10, 20, 30], "metric": "g_loss", "value": values})
    (ax,) = figures.training_figure(history).axes
    assert len(ax.lines) == 1 and ax.get_yscale() == scale


def test_calibration_shows_ratios_ranges_and_words():
    calibration = pd.DataFrame(
        [("volume", 28.0, 14, "ml"), ("contrast", 0.2, "0.1-0.4", ""), ("cortical", 1.2, "almost none", "%")],
        columns=["quantity", "phantom", "target", "unit"],
    )
    (ax,) = figures.data_figure(calibration, note="phantom").axes
    bars, dots = ax.lines[0:6:2], ax.lines[1:6:2]
    np.testing.assert_allclose([d.get_xdata()[0] for d in dots], [2, 1, np.nan])
    np.testing.assert_allclose(bars[1].get_xdata(), [0.5, 2])
    texts = [t.get_text() for t in ax.texts]
    assert {"28", "14 ml", "0.1-0.4", "almost none"} <= set(texts)


def brain(shape=(20, 16)):
    image = np.zeros(shape)
    image[3:-3, 3:-3] = np.random.default_rng(0).uniform(1, 2, (shape[0] - 6, shape[1] - 6))
    return image


def test_processes_draw_every_state_and_arrow():
    state = brain()
    chains = {
        "DDPM": [figures.State(f"t = {t}", state * t) for t in (3, 2, 1, 0)],
        "PD-DDPM": [figures.State("start", state), figures.State("t = 1", state, forward=True)],
    }
    axes = np.array(figures.processes_figure(state, chains, note="phantom").axes).reshape(2, 5)
    assert [ax.get_title() for ax in axes[1]] == ["PD-DDPM", "", "", "start", "t = 1"]
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), 2 * state[1:19, 1:15])
    assert [len(ax.texts) for ax in axes[0]] == [0, 0, 1, 1, 1]


def example(mask):
    image = brain()
    return figures.Example(
        "training/GE3T/1", image, image, mask[0], {"unet": mask[1]}, mask[0] * 0.2, {"unet": 0.5}, 1.2
    )


def test_overlays_paint_hits_extras_and_misses():
    mask = np.zeros((2, 20, 16), np.uint8)
    mask[0, 8, 8] = mask[1, 8, 8] = mask[0, 9, 9] = mask[1, 10, 10] = 1
    figure = figures.examples_figure([example(mask)] * 3, note="phantom")
    predicted = figure.axes[3]
    painted = [np.argwhere(layer.get_array()[..., 3]).tolist() for layer in predicted.images[1:]]
    assert painted == [[[7, 7]], [[9, 9]], [[8, 8]]]  # the brain's box starts at (1, 1)
    assert predicted.get_xlabel() == "0.500"
    assert figure.axes[0].get_ylabel() == "GE3T/1"


def test_overlay_takes_the_slices_with_most_lesion_and_never_an_empty_one():
    image = np.zeros((2, 9, 20, 16))
    image[:, 2:8] = brain()
    mask = np.zeros((9, 20, 16), np.uint8)
    mask[3, 8, 8:10] = mask[6, 8, 8] = 1
    figure = figures.overlay_figure(image, None, mask, mask * 0.1, spacing_mm=(3, 1, 1), columns=3)
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert {"slice 4", "slice 7"} < set(titles) and set(titles) <= {f"slice {z + 1}" for z in range(2, 8)}


def test_the_same_figure_is_the_same_file(tmp_path):
    history = pd.DataFrame({"step": [10, 20], "metric": "train_loss", "value": [0.2, 0.1]})
    files = [figures.save_figure(figures.training_figure(history, note="phantom"), tmp_path / n) for n in ("a", "b.1")]
    assert [p.name for p in files[1]] == ["b.1.png", "b.1.pdf"]
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 1000
    assert b"CreationDate" not in files[0][1].read_bytes()


def test_no_torch_is_loaded():
    modules = "pdlib.report.figures, pdlib.evaluation.metrics, pdlib.evaluation.records"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_points_against_calls_are_the_means_given():
    scores = pd.concat(
        [
            rows(name, values, metric, nfe=nfe)
            for name, nfe, values in (("PD-DDPM", 16, [0.5, 0.7]), ("x0 jump", 6, [0.4, 0.6]), ("DDIM", 16, [0.5, 0.6]))
            for metric in ("dice", "lesion_f1")
        ]
    )
    figure = figures.calls_figure(scores, metrics=["dice", "lesion_f1"], interval=INTERVAL)
    first, second, third = (container.lines[0] for container in figure.axes[0].containers)
    assert first.get_ydata()[0] == pytest.approx(0.6) and second.get_ydata()[0] == pytest.approx(0.5)
    assert first.get_xdata()[0] == 16 and second.get_xdata()[0] == 6
    assert 16 < third.get_xdata()[0] < 16.5, "as many calls as the first, and not on top of it"


def test_ways_of_stepping_are_lines_from_each_start_and_the_front_is_ringed():
    ways = {
        "PD-DDPM, DDIM, eta 1, 2 calls": 5,
        "PD-DDPM, DDIM, eta 1, 3 calls": 7,
        "DDPM, DDIM, eta 1, 3 calls": 6,
        "PD-DDPM, every step": 61,
    }
    scores = pd.concat(
        [
            rows(name, [nfe / 100, nfe / 50], metric, nfe=nfe)
            for name, nfe in ways.items()
            for metric in ("dice", "lesion_f1", "uncertainty")
        ]
    )
    figure = figures.solver_figure(scores, front=["PD-DDPM, every step"])
    first, second = figure.axes[:2]
    assert [ax.get_title() for ax in (first, second)] == ["PD-DDPM", "DDPM"]
    lines = {one.get_label(): one for one in first.lines}
    np.testing.assert_allclose(lines["DDIM, eta 1"].get_xydata(), [[5, 0.075], [7, 0.105]])
    assert lines["every step"].get_marker() == "D"
    assert (
        second.lines[0].get_label() == "DDIM, eta 1" and second.lines[0].get_color() == lines["DDIM, eta 1"].get_color()
    )
    np.testing.assert_allclose(first.lines[-1].get_xydata(), [[61, 0.915]])


def test_agreement_shows_mean_curves_and_the_raters_distance():
    curves = pd.DataFrame(
        {"subject": ["a", "a", "b", "b"], "coverage": [0.5, 1.0] * 2, "risk": [0.01, 0.04, 0.03, 0.06]}
    ).assign(oracle=[0.0, 0.04, 0.0, 0.06], random=[0.04, 0.04, 0.06, 0.06])
    scores = pd.concat([rows("ddpm", [0.2, 0.4], "energy_distance"), rows("unet", [np.nan] * 2, "energy_distance")])
    left, right = figures.agreement_figure(curves, scores, interval=INTERVAL).axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[0.5, 0.02], [1.0, 0.05]])
    assert [text.get_text() for text in right.get_yticklabels()] == ["DDPM"]
    assert right.containers[0].lines[0].get_xdata()[0] == pytest.approx(0.3)
