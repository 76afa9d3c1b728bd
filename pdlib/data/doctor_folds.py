"""Whether a table of folds is a partition of the cases of a folder, and no patient stands in two of them."""

from collections.abc import Sequence
from pathlib import Path

from pdlib.data.doctor_remedies import ERROR, NOTE, WARNING, Finding
from pdlib.data.nifti import printable

NAMED = 5  # of many subjects
ONCE = "make the folds again, so that each patient is in one of them"


def fold_findings(
    path: Path, accepted: Sequence[str], refused: Sequence[str], doubles: Sequence[tuple[str, str, bool]]
) -> list[Finding]:
    """What is wrong with a CSV of subject and fold for these cases.

    doubles: (case, an earlier one that it looks like, whether it is a copy for certain).
    """
    try:
        fold_of = _read(path)
    except Exception as error:  # pandas raises errors of many types
        cause = f"missing column {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        what = f"the folds cannot be read ({printable(' '.join(cause.split()))})"
        return [Finding("", printable(path), ERROR, what, "make them again: a CSV with the columns subject and fold")]

    def found(case: str, severity: str, what: str, remedy: str = ONCE) -> Finding:
        return Finding(case, printable(path), severity, what, remedy)

    several = [
        found(subject, ERROR, f"a subject in {_several(held)}") for subject, held in fold_of.items() if len(held) > 1
    ]
    for subject, held in fold_of.items():
        if strange := [fold for fold in held if not (fold.isascii() and fold.isdecimal())]:
            several.append(found(subject, ERROR, f"fold {strange[0]!r} is no whole number from 0 on"))
    for case, other, certain in doubles:
        held = fold_of.get(case, []), fold_of.get(other, [])
        if all(held) and set(held[0]) != set(held[1]):
            how, severity = ("is a copy of", ERROR) if certain else ("looks like", WARNING)
            several.append(found(case, severity, f"{how} {other}, in {_several([*held[1], *held[0]])}"))
    absent = sorted(set(fold_of) - {*accepted, *refused})
    left = sorted(set(accepted) - set(fold_of))
    if absent:
        what = f"{len(absent)} of its subjects are no cases of the folder: {_few(absent)}"
        several.append(found("", WARNING, what, "check the folder of these folds, or make folds for this folder"))
    if left:
        what = f"{len(left)} cases are in no fold: {_few(left)}"
        several.append(found("", NOTE, what, "make the folds again, if these cases are meant to take part"))
    return several


def _read(path: Path) -> dict[str, list[str]]:
    """Subject -> the folds of its rows."""
    import pandas as pd

    table, fold_of = pd.read_csv(path, dtype=str, keep_default_na=False), {}
    for subject, fold in zip(table["subject"], table["fold"], strict=True):
        fold_of.setdefault(printable(subject), []).append(printable(fold))
    return fold_of


def _several(folds: list[str]) -> str:
    different = sorted(set(folds))
    return f"folds {' and '.join(different)}" if len(different) > 1 else f"fold {different[0]} twice"


def _few(subjects: list[str]) -> str:
    return ", ".join(subjects[:NAMED]) + (", ..." if len(subjects) > NAMED else "")
