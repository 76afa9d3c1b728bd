"""What a curve shows is what it was given."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from pdlib.evaluation.stats import mean_interval
from pdlib.report import curves
from pdlib.report.style import method_colour

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


def line(ax: Axes, label: str):
    return next(one for one in ax.lines if one.get_label().startswith(label))


def bars(ax: Axes, place: int = 0) -> np.ndarray:
    """Low and high ends of the error bars of a container of an axis, [N, 2]."""
    return np.array([segment[:, 1] for segment in ax.containers[place].lines[2][0].get_segments()])


def test_t_prime_curves_are_the_means_given_and_the_difference_is_paired():
    rng = np.random.default_rng(0)
    truth, parts, start = {}, [], np.array([0.5, 0.7, 0.4, 0.6])
    for split in ("validation", "test"):
        parts.append(rows("attention_unet", start, split=split))
        for t in (100, 300, 50):
            for metric in ("dice", "uncertainty"):
                truth[split, metric, t] = rng.random(4)
                parts.append(rows("pd_ddpm", truth[split, metric, t], metric, split=split, t_prime=t, ensemble_size=5))
    seeds = {"Utrecht/0": 0, "Utrecht/1": 0, "Utrecht/2": 1, "Utrecht/3": 1}
    scores = pd.concat(parts).assign(seed=lambda rows: rows.subject.map(seeds))
    how = {"method": "pd_ddpm", "preseg": "attention_unet", "steps": 1000, "chosen": [100], "interval": INTERVAL}
    plain, difference, spread = curves.t_prime_figure(scores, **how).axes
    for place, split in enumerate(("validation", "test")):
        curve = line(plain, f"{split} (n = 4)")
        np.testing.assert_array_equal(curve.get_xdata(), [50, 100, 300])
        np.testing.assert_allclose(curve.get_ydata(), [truth[split, "dice", t].mean() for t in (50, 100, 300)])
        for ax, metric, less in ((difference, "dice", start), (spread, "uncertainty", 0 * start)):
            point = mean_interval(truth[split, metric, 50] - less, **INTERVAL, groups=[0, 0, 1, 1])
            assert ax.containers[place].lines[0].get_ydata()[0] == pytest.approx(point["mean"])
            np.testing.assert_allclose(bars(ax, place)[0], [point["low"], point["high"]])
    assert line(plain, "$T'$ = 100").get_xdata()[0] == 100
    assert line(plain, "test, Attention").get_ydata()[0] == pytest.approx(0.55)


def test_ensemble_deviation_is_over_random_ensembles_and_the_gain_over_subjects():
    values = {(1, 0): [0.5, 0.7], (1, 1): [0.7, 0.9], (4, 0): [0.8, 0.8], (4, 1): [0.8, 0.84]}
    scores = pd.concat([rows("pd_ddpm", v, ensemble_size=size, seed=seed) for (size, seed), v in values.items()])
    how = {"method": "pd_ddpm", "seeds": {"Utrecht/0": 0, "Utrecht/1": 1}, "interval": INTERVAL}
    left, middle, right = curves.ensemble_figure(scores, **how).axes
    np.testing.assert_allclose(left.lines[0].get_ydata().astype(float), [0.7, 0.81])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.2 / 2**0.5, 0.02 / 2**0.5])
    assert left.get_legend_handles_labels()[1] == ["test (n = 2, 2 ensembles a size)"]
    gain = mean_interval([0.2, 0.02], **INTERVAL, groups=[0, 1])
    assert middle.containers[0].lines[0].get_ydata() == pytest.approx([0.11])
    np.testing.assert_allclose(bars(middle), [[gain["low"], gain["high"]]])


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


@pytest.mark.filterwarnings("error")
def test_every_subject_is_a_dot_in_its_methods_colour():
    dice = {"unet": [0.5, 0.7, np.nan], "pd_ddpm": [0.6, 0.8, 0.9], "x0_jump": [0.1, 0.2, 0.3]}
    scores = pd.concat([rows(name, values) for name, values in dice.items()])
    ax, right = curves.scores_figure(scores, methods=["pd_ddpm", "unet"], interval=INTERVAL).axes
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
    ax, right = curves.scores_figure(fewer, methods=["pd_ddpm", "unet"], interval=INTERVAL).axes
    assert ax.get_xlabel() == "Dice of a subject (n = 2 or 3, 1 undefined)"
    with pytest.raises(ValueError, match="DDPM: no scores"):
        curves.scores_figure(scores, methods=["ddpm"], interval=INTERVAL)


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


def test_agreement_shows_mean_curves_and_the_raters_distance():
    risks = pd.DataFrame(
        {"subject": ["a", "a", "b", "b"], "coverage": [0.5, 1.0] * 2, "risk": [0.01, 0.04, 0.03, 0.06]}
    ).assign(oracle=[0.0, 0.04, 0.0, 0.06], random=[0.04, 0.04, 0.06, 0.06])
    distances = {"ddpm": [0.2, 0.4], "pd_ddpm": [0.3, 0.6], "unet": [np.nan] * 2}
    scores = pd.concat([rows(name, values, "energy_distance") for name, values in distances.items()])
    left, right = curves.agreement_figure(risks, scores, interval=INTERVAL).axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[0.5, 0.02], [1.0, 0.05]])
    assert [text.get_text() for text in right.get_yticklabels()] == ["DDPM, 0.30", "PD-DDPM, 0.45"]
    assert right.containers[0].lines[0].get_xdata()[0] == pytest.approx(-0.15)
    none = curves.agreement_figure(risks, scores.assign(value=np.nan), interval=INTERVAL).axes
    assert not none[1].axison, "there are no raters"
