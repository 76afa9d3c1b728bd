"""What the paper prints, for figures of real data. Scores of a phantom never stand beside it."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from pdlib.paths import PAPER_NUMBERS

MARKER = {"marker": "D", "markerfacecolor": "none", "linestyle": "", "color": "0.2", "markersize": 5, "clip_on": False}


def printed_dice(table: str, *, note: str) -> dict[str, float]:
    """Dice as the paper prints it; nothing where a figure has a note, such as "phantom".

    table: "1", by method; "fig3", by T'/T, or "fig4", by the number of members, where Table 1 prints the same quantity.
    """
    paper = pd.read_csv(PAPER_NUMBERS, dtype={"table": str, "row": str})
    rows = paper[(paper.table == table) & (paper.metric == "dice")]
    return {} if note else dict(zip(rows.row, rows.value, strict=True))


def mark_printed(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw hollow diamonds where the paper's values lie, with one label; none where there are no values."""
    if len(x):
        ax.plot(x, y, **MARKER, label="mean in the paper")
