"""Intervals and tests against enumeration, examples worked by hand, and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pdlib.evaluation.stats import (
    design_effect,
    detectable_difference,
    differences,
    holm,
    mean_interval,
    paired_comparison,
    signed_rank_sum,
    subjects_needed,
)

HOW = {"resamples": 2000, "confidence": 0.95, "seed": 0}


def enumerate_signs(difference):
    """Two-sided signed-rank p-value: the share of all sign patterns as extreme as the one seen."""
    ranks = scipy_stats.rankdata(np.abs(difference))
    sums = np.array([ranks @ signs for signs in itertools.product((-1, 1), repeat=len(ranks))])
    return np.mean(np.abs(sums) >= abs(ranks @ np.sign(difference)) - 1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_wilcoxon_is_exact(n, seed):
    a, b = np.random.default_rng(seed).normal(0.3, 1, n), np.zeros(n)
    assert paired_comparison(a, b, **HOW)["p_value"] == pytest.approx(enumerate_signs(a))


def test_wilcoxon_with_ties_and_equal_pairs():
    a = np.array([1, 1, 2, 2, -1, 3, 0, 0.0])
    assert paired_comparison(a, a * 0, **HOW)["p_value"] == pytest.approx(enumerate_signs(a[a != 0]))


@pytest.mark.parametrize("n", [1, 7, 40])
def test_the_signed_rank_sum_is_scipys_statistic(n):
    """scipy gives the smaller of W+ and W-, which add up to n (n + 1) / 2."""
    difference = np.random.default_rng(n).normal(0.2, 1, n).round(1 if n == 40 else 8)
    nonzero = difference[difference != 0]
    smaller = scipy_stats.wilcoxon(nonzero).statistic
    side = np.sign(signed_rank_sum(difference))
    assert signed_rank_sum(np.append(difference, np.nan)) == pytest.approx(
        side * (nonzero.size * (nonzero.size + 1) / 2 - 2 * smaller)
    )
    assert signed_rank_sum(-difference) == -signed_rank_sum(difference)


def test_pairing_finds_a_small_gain_in_a_large_spread():
    rng = np.random.default_rng(0)
    b = rng.uniform(0.3, 0.9, 12)
    a = b + rng.normal(0.01, 0.002, 12)
    row = paired_comparison(a, b, **HOW)
    assert row["low"] > 0 and row["low"] < row["mean_difference"] < row["high"]
    assert row["mean_difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert row["p_value"] == pytest.approx(2 / 2**12)
    back = paired_comparison(b, a, **HOW)
    assert (back["low"], back["high"]) == pytest.approx((-row["high"], -row["low"]), abs=2e-4)


def test_undefined_pairs_are_counted():
    a, b = [1.0, np.nan, 2.0, 3.0, 4.0], [0.0, 1.0, np.nan, 1.0, 1.0]
    row = paired_comparison(a, b, **HOW)
    assert (row["n"], row["n_undefined"]) == (3, 2)
    assert row["mean_difference"] == pytest.approx(2.0)
    assert mean_interval(a, **HOW)["n_undefined"] == 1


def test_nothing_to_compare():
    same = paired_comparison([0.7, 0.8, 0.9], [0.7, 0.8, 0.9], **HOW)
    assert (same["mean_difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)
    one = paired_comparison([0.7, np.nan], [0.5, 0.5], **HOW)
    assert one["mean_difference"] == pytest.approx(0.2) and one["n"] == 1
    assert np.isnan([one["low"], one["high"], one["p_value"]]).all()
    assert np.isnan(mean_interval([], **HOW)["mean"])


def test_bootstrap_covers_the_true_mean():
    """40 normal values: the percentile interval covers nearly as often as it says, a little less by its nature."""
    rng = np.random.default_rng(0)
    runs = [mean_interval(rng.normal(1, 1, 40), resamples=400, confidence=0.95, seed=i) for i in range(400)]
    assert 0.90 <= np.mean([run["low"] <= 1 <= run["high"] for run in runs]) <= 0.975
    narrow = mean_interval(np.arange(40.0), resamples=2000, confidence=0.5, seed=0)
    # half-width of the middle half of a normal with the mean's standard error (ddof 0, as resampling has it)
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 0.6745 * np.std(np.arange(40)) / 40**0.5, rel=0.1)


def nested(groups, size, deviation, runs, subject_deviation=1.0):
    """How often the interval covers the true mean 0 of a nested normal model: a deviation a group, one a subject."""
    rng, names, hits = np.random.default_rng(1), np.repeat(np.arange(groups), size), 0
    for i in range(runs):
        own = rng.normal(0, subject_deviation, groups * size)
        row = mean_interval(
            np.repeat(rng.normal(0, deviation, groups), size) + own, **HOW | {"resamples": 400, "seed": i}, groups=names
        )
        hits += row["low"] <= 0 <= row["high"]
    return hits / runs


def test_three_groups_cover_what_their_closed_form_says():
    """Where only groups differ, the interval of three is their range: it misses when all three lie on one side."""
    standard_error = (0.75 * 0.25 / 400) ** 0.5
    assert nested(3, 2, 1.0, 400, subject_deviation=1e-9) == pytest.approx(0.75, abs=3 * standard_error)
    assert nested(3, 20, 0.0, 200) > 0.94, "groups that do not differ make it longer, not shorter"
    assert nested(3, 20, 0.5, 200) < 0.9, "three that do differ leave it too short"


def test_the_hierarchical_spread_is_the_nested_models():
    """Of means of G resampled groups of n: (between + within / n) / G, each with its own sum of squares over N."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (8, 25)) + rng.normal(0, 1, (8, 1))
    groups = np.repeat(np.arange(8), 25)
    wide = mean_interval(values.ravel(), **HOW | {"resamples": 40000, "confidence": 0.68}, groups=groups)
    spread = (values.mean(axis=1).var() + values.var(axis=1).mean() / 25) / 8
    assert (wide["high"] - wide["low"]) / 2 == pytest.approx(0.9945 * spread**0.5, rel=0.03)
    assert wide["mean"] == pytest.approx(values.mean())
    alone = mean_interval(values.ravel(), **HOW)
    assert alone["high"] - alone["low"] < wide["high"] - wide["low"]


