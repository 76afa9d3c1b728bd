"""Folds: whole subjects, every site and every lesion volume in each."""

import numpy as np
import pandas as pd
import pytest

from pdlib.data.folds import make_folds, split_subjects


def cohort(per_site: int = 20) -> pd.DataFrame:
    volumes = np.random.default_rng(1).lognormal(2.6, 1.2, size=(3, per_site))
    return pd.DataFrame(
        [
            {"subject": f"training/{site}/{number}", "site": site, "lesion_ml": volumes[row, number]}
            for row, site in enumerate(["Utrecht", "Singapore", "GE3T"])
            for number in range(per_site)
        ]
    )


def test_no_subject_crosses_and_each_is_tested_once():
    table = make_folds(cohort(), folds=5, seed=0)
    everyone, tested = set(cohort()["subject"]), []
    for fold in range(5):
        parts = split_subjects(table, test_fold=fold)
        assert [len(parts[part]) for part in ("train", "validation", "test")] == [36, 12, 12]
        assert set().union(*parts.values()) == everyone and sum(map(len, parts.values())) == len(everyone)
        assert parts["validation"] == split_subjects(table, test_fold=(fold + 1) % 5)["test"]
        tested += parts["test"]
    assert sorted(tested) == sorted(everyone)


def test_each_fold_takes_one_of_every_five_of_a_site_by_volume():
    table = make_folds(cohort(), folds=5, seed=0)
    for _, site in table.sort_values("lesion_ml").groupby("site"):
        blocks = site["fold"].to_numpy().reshape(4, 5)
        assert (np.sort(blocks, axis=1) == np.arange(5)).all()
        assert len({tuple(block) for block in blocks}) > 1


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows():
    table = make_folds(cohort(), folds=5, seed=0).set_index("subject")["fold"]
    shuffled = make_folds(cohort().sample(frac=1, random_state=3), folds=5, seed=0).set_index("subject")["fold"]
    pd.testing.assert_series_equal(shuffled.sort_index(), table.sort_index())
    assert not table.equals(make_folds(cohort(), folds=5, seed=1).set_index("subject")["fold"])


@pytest.mark.parametrize("per_site", [1, 2, 4, 7, 11])
def test_sites_that_do_not_fill_their_blocks_still_balance(per_site):
    table = make_folds(cohort(per_site), folds=3, seed=0)
    assert np.ptp(table["fold"].value_counts()) <= 1
    assert (table.groupby("site")["fold"].value_counts().unstack(fill_value=0).pipe(np.ptp, axis=1) <= 1).all()


@pytest.mark.parametrize(
    ("cases", "folds", "cause"),
    [
        (pd.concat([cohort(), cohort().head(1)]), 5, "stand in several: .*Utrecht/0"),
        (cohort(1), 5, "3 subjects cannot fill 5 folds"),
        (cohort(), 2, "at least 3 folds"),
        (cohort().drop(columns="site"), 5, r"missing: \['site'\]"),
        (cohort().assign(lesion_ml=np.nan), 5, "finite lesion_ml"),
    ],
)
def test_unusable_cohorts_are_refused(cases, folds, cause):
    with pytest.raises(ValueError, match=cause):
        make_folds(cases, folds=folds, seed=0)


def test_unusable_tables_are_refused():
    table = make_folds(cohort(), folds=5, seed=0)
    with pytest.raises(ValueError, match="unknown fold 5"):
        split_subjects(table, test_fold=5)
    with pytest.raises(ValueError, match="more than one row"):
        split_subjects(pd.concat([table, table.head(1).assign(fold=4)]), test_fold=0)
    with pytest.raises(ValueError, match="the folds must be"):
        split_subjects(table[table["fold"] != 2], test_fold=0)
