"""Does the uncertainty mean something: an ensemble beside several raters, its variance beside its errors."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


def generalised_energy_distance(members: ArrayLike, raters: ArrayLike) -> float:
    """How far the members' masks are from the raters', as two distributions (Kohl et al. 2018, Eq. 5's estimator).

    2 E d(S, Y) - E d(S, S') - E d(Y, Y') for members S [E, ...] bool and raters Y [R, ...] bool of one shape, where
    d = 1 - IoU and two empty masks have d = 0. Each mean is over all pairs, those of a mask with itself included: the
    V-statistic. So it is never below 0, and 0 where both sides hold the same masks equally often; but the fewer masks,
    the less diverse they look (a single one: not at all), so compare ensembles of one size.
    ValueError: masks that are not boolean, hold no mask, or are of two shapes.
    """
    members, raters = _mask_pair(members, raters)
    across, within_members, within_raters = (
        _distances(*pair).mean() for pair in ((members, raters), (members, members), (raters, raters))
    )
    return float(2 * across - within_members - within_raters)


def sample_rater_dice(members: ArrayLike, raters: ArrayLike) -> float:
    """Mean Dice over all pairs of a member of members [E, ...] bool and a rater of raters [R, ...] bool.

    A pair of empty masks has no Dice and is left out; NaN where all pairs are such.
    ValueError: masks that are not boolean, hold no mask, or are of two shapes.
    """
    both, sizes = _overlaps(*_mask_pair(members, raters))
    defined = sizes > 0
    return float((2 * both[defined] / sizes[defined]).mean()) if defined.any() else np.nan


def risk_coverage(error: ArrayLike, uncertainty: ArrayLike, coverages: ArrayLike) -> pd.DataFrame:
    """The error rate among the least uncertain voxels (El-Yaniv & Wiener 2010), for each covered fraction of them.

    error, of any shape, is bool, uncertainty of the same shape a finite number; coverages [C] are fractions in (0, 1].
    Columns: coverage; risk, where uncertainty orders the voxels; oracle, where all errors come last; random, where
    nothing is known of them. Equally uncertain voxels come in random order: the risk is its expected value, in closed
    form. A voxel that a coverage cuts counts by its covered part.
    ValueError: other dtypes, shapes or ranges, or no voxel.
    """
    error, uncertainty = _error_pair(error, uncertainty)
    coverages = _numbers("coverages", coverages)
    if coverages.ndim != 1 or not ((coverages > 0) & (coverages <= 1)).all():
        raise ValueError("coverages: not a list of fractions in (0, 1]")
    risks = _risks(error, uncertainty, coverages * error.size)
    return pd.DataFrame({"coverage": coverages, **risks})


def area_under_risk_coverage(error: ArrayLike, uncertainty: ArrayLike) -> dict[str, float]:
    """The mean of `risk_coverage` over all coverages of 1, 2, ... voxels (Geifman et al. 2019); smaller is better.

    error and uncertainty as there. Keys: risk, and what the same number of errors makes of it at best (oracle) and
    without knowledge (random, the error rate). Errors of another mask move all three, so compare where risk lies
    between the two others. ValueError as there.
    """
    error, uncertainty = _error_pair(error, uncertainty)
    risks = _risks(error, uncertainty, np.arange(1, error.size + 1))
    return {name: float(risk.mean()) for name, risk in risks.items()}


def reliability_table(probability: ArrayLike, reference: ArrayLike, bins: int) -> pd.DataFrame:
    """How often a voxel is lesion, by the probability it was given: the rows of a reliability diagram.

    probability is in [0, 1], reference of the same shape is bool, `bins` counts bins of equal width: [low, high), the
    last one with its end. Columns: low, high, count, probability (the bin's mean), frequency (the fraction of lesion);
    both are NaN where count is 0. The event is "lesion", not "the decision is right": background counts like lesion.
    ValueError: other dtypes, shapes or ranges, no voxel, or no bin.
    """
    probability, reference = _numbers("probability", probability), _booleans("reference", reference)
    _require_same_voxels("reference", reference, probability)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability: not in [0, 1]")
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise ValueError(f"bins: {bins} is not a whole number of 1 or more")
    edges = np.arange(bins + 1) / bins
    place = np.digitize(probability.ravel(), edges[1:-1])
    count = np.bincount(place, minlength=bins)
    occupied = np.where(count > 0, count, np.nan)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "probability": np.bincount(place, probability.ravel(), bins) / occupied,
            "frequency": np.bincount(place, reference.ravel(), bins) / occupied,
        }
    )


def expected_calibration_error(probability: ArrayLike, reference: ArrayLike, bins: int) -> float:
    """Mean of |frequency - probability| over the bins of `reliability_table`, weighted by count (Naeini et al. 2015).

    Nearly all voxels are sure background: over a whole brain they hide the rest, so say which voxels were counted.
    ValueError as there.
    """
    table = reliability_table(probability, reference, bins)
    table = table[table["count"] > 0]
    return float(np.average((table["frequency"] - table["probability"]).abs(), weights=table["count"]))


def _overlaps(masks_a: NDArray, masks_b: NDArray) -> tuple[NDArray, NDArray]:
    """Of all pairs: how many voxels are in both masks, and the two sizes summed; [A, B] each."""
    both = np.array([[np.count_nonzero(a & b) for b in masks_b] for a in masks_a])
    sizes_a, sizes_b = (np.array([np.count_nonzero(mask) for mask in masks]) for masks in (masks_a, masks_b))
    return both, sizes_a[:, None] + sizes_b


def _distances(masks_a: NDArray, masks_b: NDArray) -> NDArray:
    """1 - IoU of all pairs [A, B]; 0 for two empty masks."""
    both, sizes = _overlaps(masks_a, masks_b)
    union = sizes - both
    return 1 - np.divide(both, union, out=np.ones(union.shape), where=union > 0)


def _risks(error: NDArray, uncertainty: NDArray, covered: NDArray) -> dict[str, NDArray]:
    """The expected error rate among the first `covered` voxels in three orders; an order of equals is random."""
    orders = {"risk": uncertainty, "oracle": error, "random": np.zeros(error.shape)}
    return {name: _expected_errors(error, order, covered) / covered for name, order in orders.items()}


def _expected_errors(error: NDArray, order: NDArray, covered: NDArray) -> NDArray:
    """Within a tie the expected number of errors rises in a straight line from the tie's first voxel to its last."""
    _, tie, size = np.unique(order, return_inverse=True, return_counts=True)
    ends, errors = np.cumsum(size), np.cumsum(np.bincount(tie, error))
    return np.interp(covered, np.append(0, ends), np.append(0, errors))


def _mask_pair(members: ArrayLike, raters: ArrayLike) -> tuple[NDArray, NDArray]:
    members, raters = _booleans("members", members), _booleans("raters", raters)
    for name, masks in (("members", members), ("raters", raters)):
        if masks.ndim < 2 or len(masks) == 0:
            raise ValueError(f"{name}: shape {masks.shape} is not one mask or more, stacked along the first axis")
    if members.shape[1:] != raters.shape[1:]:
        raise ValueError(f"raters: masks of shape {raters.shape[1:]} are not the members' {members.shape[1:]}")
    return members, raters


def _error_pair(error: ArrayLike, uncertainty: ArrayLike) -> tuple[NDArray, NDArray]:
    error, uncertainty = _booleans("error", error), _numbers("uncertainty", uncertainty)
    _require_same_voxels("uncertainty", uncertainty, error)
    return error.ravel(), uncertainty.ravel()


def _require_same_voxels(name: str, array: NDArray, other: NDArray) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name}: shape {array.shape} does not pair with {other.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: no voxel")


def _booleans(name: str, values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype != bool:
        raise ValueError(f"{name}: holds {array.dtype}, not booleans")
    return array


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: holds {array.dtype}, not numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    return array.astype(float)
