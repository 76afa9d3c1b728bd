"""Uncertainty against raters and errors: values worked by hand, enumeration, and scipy's distances as an oracle."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pdlib.evaluation.agreement import (
    area_under_risk_coverage,
    expected_calibration_error,
    generalised_energy_distance,
    reliability_table,
    risk_coverage,
    sample_rater_dice,
)

NAN = np.nan


def masks(*rows):
    return np.array([[voxel == "#" for voxel in row] for row in rows])


def random_masks(rng, count, shape=(3, 5, 4)):
    return rng.random((count, *shape)) < rng.uniform(0.1, 0.6, (count, *[1] * len(shape)))


def test_energy_distance_by_hand():
    """Means over 2 x 2 pairs: across 1/2, 0, 1, 1; among the members 0, 1, 1, 0; among the raters 0, 1/2, 1/2, 0."""
    members, raters = masks("##..", "..#."), masks("#...", "##..")
    assert generalised_energy_distance(members, raters) == pytest.approx(2 * 5 / 8 - 1 / 2 - 1 / 4)
    # a single mask on each side is at no distance from itself: twice their own is left
    assert generalised_energy_distance(members[:1], raters[:1]) == pytest.approx(2 * 1 / 2)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_against_scipy(seed):
    rng = np.random.default_rng(seed)
    members, raters = random_masks(rng, 5), random_masks(rng, 3)
    flat_members, flat_raters = members.reshape(5, -1), raters.reshape(3, -1)
    across, within_members, within_raters = (
        cdist(a, b, "jaccard").mean()
        for a, b in ((flat_members, flat_raters), (flat_members, flat_members), (flat_raters, flat_raters))
    )
    found = generalised_energy_distance(members, raters)
    assert found == pytest.approx(2 * across - within_members - within_raters) and found > 0
    assert sample_rater_dice(members, raters) == pytest.approx(1 - cdist(flat_members, flat_raters, "dice").mean())


def test_the_same_masks_equally_often_are_no_distance_apart():
    sides = random_masks(np.random.default_rng(0), 3)
    assert generalised_energy_distance(sides, sides) == 0
    assert generalised_energy_distance(sides[[2, 0, 1, 1, 0, 2]], sides) == pytest.approx(0, abs=1e-12)
    assert generalised_energy_distance(sides[[0, 0, 1, 2]], sides) > 0.01


def test_empty_masks():
    """Two empty masks agree in the energy distance, and have no Dice."""
    empty, full, half = masks("....", "####", "##..")[:, None]
    assert generalised_energy_distance([*empty, *empty], empty) == 0
    assert generalised_energy_distance(empty, full) == 2
    assert np.isnan(sample_rater_dice(empty, empty))
    # pairs (empty, empty), (empty, full), (half, empty), (half, full): undefined, 0, 0, 2/3
    assert sample_rater_dice([*empty, *half], [*empty, *full]) == pytest.approx(2 / 9)


def every_order(uncertainty):
    """All orders of the voxels that never put a more uncertain one first."""
    for order in itertools.permutations(range(len(uncertainty))):
        if (np.diff(np.take(uncertainty, order)) >= 0).all():
            yield list(order)


@pytest.mark.parametrize(
    ("error", "uncertainty"),
    [
        ([0, 0, 1, 0, 1, 1], [0, 1, 2, 3, 4, 5]),
        ([1, 0, 0, 1, 0, 1, 0], [0, 0, 0, 2, 2, 1, 1]),
        ([0, 1, 0, 0, 1, 1, 0], [0.5, 0, 0, 0, 0, 7, 7]),
        ([1, 0, 0, 1, 0], [3, 3, 3, 3, 3]),
        ([0, 0, 0], [0, 1, 1]),
    ],
)
def test_risk_is_the_mean_over_all_orders_of_a_tie(error, uncertainty):
    error, n = np.array(error, bool), len(error)
    covered = np.arange(1, n + 1)
    risk = np.mean([np.cumsum(error[order]) / covered for order in every_order(uncertainty)], axis=0)
    best = np.array([min(sum(part) for part in itertools.combinations(error, k)) for k in covered]) / covered
    table = risk_coverage(error, uncertainty, covered / n)
    assert list(table) == ["coverage", "risk", "oracle", "random"]
    np.testing.assert_allclose(table, np.column_stack([covered / n, risk, best, np.full(n, error.mean())]), atol=1e-12)
    area = area_under_risk_coverage(error, uncertainty)
    assert area == pytest.approx({"risk": risk.mean(), "oracle": best.mean(), "random": error.mean()})


def test_area_by_hand():
    """Two errors of four: risks 0, 0, 1/3, 1/2 at best and 1, 1, 2/3, 1/2 at worst."""
    error = np.array([[False, True], [True, False]])
    assert area_under_risk_coverage(error, error * 0.3)["risk"] == pytest.approx(5 / 24)
    assert area_under_risk_coverage(error, error * 0.3)["oracle"] == pytest.approx(5 / 24)
    assert area_under_risk_coverage(error, error * -0.3)["risk"] == pytest.approx(19 / 24)


def test_a_coverage_may_cut_a_voxel():
    """2.5 of 4 voxels, the third an error: half of an error in two and a half."""
    table = risk_coverage([False, False, True, True], [0, 1, 2, 3], [0.625])
    assert table["risk"].item() == pytest.approx(0.5 / 2.5)


def test_calibration_by_hand():
    """Bins [0, .5) and [.5, 1]: means 0.2 and 0.8, lesion 1 of 2 and 2 of 3; the error weighs them 2 to 3."""
    probability, reference = np.array([0.1, 0.5, 0.3, 0.9, 1.0]), np.array([0, 0, 1, 1, 1], bool)
    table = reliability_table(probability, reference, 2)
    assert table.to_dict("list") == {
        "low": [0, 0.5],
        "high": [0.5, 1],
        "count": [2, 3],
        "probability": pytest.approx([0.2, 0.8]),
        "frequency": pytest.approx([1 / 2, 2 / 3]),
    }
    error = expected_calibration_error(probability, reference, 2)
    assert error == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)


@pytest.mark.parametrize("bins", [1, 7, 10, 100])
def test_calibration_against_a_loop(bins):
    """Probabilities k/bins lie on the bins' edges; each belongs to the bin that it opens, 1 to the last."""
    rng = np.random.default_rng(bins)
    steps = rng.integers(0, bins + 1, (4, 30))
    reference = rng.random(steps.shape) < 0.4
    expected = 0
    for k in range(bins):
        inside = (steps == k) | ((k == bins - 1) & (steps == bins))
        if inside.any():
            expected += inside.sum() * abs(reference[inside].mean() - steps[inside].mean() / bins) / steps.size
    assert expected_calibration_error(steps / bins, reference, bins) == pytest.approx(expected)


