"""Folds of whole subjects, balanced by site and lesion volume, and further subjects dealt to the repeats of a study."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

COLUMNS = ["subject", "site", "lesion_ml"]
GROUP = "group"  # a column that may be there: subjects of one group share a fold
FOLD, TEST, KEY = "fold", "test", "key"  # the column `part`: of the folds; tested by every row; by the key rows alone


def make_folds(cases: pd.DataFrame, *, folds: int, seed: int) -> pd.DataFrame:
    """Give each subject a fold in 0..folds-1. DataFrame[subject, site, lesion_ml] -> the same rows with `fold`.

    Within a site, subjects in order of lesion volume are dealt in blocks of `folds`, each block in an order of its own
    drawn from `seed`; an incomplete last block goes to the folds that hold fewest so far. Row order plays no part.
    With a column `group` (heads of one anatomy, say) whole groups are dealt, in order of their mean lesion volume.
    Raises ValueError on missing columns, a subject twice, an unknown volume, folds < 3, or more folds than subjects.
    """
    _require_cases(cases)
    if folds < 3:
        raise ValueError(f"at least 3 folds are needed (test, validation, training), not {folds}")
    group = cases[GROUP] if GROUP in cases else cases["subject"]
    units = cases.assign(subject=group, site="" if GROUP in cases else cases["site"])
    units = units.groupby(["subject", "site"], as_index=False).lesion_ml.mean()
    if len(units) < folds:
        raise ValueError(f"{len(units)} {'groups' if GROUP in cases else 'subjects'} cannot fill {folds} folds")
    fold_of = _dealt(units, np.zeros(folds, dtype=int), np.random.default_rng(seed))
    return cases[COLUMNS].assign(fold=group.map(fold_of)).reset_index(drop=True)


def with_further(
    table: pd.DataFrame, further: pd.DataFrame, *, seeds: Sequence[int], others_per_site: int | None, seed: int
) -> pd.DataFrame:
    """The table of `make_folds` and below it further subjects, which no fold holds, with columns `part` and `seed`.

    part tells whom further subjects are tested by: every row (TEST) or the key rows alone (KEY). TEST are
    `others_per_site` of each site, evenly spaced in the order of lesion volume (None: all). Both are dealt to the seeds
    of the repeats as subjects are to folds; those of the folds belong to the first seed. Raises ValueError as
    `make_folds` does, and where a site has too few subjects or a subject stands in both tables.
    """
    _require_cases(further)
    if both := sorted({*table["subject"]} & {*further["subject"]}):
        raise ValueError(f"further subjects are no subjects of the folds; these are: {both}")
    chosen = []
    for site, subjects in further.sort_values(["lesion_ml", "subject"]).groupby("site", sort=True):
        wanted = len(subjects) if others_per_site is None else others_per_site
        if wanted > len(subjects):
            raise ValueError(f"site {site} has {len(subjects)} further subjects, not {wanted}")
        chosen += subjects["subject"].iloc[((np.arange(wanted) + 0.5) * len(subjects) / wanted).astype(int)].tolist()
    every = further["subject"].isin(chosen)
    rng, held = np.random.default_rng(seed), np.zeros(len(seeds), dtype=int)
    hand_of = _dealt(further[every], held, rng) | _dealt(further[~every], held, rng)
    parts = pd.Series(np.where(every, TEST, KEY), index=further.index)
    dealt = further[COLUMNS].assign(part=parts, seed=[int(seeds[hand_of[subject]]) for subject in further["subject"]])
    return pd.concat([table.assign(part=FOLD, seed=int(seeds[0])), dealt], ignore_index=True)


def split_subjects(folds_table: pd.DataFrame, *, test_fold: int) -> dict[str, list[str]]:
    """The subjects of each part: validation = fold (k + 1) mod n, train = all folds but that and the test fold k.

    "test" are the subjects that every row is tested on, "key" those that the key rows are: of further subjects where
    the table has any (see `with_further`), both the test fold otherwise. Raises ValueError where the folds are not
    0..n-1, n >= 3, `test_fold` is none of them, or a subject has two rows.
    """
    if folds_table["subject"].duplicated().any():
        raise ValueError("a subject stands in more than one row of the folds")
    part = folds_table.get("part", pd.Series(FOLD, index=folds_table.index))
    dealt = folds_table[part == FOLD]
    present = sorted(int(fold) for fold in dealt["fold"].unique())
    if len(present) < 3 or present != list(range(len(present))):
        raise ValueError(f"the folds must be 0..n-1 with n >= 3, not {present}")
    if test_fold not in present:
        raise ValueError(f"unknown fold {test_fold}; there are {present}")
    tested, validated = dealt["fold"] == test_fold, dealt["fold"] == (test_fold + 1) % len(present)
    found = {"train": dealt[~tested & ~validated], "validation": dealt[validated]}
    if (part == FOLD).all():
        found |= {"test": dealt[tested], "key": dealt[tested]}
    else:
        found |= {"test": folds_table[part == TEST], "key": folds_table[part != FOLD]}
    return {name: sorted(rows["subject"]) for name, rows in found.items()}


def _require_cases(cases: pd.DataFrame) -> None:
    missing = [name for name in COLUMNS if name not in cases]
    if missing:
        raise ValueError(f"folds need the columns {COLUMNS}; missing: {missing}")
    twice = cases["subject"][cases["subject"].duplicated()].unique()
    if len(twice):
        raise ValueError(f"every subject must stand in one row; these stand in several: {list(twice)}")
    if not np.isfinite(cases["lesion_ml"].to_numpy(dtype=float)).all():
        raise ValueError("every subject needs a finite lesion_ml")


def _dealt(cases: pd.DataFrame, held: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """Which of len(held) hands each subject is dealt to; held [hands] counts what they hold, and goes on counting."""
    hands, hand_of = len(held), {}
    ordered = cases.sort_values(["site", "lesion_ml", "subject"])
    for _, site in ordered.groupby("site", sort=True):
        subjects = site["subject"].tolist()
        for first in range(0, len(subjects), hands):
            block = subjects[first : first + hands]
            order = rng.permutation(hands)
            fewest = set(order[held[order].argsort(kind="stable")[: len(block)]])
            dealt = [hand for hand in order if hand in fewest]
            hand_of.update(zip(block, map(int, dealt), strict=True))
            held[dealt] += 1
    return hand_of
