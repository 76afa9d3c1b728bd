"""How well a state's noise level is read off it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pdlib.report.style import DOUBLE, PaperFigure, paper_style

LINES = {"reference": "-", "pre-segmentation": "--"}  # by what was diffused


@paper_style
def levels_figure(found: pd.DataFrame, visited: dict[str, np.ndarray], plan: Sequence[int]) -> PaperFigure:
    """Left the error of an estimated index against the true paper time t, mean and deviation over states, for each
    estimator and each mask that was diffused; right the indices at which a chain's calls find the slices of a subject.

    found: columns estimator, mask, t, index; visited: by estimator, [N, calls]; plan: the indices of DDIM.
    """
    figure = PaperFigure(figsize=(DOUBLE, 2.8))
    left, right = figure.subplots(1, 2)
    colours = {name: f"C{i}" for i, name in enumerate(found.estimator.unique())}
    for (estimator, mask), rows in found.groupby(["estimator", "mask"], sort=False):
        error = (rows["index"] - rows.t).groupby(rows.t).agg(["mean", "std"])
        style = {"color": colours[estimator], "linestyle": LINES[mask]}
        left.plot(error.index + 1, error["mean"], label=f"{estimator}, {mask}", **style)
        if mask == "reference":
            low, high = error["mean"] - error["std"], error["mean"] + error["std"]
            left.fill_between(error.index + 1, low, high, color=colours[estimator], alpha=0.18, linewidth=0)
    left.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    left.set(xlabel="True $t$", ylabel="Estimated minus true $t$, mean ± deviation")
    call = np.arange(1, len(plan) + 1)
    right.plot(call, np.array(plan) + 1, "s", color="0.3", markersize=6, fillstyle="none", label="DDIM's plan")
    for place, (name, indices) in enumerate(visited.items(), 1):
        x = np.broadcast_to(call + 0.12 * place, indices.shape)
        right.plot(x.ravel(), indices.ravel() + 1, ".", color=colours[name], markersize=3, label=f"{name}, each slice")
    right.set(xlabel="Call", ylabel="$t$ at which it is made")
    right.set_xticks(call)
    for ax in (left, right):
        ax.legend(loc="best", fontsize=6)
    return figure
