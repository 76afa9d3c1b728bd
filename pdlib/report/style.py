"""How every picture looks: sizes, colours, the paper's style, and the files it becomes.

One method has one colour in all figures; splits differ in line and marker. The hues are near those of Okabe and
Ito (2008); those of one figure can be told apart without red or green cones, and tests/report holds them to it.
"""

import io
import logging
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pdlib.methods import GREY, METHODS
from pdlib.paths import STYLE, replacing

SINGLE, DOUBLE = 3.4, 7.0  # column widths, inches
SPLIT_STYLES = {  # a colour is a method's; splits differ in line and marker
    "validation": {"linestyle": (0, (4, 2)), "markerfacecolor": "white"},
    "test": {"linestyle": "-"},
}
HIT, EXTRA, MISSED = "#009E73", "#E69F00", "#56B4E9"


class PaperFigure(Figure):
    """A figure that Jupyter shows as a PNG by itself, whether or not a notebook has switched matplotlib's backend on.

    It belongs to no pyplot window, so that a cell shows it once: where the cell returns or displays it.
    """

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        with plt.style.context(STYLE):
            self.savefig(stream, format="png", dpi=self.dpi)
        return stream.getvalue()


def method_colour(method: str) -> str:
    """The colour of a method (a key of `methods.METHODS`) in every figure; dark grey for what is none."""
    return METHODS[method].colour if method in METHODS else GREY


def paper_style(draw: Callable[..., PaperFigure]) -> Callable[..., PaperFigure]:
    """Draw in the paper's style, whatever the notebook's own settings are, and print the note in the corner."""

    @wraps(draw)
    def styled(*args, note: str = "", **kwargs) -> PaperFigure:
        with plt.style.context(STYLE):
            figure = draw(*args, **kwargs)
            if note:
                figure.suptitle(note, x=0.995, ha="right", style="italic", color="0.35")
            return figure

    return styled


def save_figure(figure: Figure, path_stem: str | os.PathLike) -> list[Path]:
    """Write path_stem.png (200 dpi) and path_stem.pdf and return both paths; the same figure gives the same bytes.

    Each file appears whole or not at all. OSError names the file.
    """
    stem = Path(path_stem)
    metadata = {"png": {"Software": None}, "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer"))}
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in metadata]
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the fonts' dates, in red in a notebook
    with plt.style.context(STYLE):
        for path, (kind, about) in zip(paths, metadata.items(), strict=True):
            with replacing(path) as draft:
                figure.savefig(draft, format=kind, metadata=about)
    return paths


def scaled_axis(ax: Axes, label: str) -> None:
    """Small numbers on the y axis in units of a power of ten that the axis label names."""
    top = max((np.nanmax(np.abs(line.get_ydata())) for line in ax.lines if np.size(line.get_ydata()) > 2), default=1.0)
    power = int(np.floor(np.log10(top))) if top > 0 else 0
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 10.0**power:.3g}"))
    ax.set_ylabel(label if power == 0 else f"{label}, $10^{{{power}}}$")


def calls_axis(ax: Axes, calls: pd.Series) -> None:
    """Network calls on a logarithmic x axis with round numbers that can be read."""
    low, high = float(calls.min()) / 1.2, float(calls.max()) * 1.3
    ticks = [base * 10**power for power in range(5) for base in (1, 2, 5) if low <= base * 10**power <= high]
    ax.set(xlabel="Network calls a slice", xscale="log", xlim=(low, high))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
