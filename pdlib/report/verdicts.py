"""The ledger of claims as a picture: which intervals lie on one side of what their claim is held against."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from pdlib.report.style import DOUBLE, EXTRA, HIT, PaperFigure, paper_style

VERDICTS = {"holds": HIT, "does not hold": EXTRA, "undecided": "0.55"}
TICK = {"marker": "|", "color": "0.3", "markersize": 7, "linestyle": "none"}
LETTERS = 66  # of a claim in one line
REACH = 4.0  # half-lengths of an interval from the bound: what lies further out is drawn at the edge


@paper_style
def verdicts_figure(claims: pd.DataFrame, bounds: Sequence[float], gains: Sequence[float]) -> PaperFigure:
    """An estimate with its interval for each claim, as distances from its bound in half-lengths of that interval.

    Scores of different units so share an axis. claims: of `study.claims.ledger`; bounds: what each is held against;
    gains: the least gain that counts, a tick where the interval was not moved to the edge; NaN for a claim without.
    """
    texts = [textwrap.fill(f"{row.number}  {row.claim}", LETTERS) for row in claims.itertuples()]
    lines = [text.count("\n") + 1 for text in texts]
    places = np.cumsum([0.5 * (a + b) + 0.35 for a, b in zip([0, *lines[:-1]], lines, strict=True)])
    figure = PaperFigure(figsize=(DOUBLE, 0.125 * places[-1] + 0.8))
    ax = figure.subplots()
    for place, row, bound, gain in zip(places, claims.itertuples(), bounds, gains, strict=True):
        half = (row.estimate_high - row.estimate_low) / 2
        if not half > 0:
            continue
        low, middle, high = (np.array([row.estimate_low, row.estimate, row.estimate_high]) - bound) / half
        shift = np.clip(middle, 1 - REACH, REACH - 1) - middle
        colour = VERDICTS[row.verdict]
        ax.plot([low + shift, high + shift], [place, place], color=colour, linewidth=1.2)
        ax.plot(middle + shift, place, "o", color=colour, markersize=4)
        if not shift and abs(counts := (gain - bound) / half) <= REACH:
            ax.plot(counts, place, **TICK)
    ax.axvline(0, color="0.3", linewidth=0.7, zorder=0)
    ax.set(xlim=(-REACH - 0.2, REACH + 0.2), ylim=(places[-1] + 1, places[0] - 1))
    ax.set_yticks(places, texts, fontsize=6.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xlabel="against the claim          for it\nhalf-lengths of the interval, from the claim's bound")
    handles = [Line2D([], [], marker="o", color=colour, label=name) for name, colour in VERDICTS.items()]
    handles += [Line2D([], [], label="the least gain that counts", **TICK)] if np.isfinite(gains).any() else []
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
