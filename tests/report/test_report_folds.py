"""Folds and resamples are drawn as they are."""

import numpy as np
import pandas as pd

from pdlib.report.folds import PARTS, folds_figure, resamples_figure


def test_each_subject_is_drawn_once_a_fold():
    parts = pd.DataFrame({0: ["test", "validation", "train"], 1: ["train", "test", "validation"]}, index=[*"abc"])
    figure = folds_figure(parts, ["Utrecht", "Utrecht", "GE3T"])
    (ax,) = figure.axes
    (mesh,) = ax.collections
    assert [[*PARTS][code] for code in mesh.get_array().ravel()] == [*parts[0], *parts[1]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Utrecht", "GE3T"]
    np.testing.assert_allclose(ax.get_xticks(), [1.0, 2.5])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["fold 0", "fold 1"]


def test_an_interval_holds_the_middle_of_its_resamples():
    drawn = np.arange(101) / 100
    (ax,) = resamples_figure({"alone": drawn, "wider": 2 * drawn - 0.5}, 0.5, 0.9, "Dice").axes
    narrow, wide = (line.get_xdata() for line in ax.lines[:2])
    np.testing.assert_allclose(narrow, [0.05, 0.95])
    np.testing.assert_allclose(wide, [-0.4, 1.4])
    assert ax.lines[2].get_xdata()[0] == 0.5
