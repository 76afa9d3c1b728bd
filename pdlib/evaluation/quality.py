"""How good is a mask that nobody has checked? Its Dice, predicted from how far an ensemble's members agree.

`agreement` and `image_statistics` make the features of a subject, `fit` a `Quality` of subjects whose Dice is known. It
is a small JSON file beside the weights, which predicts the Dice of a new subject's mask, and says where that subject is
unlike those it has seen.
"""

import json
from collections.abc import Container, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import ndimage
from scipy.special import expit, logit

from pdlib.evaluation.metrics import CONNECTED_26
from pdlib.paths import write_whole

FILE = "quality.json"  # beside the weights
AGREEMENT = {  # what the Dice is predicted from, in words
    "pair_dice": "the mean Dice between two members",
    "expected_dice": "the Dice that the mean probabilities expect",
    "volume_spread": "the spread of the members' volumes, in parts of their mean",
    "log10_ml": "the lesion volume in ml",
    "found_by_all": "the share of lesions that all members mark",
    "mean_variance": "the members' variance inside the mask",
}
QUANTILES = (1, 5, 25, 50, 75, 95, 99)
IMAGE = {  # what else tells an image that is unlike those seen
    **{f"flair_q{q:02d}": f"the {q}% quantile of the normalised FLAIR" for q in QUANTILES},
    "brain_ml": "the brain's volume in ml",
    "slice_mm": "the distance of slices in mm",
}
EDGE = 0.02  # a Dice nearer to 0 or 1 counts as this far away: a logit is infinite there
PENALTIES = np.logspace(-3, 3, 7)  # of the ridge; cross-validation chooses among them
CONSTANT = 1e-6  # of the largest value: a spread that is no more is rounding


def agreement(members: NDArray, mask: NDArray, *, threshold: float, voxel_ml: float) -> dict[str, float]:
    """The features `AGREEMENT` of an ensemble: members [E, Z, Y, X] in 0..1, and mask [Z, Y, X], what they come to.

    Lesions are the mask's 26-connected components. Two empty members agree: their Dice is 1. The expected Dice is that
    of the mask when each voxel is a lesion with the mean probability p, by itself: 2 sum(p in mask) / (|mask| + sum p).
    NaN for what is not defined: all of an empty mask, and what a single member cannot disagree about.
    """
    mask = np.asarray(mask) != 0
    marked = np.asarray(members) >= threshold
    if not mask.any():
        return dict.fromkeys(AGREEMENT, np.nan)
    inside = members[:, mask].astype(float)  # [E, voxels of the mask]
    everywhere = members.sum(dtype=float) / len(members)
    volumes = np.count_nonzero(marked, axis=(1, 2, 3))
    several = len(members) > 1
    return {
        "pair_dice": _pair_dice(marked, volumes) if several else np.nan,
        "expected_dice": float(2 * inside.mean(0).sum() / (mask.sum() + everywhere)),
        "volume_spread": float(volumes.std() / volumes.mean()) if several and volumes.any() else np.nan,
        "log10_ml": float(np.log10(mask.sum() * voxel_ml)),
        "found_by_all": _found_by_all(marked, mask),
        "mean_variance": float(inside.var(0).mean()) if several else np.nan,
    }


