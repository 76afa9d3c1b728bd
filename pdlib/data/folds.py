"""Folds of whole subjects, balanced by site and lesion volume."""

import numpy as np
import pandas as pd

COLUMNS = ["subject", "site", "lesion_ml"]


def make_folds(cases: pd.DataFrame, *, folds: int, seed: int) -> pd.DataFrame:
    """Give each subject a fold in 0..folds-1. DataFrame[subject, site, lesion_ml] -> the same rows with `fold`.

    Within a site, subjects in order of lesion volume are dealt in blocks of `folds`, each block in an order of its own
    drawn from `seed`; an incomplete last block goes to the folds that hold fewest so far. Row order plays no part.
    Raises ValueError on missing columns, a subject twice, an unknown volume, folds < 3, or more folds than subjects.
    """
    missing = [name for name in COLUMNS if name not in cases]
    if missing:
        raise ValueError(f"folds need the columns {COLUMNS}; missing: {missing}")
    twice = cases["subject"][cases["subject"].duplicated()].unique()
    if len(twice):
        raise ValueError(f"every subject must stand in one row; these stand in several: {list(twice)}")
    if not np.isfinite(cases["lesion_ml"].to_numpy(dtype=float)).all():
        raise ValueError("every subject needs a finite lesion_ml")
    if folds < 3:
        raise ValueError(f"at least 3 folds are needed (test, validation, training), not {folds}")
    if len(cases) < folds:
        raise ValueError(f"{len(cases)} subjects cannot fill {folds} folds")

    rng = np.random.default_rng(seed)
    fold_of, held = {}, np.zeros(folds, dtype=int)
    ordered = cases.sort_values(["site", "lesion_ml", "subject"])
    for _, site in ordered.groupby("site", sort=True):
        subjects = site["subject"].tolist()
        for first in range(0, len(subjects), folds):
            block = subjects[first : first + folds]
            order = rng.permutation(folds)
            fewest = set(order[held[order].argsort(kind="stable")[: len(block)]])
            dealt = [fold for fold in order if fold in fewest]
            fold_of.update(zip(block, dealt, strict=True))
            held[dealt] += 1
    return cases[COLUMNS].assign(fold=[int(fold_of[subject]) for subject in cases["subject"]]).reset_index(drop=True)


def split_subjects(folds_table: pd.DataFrame, *, test_fold: int) -> dict[str, list[str]]:
    """The subjects of each part: test = fold k, validation = fold (k + 1) mod n, train = the other folds.

    Raises ValueError where the folds are not 0..n-1, n >= 3, `test_fold` is none of them, or a subject has two rows.
    """
    present = sorted(int(fold) for fold in folds_table["fold"].unique())
    if len(present) < 3 or present != list(range(len(present))):
        raise ValueError(f"the folds must be 0..n-1 with n >= 3, not {present}")
    if test_fold not in present:
        raise ValueError(f"unknown fold {test_fold}; there are {present}")
    if folds_table["subject"].duplicated().any():
        raise ValueError("a subject stands in more than one row of the folds")
    part_of = {fold: "train" for fold in present}
    part_of |= {test_fold: "test", (test_fold + 1) % len(present): "validation"}
    parts = folds_table["fold"].map(part_of)
    return {part: sorted(folds_table["subject"][parts == part]) for part in ("train", "validation", "test")}
