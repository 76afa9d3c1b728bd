"""Folds: whole subjects, every site and every lesion volume in each."""

import numpy as np
import pandas as pd
import pytest

from pdlib.data.folds import make_folds, split_subjects, with_further


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
        assert parts.pop("key") == parts["test"], "no further subjects: every row is tested on the same"
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


# Further subjects.
def further(per_site: int = 66) -> pd.DataFrame:
    cases = cohort(per_site).sample(frac=1, random_state=4, ignore_index=True)
    return cases.assign(subject="further/" + cases["subject"])


def dealt(per_site=66, seeds=(0, 1, 2), others=20):
    table = make_folds(cohort(), folds=5, seed=0)
    return with_further(table, further(per_site), seeds=seeds, others_per_site=others, seed=0)


def test_further_subjects_are_tested_and_none_of_them_crosses():
    table = dealt()
    before = {fold: split_subjects(make_folds(cohort(), folds=5, seed=0), test_fold=fold) for fold in range(5)}
    for fold in range(5):
        parts = split_subjects(table, test_fold=fold)
        assert [len(parts[part]) for part in ("train", "validation", "test", "key")] == [36, 12, 60, 198]
        assert parts["train"] == before[fold]["train"] and parts["validation"] == before[fold]["validation"]
        assert set(parts["test"]) < set(parts["key"]) == set(further()["subject"])
        assert set(parts["key"]).isdisjoint(cohort()["subject"]), "nobody of any fold, the test fold's included"


@pytest.mark.parametrize(("per_site", "seeds", "others"), [(66, (0, 1, 2), 20), (7, (5, 3), 4), (4, (0, 1, 2), None)])
def test_the_few_and_the_repeats_each_have_all_sites_and_volumes(per_site, seeds, others):
    table = dealt(per_site, seeds, others)
    mine = table[table.part != "fold"].sort_values("lesion_ml")
    assert set(table[table.part == "fold"].seed) == {seeds[0]} and set(mine.seed) == set(seeds)
    few = mine[mine.part == "test"]
    assert (few.groupby("site").size() == (others or per_site)).all()
    for rows in (few, mine):
        assert np.ptp(rows.seed.value_counts()) <= 1, "evenly over the repeats"
        assert np.ptp(rows.groupby(["site", "seed"]).size().unstack(), axis=1).max() <= 2
    for _, site in mine.groupby("site"):
        places = np.flatnonzero(site.part == "test")
        assert np.ptp(np.diff([-1, *places, per_site])) <= 2, "evenly over the volumes"
        if per_site == 66:
            ranks = site.assign(rank=range(per_site)).groupby("seed")["rank"].mean()
            assert abs(ranks - (per_site - 1) / 2).max() < 2


def test_further_subjects_are_dealt_by_what_they_are_and_not_by_the_order_of_rows():
    def told(cases, seed=0):
        table = with_further(
            make_folds(cohort(), folds=5, seed=0), cases, seeds=[0, 1, 2], others_per_site=20, seed=seed
        )
        return table.set_index("subject")[["part", "seed"]].sort_index()

    pd.testing.assert_frame_equal(told(further()), told(further().iloc[::-1]))
    assert not told(further()).equals(told(further(), seed=1))


def test_further_subjects_that_cannot_be_dealt_are_refused():
    table = make_folds(cohort(), folds=5, seed=0)
    with pytest.raises(ValueError, match="no subjects of the folds; these are"):
        with_further(table, cohort(1), seeds=[0], others_per_site=None, seed=0)
    with pytest.raises(ValueError, match="site GE3T has 3 further subjects, not 4"):
        with_further(table, further(3), seeds=[0], others_per_site=4, seed=0)


def test_a_group_stays_together_whatever_its_sites():
    cases = cohort().assign(group=[f"map {i % 20:02}" for i in range(60)])
    table = make_folds(cases, folds=5, seed=0)
    assert table.groupby(cases["group"]).fold.nunique().eq(1).all()
    assert table.groupby("fold").size().eq(12).all() and "group" not in table
    with pytest.raises(ValueError, match="20 groups cannot fill 21 folds"):
        make_folds(cases, folds=21, seed=0)