def image_statistics(flair: NDArray, brain: NDArray, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """The statistics `IMAGE` of a normalised FLAIR [Z, Y, X] with its brain [Z, Y, X] bool; spacing_mm is (z, y, x)."""
    quantiles = np.percentile(flair[brain], QUANTILES)
    values = [*quantiles, np.count_nonzero(brain) * np.prod(spacing_mm) / 1000, spacing_mm[0]]
    return {name: float(value) for name, value in zip(IMAGE, values, strict=True)}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Origin(_Part):
    """What ensembles a quality is about: of another kind, their agreement means something else.

    networks holds the SHA-256 of each weights file by the name of its training; phantom: trained on simulated heads.
    """

    networks: dict[str, str]
    phantom: bool
    members: int = Field(ge=1)
    calls: int = Field(ge=1)
    threshold: float

    def differences(self, other: "Origin") -> tuple[str, ...]:
        """In what another kind of ensemble differs, a few words each; nothing where it is of the same kind."""
        mine, its = self.model_dump(exclude={"networks"}), other.model_dump(exclude={"networks"})
        changed = [f"{name} {its[name]}, not {value}" for name, value in mine.items() if its[name] != value]
        return (*(["other networks"] if other.networks != self.networks else []), *changed)


class Term(_Part):
    """One feature's part in the logit of the Dice: coefficient * (value - mean) / scale."""

    mean: float
    scale: float = Field(gt=0)
    coefficient: float


class Seen(_Part):
    """The range of a feature over all subjects seen, and their standard deviation (1 where nothing varies)."""

    low: float
    high: float
    scale: float = Field(gt=0)

    def excess(self, value: float) -> float:
        """How far beyond the range a value lies, in standard deviations; 0 within the range and for NaN."""
        return 0.0 if np.isnan(value) else max(self.low - value, value - self.high, 0.0) / self.scale


class HeldOut(_Part):
    """How well subjects were predicted that were left out of the fit, each once.

    correlation: Pearson's, between predicted and true Dice, with its bootstrap interval over subjects; None where it is
    not defined. mean_error and constant_error: mean absolute errors of the prediction, and of the other subjects' mean
    Dice in its place.
    """

    subjects: int
    rows: int
    folds: int
    correlation: float | None
    low: float | None
    high: float | None
    confidence: float
    mean_error: float
    constant_error: float


class Quality(_Part):
    """A fitted quality: what `fit` returns and `quality.json` holds.

    margin: how far beyond the range of all others, in their standard deviations, the strangest of the n subjects seen
    lies. So about one in n + 1 subjects like them is called strange, however many features there are.
    """

    format: Literal[1] = 1
    origin: Origin
    intercept: float
    terms: dict[str, Term]
    seen: dict[str, Seen]
    margin: float = Field(ge=0)
    held_out: HeldOut

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := [name for name in self.terms if name not in self.seen]:
            raise ValueError(f"{missing[0]} is a term without a range")
        return self

    def predict(self, features: Mapping[str, float]) -> float:
        """The predicted Dice, in 0..1; NaN where a feature is. A value beyond the range seen counts as the range's end.

        ValueError, naming it, for a feature that is missing.
        """
        _require("features", features, self.terms)
        return float(_predicted(self.intercept, self.terms, self.seen, features))

    def outside(self, features: Mapping[str, float]) -> tuple[str, ...]:
        """Why not to trust a mask: what lies outside of what was trained on, a sentence each; nothing where nothing is.

        features: those of `seen`, or some of them; one that is NaN tells nothing. ValueError where there is none.
        """
        known = {name: seen for name, seen in self.seen.items() if name in features}
        if not known:
            raise ValueError(f"features: none of those that the quality knows ({', '.join(self.seen)})")
        strange = {name: seen for name, seen in known.items() if seen.excess(features[name]) > self.margin}
        return tuple(_sentence(name, features[name], seen) for name, seen in strange.items())

    def save(self, path: Path | str) -> None:
        """Write it as JSON, whole or not at all; OSError names the file."""
        write_whole(Path(path), json.dumps(self.model_dump(mode="json"), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; ValueError naming the file for anything else."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
            raise ValueError(f"{path}: not a quality score ({faults.removeprefix(': ')})") from None


def fit(table: pd.DataFrame, origin: Origin, *, folds: int, resamples: int, confidence: float, seed: int) -> Quality:
    """Fit a quality to subjects whose Dice is known: a ridge regression of the Dice's logit on `AGREEMENT`.

    table: a row for each subject, or several (one a training, say), with the columns subject, dice, those of
    `AGREEMENT` and of `IMAGE`. A row where the Dice or a feature is NaN, as for an empty mask, counts for the ranges
    alone. Cross-validation over subjects chooses the penalty. Held-out predictions come from fits that saw nothing of
    the subject, neither for penalty nor ranges. confidence and resamples are of the bootstrap over subjects.
    ValueError for a missing column, for infinity, and for fewer subjects with numbers than two for each fold.
    """
    features = [*AGREEMENT, *IMAGE]
    _require("table", table, ("subject", "dice", *features))
    numbers = table[["dice", *features]].astype(float)
    if np.isinf(numbers).any(axis=None):
        raise ValueError(f"table: column {np.isinf(numbers).any().idxmax()} holds infinity")
    if (known := numbers.groupby(table.subject).count().gt(0).sum()).min() < 2:
        raise ValueError(f"table: column {known.idxmin()} holds numbers of fewer than two subjects")
    rows = table.dropna(subset=["dice", *AGREEMENT])
    if (subjects := rows.subject.nunique()) < 2 * folds:
        raise ValueError(f"table: {subjects} subjects with a Dice and all features, too few for {folds} folds")
    intercept, terms = _ridge(rows, folds)
    return Quality(
        origin=origin,
        intercept=intercept,
        terms=terms,
        seen=_ranges(numbers[features]),
        margin=_margin(numbers[features], table.subject),
        held_out=_held_out(rows, folds, resamples, confidence, np.random.default_rng(seed)),
    )


def _pair_dice(marked: NDArray, volumes: NDArray) -> float:
    """Mean Dice over pairs of members marked [E, Z, Y, X] bool, of volumes [E] voxels."""
    found = []
    for a, b in combinations(range(len(marked)), 2):
        total = volumes[a] + volumes[b]
        found.append(2 * np.count_nonzero(marked[a] & marked[b]) / total if total else 1.0)
    return float(np.mean(found))


def _found_by_all(marked: NDArray, mask: NDArray) -> float:
    lesions, count = ndimage.label(mask, CONNECTED_26)
    hits = [np.bincount(lesions[member], minlength=count + 1)[1:] > 0 for member in marked]  # [E, lesions]
    return float(np.all(hits, axis=0).mean())


def _sentence(name: str, value: float, seen: Seen) -> str:
    unlogged = name.startswith("log10_")
    shown, low, high = (10**one if unlogged else one for one in (value, seen.low, seen.high))
    title = (AGREEMENT | IMAGE).get(name, name)
    return f"{title[0].upper()}{title[1:]} is {shown:.3g}; in training it was {low:.3g} to {high:.3g}"


def _ridge(rows: pd.DataFrame, folds: int) -> tuple[float, dict[str, Term]]:
    """Intercept and terms of the ridge, with the penalty that folds of these subjects choose."""
    from sklearn.linear_model import RidgeCV  # a second to import, and only a fit needs it
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    features = scaler.fit_transform(rows[[*AGREEMENT]].to_numpy(float))
    target = logit(rows.dice.to_numpy(float).clip(EDGE, 1 - EDGE))
    parts = list(GroupKFold(folds).split(features, target, rows.subject))
    ridge = RidgeCV(alphas=PENALTIES, cv=parts).fit(features, target)
    numbers = zip(AGREEMENT, scaler.mean_, scaler.scale_, ridge.coef_, strict=True)
    return float(ridge.intercept_), {name: Term(mean=m, scale=s, coefficient=c) for name, m, s, c in numbers}


def _predicted(
    intercept: float, terms: Mapping[str, Term], seen: Mapping[str, Seen], features: Mapping[str, ArrayLike]
) -> NDArray:
    """Dice of one subject, or of each row of a table."""
    total = intercept
    for name, term in terms.items():
        value = np.clip(features[name], seen[name].low, seen[name].high)
        total = total + term.coefficient * (value - term.mean) / term.scale
    return expit(total)


def _ranges(features: pd.DataFrame) -> dict[str, Seen]:
    spread, rounding = features.std(ddof=0), CONSTANT * features.abs().max()
    ends = pd.DataFrame({"low": features.min(), "high": features.max(), "scale": spread.where(spread > rounding, 1.0)})
    return {name: Seen(**row) for name, row in ends.iterrows()}


def _margin(features: pd.DataFrame, subjects: pd.Series) -> float:
    """The largest excess of a subject beyond the range of all others, over subjects and features."""
    excess = []
    for subject, own in features.groupby(subjects):
        others = _ranges(features[subjects != subject])
        excess += [others[name].excess(value) for name in own for value in own[name]]
    return max(excess)


def _held_out(rows: pd.DataFrame, folds: int, resamples: int, confidence: float, rng: np.random.Generator) -> HeldOut:
    from sklearn.model_selection import GroupKFold

    predicted, constant = np.empty(len(rows)), np.empty(len(rows))
    for train, test in GroupKFold(folds).split(rows, groups=rows.subject):
        others = rows.iloc[train]
        intercept, terms = _ridge(others, folds)
        predicted[test] = _predicted(intercept, terms, _ranges(others[[*AGREEMENT]]), rows.iloc[test])
        constant[test] = others.dice.mean()
    dice = rows.dice.to_numpy(float)
    places = list(rows.groupby("subject").indices.values())  # of each subject's rows
    drawn = [np.concatenate([places[k] for k in rng.integers(len(places), size=len(places))]) for _ in range(resamples)]
    around = [one for some in drawn if not np.isnan(one := _correlation(predicted[some], dice[some]))] or [np.nan]
    low, high = np.quantile(around, [(1 - confidence) / 2, (1 + confidence) / 2])
    numbers = {"correlation": _correlation(predicted, dice), "low": low, "high": high}
    return HeldOut(
        subjects=len(places),
        rows=len(rows),
        folds=folds,
        confidence=confidence,
        mean_error=np.abs(predicted - dice).mean(),
        constant_error=np.abs(constant - dice).mean(),
        **{name: None if np.isnan(value) else float(value) for name, value in numbers.items()},
    )


def _correlation(a: NDArray, b: NDArray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def _require(what: str, given: Container[str], names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{what}: without {', '.join(missing)}")
