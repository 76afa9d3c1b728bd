"""Intervals and tests against enumeration, examples worked by hand, and simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pdlib.evaluation.stats import differences, holm, mean_interval, paired_comparison

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


def test_the_seed_alone_decides():
    values = np.random.default_rng(0).normal(size=20)
    assert mean_interval(values, **HOW) == mean_interval(values, **HOW)
    assert mean_interval(values, **HOW) != mean_interval(values, **HOW | {"seed": 1})


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
