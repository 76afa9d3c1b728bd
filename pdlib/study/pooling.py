"""Several test folds as one: every subject is tested once, by networks that never saw it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pdlib.data.folds import split_subjects
from pdlib.study.claims import CHAIN


def pool(scores: Mapping[int, pd.DataFrame], folds: pd.DataFrame) -> pd.DataFrame:
    """Score rows of several test folds as one table; a split keeps its rows apart, as in each fold.

    scores: rows of `records.COLUMNS` by test fold; folds: the table of `make_folds`. ValueError where the rows of a
    split are not those of all its subjects, and of no other, or name another fold.
    """
    for fold, rows in scores.items():
        parts = split_subjects(folds, test_fold=fold)
        for split, mine in rows.groupby("split"):
            if set(mine.subject) != set(parts[split]) or set(mine.fold) != {fold}:
                raise ValueError(f"fold {fold}: its {split} rows are not those of its {split} subjects")
    return pd.concat(scores.values(), ignore_index=True)


def gap_names(gaps: Sequence[float]) -> list[str]:
    """What Table 2 calls a checkpoint that was picked for its gap below the best, the widest first, "best" last."""
    return [*(f"step {gap:g} below best" for gap in sorted(gaps, reverse=True)[:-1]), "best"]


def name_by_gap(scores: pd.DataFrame, picked: Sequence[int], gaps: Sequence[float]) -> pd.DataFrame:
    """Table 2's rows of a fold with its checkpoints named by `gap_names`: steps differ from fold to fold, ranks do not.

    picked: the steps in the order of `experiment.pick_checkpoints`. ValueError for a step that the rows do not know.
    """
    steps = [*(f"step {step}" for step in picked[:-1]), "best"]
    names = dict(zip(steps, gap_names(gaps), strict=True))
    names |= {f"{CHAIN} from {step}": f"{CHAIN} from {name}" for step, name in names.items()}
    if unknown := set(names) - set(scores.method):
        raise ValueError(f"{min(unknown)}: no scores (there are {', '.join(scores.method.unique())})")
    return scores.assign(method=scores.method.replace(names))
