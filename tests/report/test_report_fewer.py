"""Figures of fewer calls and of noise levels show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest
from conftest import rows

from pdlib.report.fewer import fewer_figure
from pdlib.report.levels import levels_figure
from pdlib.report.style import method_colour

INTERVAL = {"resamples": 200, "confidence": 0.95, "seed": 0}


def test_methods_are_colours_rules_markers_and_the_front_is_ringed():
    ways = [("pd_ddpm", "ddim_eta_1", 2, 5), ("pd_ddpm", "ddim_eta_1", 3, 7), ("ddpm", "ddim_eta_1", 3, 6)]
    ways += [("pd_ddpm", "ddpm", 30, 61), ("refiner", "ddim_eta_1", 0, 2)]
    scores = pd.concat(
        [
            rows(name, [nfe / 100, nfe / 50], metric, nfe=nfe, rule=rule, calls=calls)
            for name, rule, calls, nfe in ways
            for metric in ("dice", "uncertainty")
            if not (name == "refiner" and metric == "uncertainty")
        ]
    )
    figure = fewer_figure(scores, metrics=["dice", "uncertainty"], interval=INTERVAL)
    dice, spread, differences = figure.axes
    points = {(line.get_color(), line.get_marker()): line.get_xydata() for line in dice.lines}
    markers = {line.get_marker() for line in dice.lines if line.get_color() == method_colour("pd_ddpm")}
    assert len(markers) == 2, "two rules of one method"
    pd_ddpm = next(line for line in dice.lines if len(line.get_xdata()) == 2)
    np.testing.assert_allclose(pd_ddpm.get_xydata(), [[5, 0.075], [7, 0.105]])
    assert points[method_colour("ddpm"), pd_ddpm.get_marker()].tolist() == [[6, 0.09]], "the same rule"
    np.testing.assert_allclose(dice.lines[-1].get_xdata(), [2, 5, 6, 7, 61])
    assert not any(len(line.get_xdata()) for line in spread.lines if line.get_color() == method_colour("refiner"))
    names = [label.get_text() for label in differences.get_yticklabels()]
    ours = ["PD-DDPM, DDIM, eta 1, 5 calls", "DDIM, eta 1, 7 calls", "ancestral, 61 calls"]
    assert names == ["Refiner, 2 calls", *ours, "DDPM, 6 calls"], "method after method"
    assert differences.get_xlabel() == "Δ Dice to\nPD-DDPM, ancestral, 61 calls"
    assert [one.lines[0].get_xdata()[0] for one in differences.containers] == pytest.approx(
        [1.5 * (nfe - 61) / 100 for nfe in (2, 5, 7, 6)]
    )


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_a_metric_that_every_row_lacks_has_no_panel(values):
    """Members differ only where there are two of them, and raters are not everywhere."""
    parts = [rows("pd_ddpm", [0.7, 0.8], nfe=nfe, rule="ddpm", calls=nfe) for nfe in (5, 7)]
    parts += [rows("pd_ddpm", values, "uncertainty", nfe=nfe, rule="ddpm", calls=nfe) for nfe in (5, 7) if values]
    dice, differences = fewer_figure(pd.concat(parts), metrics=["dice", "uncertainty"], interval=INTERVAL).axes
    assert dice.get_ylabel() == "Dice" and dice.get_xlabel() == "Network calls a slice", "it is the lowest panel"
    assert differences.get_xlabel().startswith("Δ Dice")


def test_levels_are_drawn_as_read_and_as_errors_and_calls_as_indices():
    found = pd.DataFrame(
        {"estimator": "network", "mask": "reference", "t": [4, 4, 9, 9], "index": [4, 6, 8, 8]},
    )
    visited = {"network": np.array([[9, 5, 0], [8, 4, 0]])}
    read, error, right = levels_figure(found, visited, [9, 4, 0]).axes
    np.testing.assert_allclose(read.lines[0].get_xydata(), [[5, 6], [10, 9]])
    np.testing.assert_allclose(error.lines[0].get_xydata(), [[5, 1], [10, -1]])
    assert right.lines[0].get_ydata().tolist() == [10, 5, 1]
    assert right.lines[1].get_ydata().tolist() == [10, 6, 1, 9, 5, 1]
