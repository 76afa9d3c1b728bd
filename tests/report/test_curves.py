"""What a curve shows is what it was given."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from pdlib.evaluation.stats import mean_interval
from pdlib.report import curves
from pdlib.report.printed import printed_dice
from pdlib.report.style import method_colour

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


def line(ax: Axes, label: str):
    return next(one for one in ax.lines if one.get_label().startswith(label))


def bars(ax: Axes, place: int = 0) -> np.ndarray:
    """Low and high ends of the error bars of a container of an axis, [N, 2]."""
    return np.array([segment[:, 1] for segment in ax.containers[place].lines[2][0].get_segments()])


def test_training_curve_and_its_best():
    history = pd.DataFrame({"step": [10, 20, 30], "metric": "dice", "value": [0.2, 0.7, 0.6]})
    (ax,) = curves.training_figure(history).axes
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.value)
    assert (ax.lines[1].get_xdata()[0], ax.lines[1].get_ydata()[0]) == (20, 0.7)


def test_a_training_that_ended_early_shows_where_and_which_weights_were_kept():
    """0.705 is higher, but not by enough to take the place of 0.7."""
    history = pd.DataFrame({"step": [10, 20, 30], "metric": "dice", "value": [0.2, 0.7, 0.705]})
    (ax,) = curves.training_figure(history, steps=90, min_gain=0.01).axes
    assert ax.get_legend_handles_labels()[1] == ["best 0.700 at 20", "ended at 30 of 90"]
    assert set(ax.lines[2].get_xdata()) == {30}
    (ax,) = curves.training_figure(history, steps=30, min_gain=0.001).axes
    assert ax.get_legend_handles_labels()[1] == ["best 0.705 at 30"]


@pytest.mark.parametrize(
    ("values", "scale"), [([0.4, 0.3, 0.2], "linear"), ([4, 0.3, 0.2], "log"), ([4, -1, 0], "linear")]
)
def test_a_loss_has_no_best(values, scale):
    history = pd.DataFrame({"step": [10, 20, 30], "metric": "g_loss", "value": values})
    (ax,) = curves.training_figure(history).axes
    assert len(ax.lines) == 1 and ax.get_yscale() == scale


def test_calibration_shows_ratios_ranges_and_words():
    calibration = pd.DataFrame(
        [("volume", 28.0, 14, "ml"), ("contrast", 0.2, "0.1-0.4", ""), ("cortical", 1.2, "almost none", "%")],
        columns=["quantity", "phantom", "target", "unit"],
    )
    (ax,) = curves.data_figure(calibration, note="phantom").axes
    bars, dots = ax.lines[0:6:2], ax.lines[1:6:2]
    np.testing.assert_allclose([d.get_xdata()[0] for d in dots], [2, 1, np.nan])
    np.testing.assert_allclose(bars[1].get_xdata(), [0.5, 2])
    texts = [t.get_text() for t in ax.texts]
    assert {"28", "14 ml", "0.1-0.4", "almost none"} <= set(texts)


def test_points_against_calls_are_the_means_given():
    asked = [("pd_ddpm", "ddim_eta_1"), ("x0_jump", "x0_jump"), ("pd_ddpm", "ddim")]
    given = [(16, [0.5, 0.7]), (6, [0.4, 0.6]), (16, [0.5, 0.6])]
    scores = pd.concat(
        [
            rows(name, values, metric, nfe=nfe, rule=rule)
            for (name, rule), (nfe, values) in zip(asked, given, strict=True)
            for metric in ("dice", "lesion_f1")
        ]
    )
    wanted = [{"method": name, "rule": rule} for name, rule in asked]
    figure = curves.calls_figure(scores, rows=wanted, metrics=["dice", "lesion_f1"], interval=INTERVAL)
    above, _, below, _ = figure.axes
    first, second, third = above.lines
    assert first.get_ydata()[0] == pytest.approx(0.6) and second.get_ydata()[0] == pytest.approx(0.5)
    assert first.get_xdata()[0] == 16 and second.get_xdata()[0] == 6
    jump = mean_interval([-0.1, -0.1], **INTERVAL)
    assert len(below.containers) == 2, "the first row is what the others are compared with"
    np.testing.assert_allclose(bars(below)[0], [jump["low"], jump["high"]], atol=1e-9)
    assert 16 < third.get_xdata()[0] < 16.5, "as many calls as the first, and not on top of it"
    assert first.get_color() == third.get_color() == method_colour("pd_ddpm")
    assert first.get_marker() != third.get_marker(), "a method's second row"
    assert [text.get_text() for text in figure.legends[0].texts] == ["PD-DDPM, DDIM, eta 1", "x0 jump", "PD-DDPM, DDIM"]


def test_means_are_over_the_subjects_of_all_rows():
    """Two of three subjects have both rows: means that stood side by side would else contradict their difference."""
    scores = pd.concat([rows("pd_ddpm", [0.5, 0.7, 0.9], nfe=16), rows("x0_jump", [0.4, 0.6], nfe=6)])
    wanted = [{"method": "pd_ddpm"}, {"method": "x0_jump"}]
    above, below = curves.calls_figure(scores, rows=wanted, metrics=["dice"], interval=INTERVAL).axes
    assert [line.get_ydata()[0] for line in above.lines] == pytest.approx([0.6, 0.5])
    assert above.get_ylabel() == "Dice\n(2 subjects of all rows)" and below.get_ylabel().startswith("Δ Dice")


@pytest.mark.filterwarnings("error")
def test_every_subject_is_a_dot_in_its_methods_colour():
    dice = {"unet": [0.5, 0.7, np.nan], "pd_ddpm": [0.6, 0.8, 0.9], "x0_jump": [0.1, 0.2, 0.3]}
    scores = pd.concat([rows(name, values) for name, values in dice.items()])
    ax, right = curves.scores_figure(scores, methods=["pd_ddpm", "unet"], interval=INTERVAL, paper={}).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["PD-DDPM", "U-Net"]
    dots = [points for points in ax.collections if len(points.get_offsets())]
    np.testing.assert_allclose(sorted(dots[0].get_offsets()[:, 0]), [0.6, 0.8, 0.9])
    np.testing.assert_allclose(sorted(dots[1].get_offsets()[:, 0]), [0.5, 0.7])
    for points, method in zip(dots, ("pd_ddpm", "unet"), strict=True):
        np.testing.assert_allclose(points.get_facecolor()[0, :3], to_rgb(method_colour(method)))
    assert ax.get_xlabel() == "Dice of a subject (n = 3, 1 undefined)"
    assert right.containers[0].lines[0].get_xdata()[0] == pytest.approx(-0.1), "of the two subjects that both score"
    assert right.get_xlabel() == "Δ Dice to PD-DDPM" and right.lines[0].get_xdata()[0] == 0
    fewer = scores[(scores.method != "unet") | (scores.subject != "Utrecht/0")]
    ax, right = curves.scores_figure(fewer, methods=["pd_ddpm", "unet"], interval=INTERVAL, paper={}).axes
    assert ax.get_xlabel() == "Dice of a subject (n = 2 or 3, 1 undefined)"
    with pytest.raises(ValueError, match="DDPM: no scores"):
        curves.scores_figure(scores, methods=["ddpm"], interval=INTERVAL, paper={})


def test_the_papers_values_are_hollow_and_never_stand_beside_a_phantoms():
    assert printed_dice("1", note="phantom") == printed_dice("fig3", note="phantom") == {}
    printed = printed_dice("1", note="")
    assert len(printed) == 9 and printed["pd_ddpm"] == 0.812
    scores = pd.concat([rows(name, [0.6, 0.8]) for name in ("x0_jump", "pd_ddpm")])
    figure = curves.scores_figure(scores, methods=["x0_jump", "pd_ddpm"], interval=INTERVAL, paper=printed)
    mark = line(figure.axes[0], "mean in the paper")
    assert mark.get_xydata().tolist() == [[0.812, 1]] and mark.get_markerfacecolor() == "none"
    assert [text.get_text() for text in figure.legends[0].texts] == ["mean in the paper"]


def test_a_learned_variance_lies_between_its_bounds():
    variances = pd.DataFrame({"posterior": [0.1, 0.2], "outside": [0.15, 0.25]}, index=[5, 9])
    (ax,) = curves.variance_figure(variances).axes
    np.testing.assert_allclose(line(ax, "outside").get_xydata(), [[5, 0.15], [9, 0.25]])
    assert line(ax, "posterior").get_linestyle() == "--" and ax.get_yscale() == "log"


def test_the_legend_of_the_speeds_covers_no_line():
    steps = pd.DataFrame({"system": ["pdlib", "reference"], "setting": "half", "median_s": [0.002, 0.004]})
    steps = steps.assign(low_s=steps.median_s * 0.9, high_s=steps.median_s * 1.1)
    ops = pd.DataFrame({"op": "q_sample", "shape": "1x2", "dtype": "float32", "candidate": ["reference", "pdlib"]})
    figure = curves.speed_figure(steps, ops.assign(median_s=[0.002, 0.001]))
    figure.draw_without_rendering()
    right = figure.axes[1]
    legend, panel = figure.legends[0].get_window_extent(), right.get_window_extent()
    assert legend.y1 <= panel.y0
    label, page = right.xaxis.label.get_window_extent(), figure.get_window_extent()
    assert page.x0 <= label.x0 and label.x1 <= page.x1, "nothing is cut off"
    assert line(right, "pdlib").get_xdata()[0] == 2