def test_one_group_is_the_plain_bootstrap():
    values = np.random.default_rng(0).normal(size=20)
    plain = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    row = mean_interval(values, **HOW, groups=["a"] * 20)
    assert (row["low"], row["high"]) == tuple(plain) and row == mean_interval(values, **HOW)
    gone = mean_interval([*values, np.nan], **HOW, groups=[1] * 20 + [2])
    assert (gone["low"], gone["high"]) == tuple(plain), "a group without a value is none"


def test_groups_of_unequal_size_weigh_as_their_subjects():
    """Nine values 0 and three values 1: resamples of two groups are (0, 0), (0, 1) twice and (1, 1)."""
    row = mean_interval([0.0] * 9 + [1.0] * 3, **HOW, groups=[0] * 9 + [1] * 3)
    assert (row["mean"], row["low"], row["high"]) == (0.25, 0, 1)
    half = mean_interval([0.0] * 9 + [1.0] * 3, **HOW | {"confidence": 0.4}, groups=[0] * 9 + [1] * 3)
    assert (half["low"], half["high"]) == (0.25, 0.25)


def test_a_pair_keeps_its_group():
    a, groups = np.array([1.0, np.nan, 2.0, 3.0, 4.0]), [0, 1, 1, 2, 2]
    row = paired_comparison(a, a * 0, **HOW, groups=groups)
    alone = mean_interval(a, **HOW, groups=groups)
    assert all(row[key] == alone[key] for key in ("n", "low", "high")) and row["median_difference"] == 2.5
    assert row["p_value"] == paired_comparison(a, a * 0, **HOW)["p_value"]


def test_the_seed_alone_decides():
    values = np.random.default_rng(0).normal(size=20)
    assert mean_interval(values, **HOW) == mean_interval(values, **HOW)
    assert mean_interval(values, **HOW) != mean_interval(values, **HOW | {"seed": 1})


def test_a_difference_is_shown_at_its_power():
    """By simulation: at the detectable difference four of five samples of n reject."""
    how = {"power": 0.8, "confidence": 0.95}
    difference, rng = detectable_difference(0.3, 60, **how), np.random.default_rng(0)
    assert difference == pytest.approx(2.8016 * 0.3 / 60**0.5, rel=1e-4)
    z = rng.normal(difference, 0.3, (4000, 60)).mean(axis=1) / (0.3 / 60**0.5)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.02)
    assert subjects_needed(0.3, difference * 1.0001, **how) == 60 == subjects_needed(0.3, -difference * 1.0001, **how)
    assert np.isinf(subjects_needed(0.3, 0, **how)) and np.isnan(subjects_needed(0.3, np.nan, **how))


def test_the_design_effect_is_that_of_the_nested_model():
    """Variance of the mean of 3 groups of 20, by simulation: a twentieth of all variance lies between groups."""
    rng, share = np.random.default_rng(0), 0.05
    means = rng.normal(0, share**0.5, (20000, 3)).mean(axis=1) + rng.normal(0, ((1 - share) / 60) ** 0.5, 20000)
    assert means.var() * 60 == pytest.approx(design_effect(60, 3, share), rel=0.04)
    assert design_effect(12, 1, share) == 1


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no smaller than the one before."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.6, 0.6]), [0.03, np.nan, 1, 1])
    assert holm([]).size == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: paired_comparison([1.0], [1.0, 2.0], **HOW), "do not pair"),
        (lambda: mean_interval([[1.0]], **HOW), "not one value a subject"),
        (lambda: mean_interval([np.inf], **HOW), "infinity"),
        (lambda: mean_interval([1.0, 2.0], **HOW, groups=[0]), "a group for each of 2"),
        (lambda: holm([1.2]), r"\[0, 1\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_differs_by_rounding_is_equal():
    a = np.array([0.1 + 0.2, 0.7, 1 / 3 + 1 / 3 + 1 / 3, 0.5])
    b = np.array([0.3, 0.8 - 0.1, 1.0, 0.5])
    assert ((a - b) != 0).any() and (differences(a, b) == 0).all()
    same = paired_comparison(a, b, **HOW)
    assert (same["mean_difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)
    np.testing.assert_array_equal(differences([0.3, np.nan, 1e6], [0.2, 1, 1e6 + 1]), [0.3 - 0.2, np.nan, -1])


def test_sizes_that_differ_by_rounding_share_a_rank():
    a, b = np.array([0.3, 0.1, 1.1, 0.9, 0.4]), np.array([0.2, 0.0, 1.0, 0.1, 0.5])
    assert len(set(np.abs(a - b))) > 2
    assert paired_comparison(a, b, **HOW)["p_value"] == pytest.approx(enumerate_signs(np.round(a - b, 9)))
    assert paired_comparison(1000 * a, 1000 * b, **HOW)["p_value"] == paired_comparison(a, b, **HOW)["p_value"]


def test_a_small_difference_is_no_rounding():
    b = np.linspace(0.3, 0.9, 12)
    assert paired_comparison(b + 1e-12, b, **HOW)["p_value"] == pytest.approx(2 / 2**12)
