"""Masks of one case for `report.strips`: what rows make of it, and what their chains start from."""

from collections.abc import Mapping

import numpy as np

from pdlib.evaluation import metrics
from pdlib.report.strips import Panel
from pdlib.study.comparison import Row
from pdlib.study.pictures import WidestSlice
from pdlib.study.rows import ensemble_of


def mask_panels(rows: Mapping[str, Row], subject: str) -> list[Panel]:
    """What rows make of a case, by title, each with the volume's Dice and its calls; members that are kept are read."""
    panels = []
    for title, row in rows.items():
        drawn = row.members(subject)
        calls = drawn.calls + (row.starts(subject).calls if row.first.trained else 0)
        panels.append(_panel(row, subject, title, drawn.values, f"{calls:g} call" + "s" * (calls != 1)))
    return panels


def start_panels(rows: Mapping[str, Row], subject: str) -> list[Panel]:
    """What the chains of rows start from, by title, each with the volume's Dice."""
    return [_panel(row, subject, title, row.starts(subject, 1).values) for title, row in rows.items()]


def _panel(row: Row, subject: str, title: str, values: np.ndarray, cost: str = "") -> Panel:
    run, mask = row.run, ensemble_of(row.run, values).mask
    dice = metrics.score_volume(run.labels(subject), mask, run.volume(subject).spacing_mm)["dice"]
    told = f"Dice {dice:.3f}" + (f"\n{cost}" if cost else "")
    return Panel(title, WidestSlice.of(run, subject).window.cut(mask), told)
