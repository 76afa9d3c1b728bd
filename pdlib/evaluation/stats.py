"""Intervals and tests over subjects. Every comparison is paired; an undefined score is counted, never lost."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ROUNDING = 16 * np.finfo(float).eps  # of a score that a handful of operations made, in units of itself or of 1


def mean_interval(
    values: ArrayLike, *, resamples: int, confidence: float, seed: int, groups: ArrayLike | None = None
) -> dict[str, float]:
    """The mean over subjects and its bootstrap percentile interval (Efron 1979), hierarchical where there are groups.

    values [N], one a subject; NaN counts as undefined. groups [N]: the training that segmented each subject; None: one
    training did. The bootstrap draws groups with replacement, then subjects within each group drawn (Davison and
    Hinkley 1997, 3.8), so that the interval is about the method and not about these trainings. Keys: n, n_undefined,
    mean, low, high. With fewer than two defined values the interval is NaN.

    How often a 95 % interval covers the true mean, by simulation. One group of normal values: 89 % for N = 12, 93 % for
    N = 60. Three groups of 66: 98 % where trainings do not differ (the spread of subjects then counts within groups and
    once more between them), 95 % where trainings deviate by a tenth of what subjects do, 85 % at a quarter, 75 % in the
    limit, where the range of three numbers is the whole interval: 1 - 2/2^3. Two groups: 50 % in the limit, and of what
    trainings add to the variance of a mean the resamples show half (k groups: (k - 1)/k of it). So with a few groups it
    is too short as soon as trainings matter: a verdict needs the test beside it, and remains one about these few.
    ValueError: values or groups that are not one-dimensional or do not pair, or values that are infinite.
    """
    values = _vector("values", values)
    names = np.zeros(values.size) if groups is None else np.asarray(groups)
    if names.shape != values.shape:
        raise ValueError(f"groups: shape {names.shape} does not name a group for each of {values.size} values")
    known = ~np.isnan(values)
    defined = values[known]
    low, high = _bootstrap(defined, names[known], resamples, confidence, seed)
    mean = float(defined.mean()) if defined.size else np.nan
    return {"n": defined.size, "n_undefined": values.size - defined.size, "mean": mean, "low": low, "high": high}


def paired_comparison(
    values_a: ArrayLike,
    values_b: ArrayLike,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    groups: ArrayLike | None = None,
) -> dict[str, float]:
    """Mean of a - b over subjects, its bootstrap interval, and the two-sided Wilcoxon signed-rank p-value.

    values_a, values_b [N], the same subject at the same place; groups [N] as in `mean_interval`. A pair with a NaN on
    either side is undefined: left out and counted. Keys: n, n_undefined, mean_difference, median_difference, low, high,
    p_value. Equal everywhere: interval [0, 0], p 1; with fewer than two defined pairs interval and p are NaN. Equal
    pairs do not enter the ranks (Wilcoxon 1945). What differs by rounding is equal: `differences`.

    The test is over subjects, given these trainings: no rank test of three groups could ever reject (its smallest p is
    1/4). What another training would give is in the interval alone, so a verdict has to need both.
    ValueError: arrays that are not one-dimensional, of different length, or infinite.
    """
    a, b = _vector("values_a", values_a), _vector("values_b", values_b)
    if a.size != b.size:
        raise ValueError(f"values_b: {b.size} values do not pair with {a.size}")
    difference = differences(a, b)
    interval = mean_interval(difference, resamples=resamples, confidence=confidence, seed=seed, groups=groups)
    known = difference[~np.isnan(difference)]
    return {
        "n": interval["n"],
        "n_undefined": interval["n_undefined"],
        "mean_difference": interval["mean"],
        "median_difference": float(np.median(known)) if known.size else np.nan,
        "low": interval["low"],
        "high": interval["high"],
        "p_value": _wilcoxon(known, ROUNDING * np.nanmax(np.abs([a, b]), initial=1)),
    }


def signed_rank_sum(difference: ArrayLike) -> float:
    """Wilcoxon's statistic over subjects [N], W+ less W-: positive where the test leans to more. NaN is left out.

    It can differ in sign from the mean, which few subjects can carry; a p-value alone does not tell.
    """
    values = _vector("difference", difference)
    known = values[~np.isnan(values)]
    ranked = _shared_sizes(known[known != 0], ROUNDING * np.max(np.abs(known), initial=1))
    return float(np.sign(ranked) @ stats.rankdata(np.abs(ranked)))


def differences(values_a: ArrayLike, values_b: ArrayLike) -> NDArray[np.float64]:
    """a - b [N], and exactly 0 where that is below rounding: scores are computed, so 0.1 + 0.2 may stand for 0.3."""
    a, b = np.asarray(values_a, float), np.asarray(values_b, float)
    difference = a - b
    return np.where(np.abs(difference) <= ROUNDING * np.maximum(1, np.maximum(np.abs(a), np.abs(b))), 0.0, difference)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values [N] for N tests at once (Holm 1979). A NaN is no test: it stays NaN and is not counted in N."""
    p = _vector("p_values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p_values: a probability lies in [0, 1]")
    tests = np.flatnonzero(~np.isnan(p))
    ranked = tests[np.argsort(p[tests], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[ranked] = np.minimum(np.maximum.accumulate(p[ranked] * np.arange(ranked.size, 0, -1)), 1)
    return adjusted


def detectable_difference(spread: float, n: float, *, power: float, confidence: float) -> float:
    """The smallest mean difference that n pairs show with a power, by the normal approximation, in one two-sided test.

    spread: the standard deviation (ddof 1) of the differences, whose unit the result has. For subjects that k trainings
    share, n is n / `design_effect`.
    """
    return (stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)) * spread / np.sqrt(n)


def subjects_needed(spread: float, effect: float, *, power: float, confidence: float) -> float:
    """The number of pairs that shows an effect: `detectable_difference` solved for n, a whole number of subjects.

    Infinite for no effect, NaN where effect or spread is.
    """
    if effect == 0:
        return np.inf
    return float(np.ceil((detectable_difference(spread, 1, power=power, confidence=confidence) / effect) ** 2))


def design_effect(subjects: int, groups: int, share: float) -> float:
    """By how much the variance of a mean grows when subjects share trainings (Kish 1965): 1 + (subjects a group - 1)
    share, where share is the part of the variance that lies between groups. One group shows no such part: 1.
    """
    return 1 + (subjects / groups - 1) * share if groups > 1 else 1.0


def _bootstrap(values: NDArray, groups: NDArray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    if values.size < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    parts = [values[groups == name] for name in dict.fromkeys(groups.tolist())]
    if len(parts) > 1:
        return _percentiles(_hierarchical_means(parts, resamples, rng), confidence)
    drawn = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=confidence, method="percentile", rng=rng
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _hierarchical_means(parts: list[NDArray], resamples: int, rng: np.random.Generator) -> NDArray:
    """Means of resamples [R]: as many groups as there are, drawn with replacement, and in each its subjects anew."""
    drawn = rng.integers(len(parts), size=(resamples, len(parts)))
    sums = np.empty(drawn.shape)
    for k, part in enumerate(parts):
        here = drawn == k
        sums[here] = part[rng.integers(part.size, size=(here.sum(), part.size))].sum(axis=1)
    sizes = np.array([part.size for part in parts])[drawn]
    return sums.sum(axis=1) / sizes.sum(axis=1)


def _percentiles(means: NDArray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _wilcoxon(difference: NDArray, rounding: float) -> float:
    """The p-value; differences whose sizes lie within `rounding` of each other share a rank."""
    if difference.size < 2:
        return np.nan
    nonzero = difference[difference != 0]
    if not nonzero.size:
        return 1.0
    return float(stats.wilcoxon(_shared_sizes(nonzero, rounding)).pvalue)


def _shared_sizes(nonzero: NDArray, rounding: float) -> NDArray:
    """Differences that have one size where theirs lie within `rounding` of each other."""
    sizes = np.sort(np.abs(nonzero))
    firsts = sizes[np.diff(sizes, prepend=-np.inf) > rounding]  # the smallest of each run of equal sizes
    return np.copysign(firsts[np.searchsorted(firsts, np.abs(nonzero), side="right") - 1], nonzero)


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(values, float)
    if vector.ndim != 1:
        raise ValueError(f"{name}: shape {vector.shape} is not one value a subject")
    if np.isinf(vector).any():
        raise ValueError(f"{name}: holds infinity")
    return vector
