"""What the paper prints, for figures of real data. Scores of a phantom never stand beside it."""

import pandas as pd

MARKER = {"marker": "D", "markerfacecolor": "none", "linestyle": "", "color": "0.2", "markersize": 5}


def printed_values(paper: pd.DataFrame, metric: str, *, note: str) -> dict[str, float]:
    """A metric of Table 1 as the paper prints it, by method; nothing where a figure has a note, such as "phantom".

    paper: columns table, row, metric, value (`paths.PAPER_NUMBERS`).
    """
    rows = paper[(paper.table.astype(str) == "1") & (paper.metric == metric)]
    return {} if note else dict(zip(rows.row, rows.value.astype(float), strict=True))