def test_an_empty_bin_is_shown_and_not_counted():
    probability, reference = np.full(10, 0.8), np.arange(10) < 5
    table = reliability_table(probability, reference, 4)
    np.testing.assert_array_equal(table["count"], [0, 0, 0, 10])
    np.testing.assert_array_equal(table["frequency"], [NAN, NAN, NAN, 0.5])
    assert table["probability"].isna().tolist() == [True, True, True, False]
    assert expected_calibration_error(probability, reference, 4) == pytest.approx(0.3)


YES, HALF = np.ones(4, bool), np.full(4, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generalised_energy_distance(masks("#.").astype(np.uint8), masks("#.")), "members: holds uint8"),
        (lambda: sample_rater_dice(masks("#."), masks("#.") * 1.0), "raters: holds float64"),
        (lambda: sample_rater_dice(masks("#."), masks("#..")), "raters: masks of shape"),
        (lambda: generalised_energy_distance(YES, YES), r"members: shape \(4,\)"),
        (lambda: generalised_energy_distance(masks("#."), masks("#.")[:0]), r"raters: shape \(0, 2\)"),
        (lambda: risk_coverage(HALF, HALF, [1]), "error: holds float64"),
        (lambda: risk_coverage(YES, HALF[:3], [1]), "uncertainty: shape"),
        (lambda: risk_coverage(YES, HALF * NAN, [1]), "uncertainty: holds NaN"),
        (lambda: risk_coverage(YES, HALF.astype(str), [1]), "uncertainty: holds .* not numbers"),
        (lambda: risk_coverage(YES, HALF, [0, 1]), "coverages"),
        (lambda: risk_coverage(YES, HALF, [1.01]), "coverages"),
        (lambda: risk_coverage(YES, HALF, 1), "coverages"),
        (lambda: area_under_risk_coverage(YES[:0], HALF[:0]), "uncertainty: no voxel"),
        (lambda: expected_calibration_error(HALF + 1, YES, 5), "probability: not in"),
        (lambda: expected_calibration_error(HALF, YES * 1, 5), "reference: holds int64"),
        (lambda: expected_calibration_error(HALF, YES[:3], 5), "reference: shape"),
        (lambda: expected_calibration_error(HALF[:0], YES[:0], 5), "reference: no voxel"),
        (lambda: expected_calibration_error(HALF, YES, 0), "bins: 0"),
        (lambda: expected_calibration_error(HALF, YES, 2.5), "bins: 2.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
