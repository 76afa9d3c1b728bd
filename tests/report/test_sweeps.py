"""What a sweep shows is what it was given."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows
from matplotlib.axes import Axes

from pdlib.evaluation.stats import mean_interval
from pdlib.report import sweeps
from pdlib.report.printed import printed_dice
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
    how["paper"] = printed_dice("fig3", note="")
    plain, difference, spread = sweeps.t_prime_figure(scores, **how).axes
    for place, split in enumerate(("validation", "test")):
        curve = line(plain, f"PD-DDPM, {split} (n = 4)")
        np.testing.assert_array_equal(curve.get_xdata(), [50, 100, 300])
        np.testing.assert_allclose(curve.get_ydata(), [truth[split, "dice", t].mean() for t in (50, 100, 300)])
        for ax, metric, less in ((difference, "dice", start), (spread, "uncertainty", 0 * start)):
            point = mean_interval(truth[split, metric, 50] - less, **INTERVAL, groups=[0, 0, 1, 1])
            assert ax.containers[place].lines[0].get_ydata()[0] == pytest.approx(point["mean"])
            np.testing.assert_allclose(bars(ax, place)[0], [point["low"], point["high"]])
    np.testing.assert_allclose(line(plain, "mean in the paper").get_xydata(), [[300, 0.812], [1000, 0.796]])
    assert line(plain, "$T'$ = 100").get_xdata()[0] == 100
    assert {one.get_color() for one in spread.lines if len(one.get_xdata()) == 3} == {method_colour("pd_ddpm")}
    assert line(plain, "Attention U-Net, test").get_ydata()[0] == pytest.approx(0.55)


def test_ensemble_deviation_is_over_random_ensembles_and_the_gain_over_subjects():
    values = {(1, 0): [0.5, 0.7], (1, 1): [0.7, 0.9], (4, 0): [0.8, 0.8], (4, 1): [0.8, 0.84]}
    scores = pd.concat([rows("pd_ddpm", v, ensemble_size=size, seed=seed) for (size, seed), v in values.items()])
    how = {"method": "pd_ddpm", "seeds": {"Utrecht/0": 0, "Utrecht/1": 1}, "interval": INTERVAL}
    figure = sweeps.ensemble_figure(scores, **how, paper={})
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.lines[0].get_ydata().astype(float), [0.7, 0.81])
    np.testing.assert_allclose(np.diff(bars(ax)).ravel() / 2, [0.2 / 2**0.5, 0.02 / 2**0.5])
    gain = mean_interval([0.2, 0.02], **INTERVAL, groups=[0, 1])
    told = f"from 1 to 4 members: +0.1100 [{gain['low']:.4f}, {gain['high']:.4f}]"
    assert [text.get_text() for text in figure.legends[0].texts] == [f"test (n = 2, 2 ensembles a size)\n{told}"]
    (ax,) = sweeps.ensemble_figure(scores, **how, paper=printed_dice("fig4", note="")).axes
    assert line(ax, "mean in the paper").get_xydata().tolist() == [[5, 0.812]]


def test_each_start_is_joined_with_what_became_of_it():
    table = pd.DataFrame({"start": ["empty", "checkpoint_1", "best"], "n": 12, "preseg_dice": [0.0, 0.5, 0.6]})
    table = table.assign(dice=[0.4, 0.55, 0.58], dice_difference=[0.4, 0.05, -0.02])
    table = table.assign(dice_difference_low=[0.3, 0.01, -0.03], dice_difference_high=[0.5, 0.08, 0.01])
    left, right = sweeps.starts_figure(table, method="pd_ddpm", presegmenter="attention_unet").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["empty", "checkpoint 1", "best"]
    assert np.array_equal(line(left, "its start").get_xdata(), table.preseg_dice)
    assert np.array_equal(line(left, "PD-DDPM").get_xdata(), table.dice)
    drawn = [segment[:, 0] for segment in right.containers[0].lines[2][0].get_segments()]
    assert np.allclose(drawn, [[0.01, 0.08], [-0.03, 0.01]]), "nothing has no difference of its own"
