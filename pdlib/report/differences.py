"""Paired differences as points with intervals: what a figure that compares rows has to draw."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pdlib.evaluation.stats import mean_interval, paired_comparison
from pdlib.report.style import method_colour
from pdlib.report.titles import display_name
from pdlib.report.values import paired_values, tested_values, trainings

BARS = {"capsize": 2, "elinewidth": 0.8}


def paired_mean(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str, interval: Mapping[str, float]) -> dict:
    """n, n_undefined, mean, low, high of the difference ours - theirs over the subjects that both were tested on."""
    pairs = paired_values(ours, theirs, metric)
    found = paired_comparison(pairs.ours, pairs.theirs, **interval, groups=pairs.training)
    return found | {"mean": found["mean_difference"]}


def row_mean(rows: pd.DataFrame, metric: str, interval: Mapping[str, float]) -> dict:
    """n, n_undefined, mean, low, high of a row over its subjects."""
    values = tested_values(rows, metric)
    return mean_interval(values, **interval, groups=trainings(rows)[values.index])


def reach(points: pd.DataFrame) -> np.ndarray:
    """Intervals, columns mean, low, high, as the two lengths [2, N] that error bars take."""
    return np.stack([points["mean"] - points.low, points.high - points["mean"]])


def forest(
    ax: Axes, parts: Mapping[str, pd.DataFrame], base: str, metric: str, interval: Mapping[str, float], order: Sequence
) -> None:
    """The difference of each method to one of them, from the top down in an order; parts: score rows by method."""
    for place, name in enumerate(order):
        if name == base:
            ax.plot(0, place, "o", color=method_colour(name))
            continue
        point = pd.DataFrame([paired_mean(parts[name], parts[base], metric, interval)])
        ax.errorbar(point["mean"], place, xerr=reach(point), fmt="o", color=method_colour(name), **BARS)
    ax.axvline(0, color="0.5", linewidth=0.6, zorder=0)
    ax.set(xlabel=f"{display_name(f'{metric}_difference')} to {display_name(base)}", ylim=(len(order) - 0.5, -0.5))
