"""Test folds in pictures: who is tested by whom, and how far a mean would move with other trainings and subjects."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pdlib.report.style import DOUBLE, SINGLE, PaperFigure, paper_style

PARTS = {"train": "#D9D9D9", "validation": "#56B4E9", "test": "#D55E00"}


@paper_style
def folds_figure(parts: pd.DataFrame, sites: Sequence[str]) -> PaperFigure:
    """What each subject does in each fold, a row a fold.

    parts: a key of PARTS for each subject (rows) and test fold (columns); sites: of the subjects, those of one site
    side by side.
    """
    figure = PaperFigure(figsize=(DOUBLE, 0.75 + 0.24 * parts.shape[1]))
    ax = figure.add_subplot()
    codes = parts.apply(lambda part: part.map([*PARTS].index)).to_numpy(int).T  # [folds, subjects]
    ax.pcolormesh(codes, cmap=ListedColormap([*PARTS.values()]), vmin=0, vmax=len(PARTS) - 1, edgecolors="w", lw=1)
    begins = [place for place, site in enumerate(sites) if place == 0 or site != sites[place - 1]]
    for place in begins[1:]:
        ax.axvline(place, color="k", linewidth=1)
    middles = [(begin + end) / 2 for begin, end in zip(begins, [*begins[1:], len(sites)], strict=True)]
    ax.set_xticks(middles, [sites[begin] for begin in begins])
    ax.set_yticks(np.arange(parts.shape[1]) + 0.5, [f"fold {fold}" for fold in parts])
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    patches = [Patch(color=colour, label=part) for part, colour in PARTS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(PARTS))
    return figure


@paper_style
def resamples_figure(means: Mapping[str, NDArray], observed: float, confidence: float, label: str) -> PaperFigure:
    """Means of bootstrap resamples [R] by how they were drawn, each with the interval that holds its middle part."""
    figure = PaperFigure(figsize=(SINGLE, 2.4))
    ax = figure.add_subplot()
    bins = np.linspace(min(map(np.min, means.values())), max(map(np.max, means.values())), 50)
    for place, (title, drawn) in enumerate(means.items()):
        heights, _, _ = ax.hist(drawn, bins, histtype="stepfilled", alpha=0.4, color=f"C{place}", label=title)
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        ax.plot([low, high], 2 * [-0.06 * (1 + place) * heights.max()], color=f"C{place}", linewidth=2.5)
    ax.axvline(observed, color="k", linewidth=0.8)
    if bins[0] < 0 < bins[-1]:
        ax.axvline(0, color="0.5", linewidth=0.6, linestyle=":")
    ax.set(xlabel=label, ylabel="Resamples")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=2))
    figure.legend(loc="outside lower center", ncols=2)
    return figure
