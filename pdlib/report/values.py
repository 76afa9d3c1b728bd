"""Score rows in, one value a subject out: what a row of a table scores, and where two rows can be compared.

Subjects that a row was never tested on have no value; a score that is undefined for a subject tested is NaN.
"""

import pandas as pd

from pdlib.report.titles import Row, row_key, row_title


def subject_values(rows: pd.DataFrame) -> pd.Series:
    """One value a subject, the mean over seeds; NaN if any of them is."""
    return rows.groupby("subject").value.agg(lambda values: values.mean(skipna=False)).astype(float)


def tested_values(rows: pd.DataFrame, metric: str) -> pd.Series:
    """A row's score of every subject that it was tested on; NaN where the score is undefined. rows: of one split."""
    return subject_values(rows[rows.metric == metric]).reindex(sorted(rows.subject.unique()))


def trainings(rows: pd.DataFrame) -> pd.Series:
    """Which training tested each subject, "fold.seed": what a hierarchical bootstrap resamples.

    ValueError: a subject under several, as where the column seed tells random ensembles apart.
    """
    own = rows[["subject", "fold", "seed"]].drop_duplicates().set_index("subject")
    if not own.index.is_unique:
        raise ValueError(f"{own.index[own.index.duplicated()][0]}: segmented under several seeds or folds")
    return own.fold.astype(str) + "." + own.seed.astype(str)


def paired_values(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The scores of two rows for the subjects that both were tested on: columns ours, theirs, training."""
    pairs = {"ours": tested_values(ours, metric), "theirs": tested_values(theirs, metric), "training": trainings(ours)}
    return pd.concat(pairs, axis=1, join="inner").sort_index()


def missed_starts(scores: pd.DataFrame, presegmenter: str) -> list[str]:
    """Subjects of whose lesions the pre-segmentation touches none: it is empty, or all of it lies beside them.

    scores: rows of `records.COLUMNS` with the pre-segmenter's own; of each subject those of the training that its
    chains start from. A subject without lesions has none to miss: its recall is 1 (`metrics.score_volume`).
    """
    recall = tested_values(select(scores, {"method": presegmenter}), "lesion_recall")
    return [*recall.index[recall == 0]]


def select(scores: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The score rows of a table's row. ValueError: none, or a column that tells no rows apart."""
    row_key(row)
    held = pd.Series(True, scores.index)
    for column, value in row.items():
        held &= (scores[column] == value).fillna(False).astype(bool)
    if not held.any():
        raise ValueError(f"{row_title(row)}: no scores (there are {', '.join(map(str, scores.method.unique()))})")
    return scores[held]
