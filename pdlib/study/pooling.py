"""Several test folds as one: every subject is tested once, by networks that never saw it."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pdlib.data.folds import split_subjects
from pdlib.study.run import Run
from pdlib.training.weights import load_weights


def pool(scores: Mapping[int, pd.DataFrame], folds: pd.DataFrame) -> pd.DataFrame:
    """Score rows of several test folds as one table; a split keeps its rows apart, as in each fold.

    scores: rows of `records.COLUMNS` by test fold; folds: the table of `make_folds`. ValueError where the rows of a
    split are not those of all its subjects, and of no other, or name another fold; and where the table has further
    subjects, and there are several folds.
    """
    if "part" in folds and len(scores) > 1:
        raise ValueError("further subjects are tested by every fold: pooled they would count several times")
    for fold, rows in scores.items():
        parts = split_subjects(folds, test_fold=fold)
        for split, mine in rows.groupby("split"):
            most = parts["key" if split == "test" else split]  # of further subjects a row may be tested on a part
            if not {*parts[split]} <= {*mine.subject} <= {*most} or set(mine.fold) != {fold}:
                raise ValueError(f"fold {fold}: its {split} rows are not those of its {split} subjects")
    return pd.concat(scores.values(), ignore_index=True)


def saw_only_their_own(run: Run, folder: Path) -> pd.DataFrame:
    """The networks of a run's fold (columns fold, network), whether each names the fold's training and validation
    subjects as its own ("own subjects"), and how many of those that it is tested on it has seen ("crossed").

    folder: of the trainings, each with its best.safetensors.
    """
    found = []
    for path in sorted(folder.glob("*/best.safetensors")):
        saw = load_weights(path).card["data"]
        own = all(saw[split] == run.subjects(split) for split in ("train", "validation"))
        crossed = {*saw["train"], *saw["validation"]} & {*run.subjects("key")}
        found.append({"fold": run.fold, "network": path.parent.name, "own subjects": own, "crossed": len(crossed)})
    return pd.DataFrame(found)
