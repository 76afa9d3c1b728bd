"""How well a state's noise level is read off it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pdlib.report.style import DOUBLE, PaperFigure, paper_style

LINES = {"reference": "-", "pre-segmentation": "--"}  # by what was diffused


@paper_style
def levels_figure(found: pd.DataFrame, visited: dict[str, np.ndarray], plan: Sequence[int]) -> PaperFigure:
    """Left the paper time t as it is read against the true one, in the middle the error of that, mean and deviation
    over states, for each estimator and each mask that was diffused; right the t at which a chain's calls find the
    slices of a subject.

    found: columns estimator, mask, t, index; visited: by estimator, [N, calls]; plan: the indices of DDIM.
    """
    figure = PaperFigure(figsize=(DOUBLE, 2.6))
    read, error, right = figure.subplots(1, 3)
    colours = {name: f"C{i}" for i, name in enumerate(found.estimator.unique())}
    for ax, base in ((read, 0 * found.t - 1), (error, found.t)):
        for (estimator, mask), values in (found["index"] - base).groupby([found.estimator, found["mask"]], sort=False):
            _mean_and_deviation(ax, values, found.t, f"{estimator}, {mask}", colours[estimator], mask)
    ends = [found.t.min() + 1, found.t.max() + 1]
    read.plot(ends, ends, color="0.6", linewidth=0.6, zorder=0)
    error.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    read.set(xlabel="True $t$", ylabel="Read $t$")
    error.set(xlabel="True $t$", ylabel="Read minus true $t$")
    call = np.arange(1, len(plan) + 1)
    right.plot(call, np.array(plan) + 1, "s", color="0.3", markersize=6, fillstyle="none", label="DDIM's plan")
    for place, (name, indices) in enumerate(visited.items(), 1):
        x = np.broadcast_to(call + 0.12 * place, indices.shape)
        right.plot(x.ravel(), indices.ravel() + 1, ".", color=colours[name], markersize=3, label=f"{name}, each slice")
    right.set(xlabel="Call", ylabel="$t$ at which it is made")
    right.set_xticks(call)
    read.legend(loc="upper left", fontsize=6)
    right.legend(loc="upper right", fontsize=6)
    return figure


def _mean_and_deviation(ax: Axes, values: pd.Series, t: pd.Series, label: str, colour: str, mask: str) -> None:
    """A line of means by true paper time, and of a reference the deviation about it."""
    by_t = values.groupby(t.loc[values.index]).agg(["mean", "std"])
    ax.plot(by_t.index + 1, by_t["mean"], label=label, color=colour, linestyle=LINES[mask])
    if mask == "reference":
        low, high = by_t["mean"] - by_t["std"], by_t["mean"] + by_t["std"]
        ax.fill_between(by_t.index + 1, low, high, color=colour, alpha=0.18, linewidth=0)
