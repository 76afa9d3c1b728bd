"""Members of a subject in, tidy result rows out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pdlib.evaluation import agreement, metrics, records
from pdlib.inference.volumes import Ensemble, combine
from pdlib.study.run import Run


def ensemble_of(run: Run, members: np.ndarray) -> Ensemble:
    """Members [E, ...] in 0..1 combined as the profile says."""
    return combine(members, threshold=run.profile.ensemble.threshold, vote=run.profile.ensemble.vote)


def members_rows(run: Run, members: np.ndarray, subject: str, **about) -> pd.DataFrame:
    """Scores of an ensemble [E, Z, Y, X] of a subject, and the spread of its members, as result rows.

    about: the columns that tell these rows from others (see `records.score_rows`), method and split among them.
    """
    volume, ensemble = run.volume(subject), ensemble_of(run, members)
    scores = metrics.score_volume(run.labels(subject), ensemble.mask, volume.spacing_mm)
    if len(members) > 1:
        scores |= {
            "uncertainty": metrics.uncertainty(ensemble.variance, volume.brain),
            "relative_uncertainty": metrics.relative_uncertainty(ensemble.variance, volume.brain, volume.mask),
            "entropy": metrics.predictive_entropy(ensemble.mean, volume.brain),
        }
    return _score_rows(run, scores, members, subject, **about)


def agreement_rows(run: Run, members: np.ndarray, subject: str, bins: int, **about) -> pd.DataFrame:
    """What a subject's members [E, Z, Y, X] tell of the truth, as result rows; label 2 is left out.

    The distance to the raters and the Dice with them (NaN where there are none), the area under the risk-coverage curve
    inside the brain, with those of an oracle and of no order at all, and the calibration error of the mean, in `bins`
    bins.
    """
    volume = run.volume(subject)
    ensemble, inside, error = _errors(run, members, subject)
    counted, truth = ~volume.ignore, volume.mask == 1
    areas = agreement.area_under_risk_coverage(error, ensemble.variance[inside])
    scores = {f"risk_area{'' if key == 'risk' else '_' + key}": value for key, value in areas.items()}
    scores["calibration_error"] = agreement.expected_calibration_error(ensemble.mean[inside], truth[inside], bins)
    raters = np.array([(drawn == 1)[counted] for drawn in run.raters(subject).values()])
    votes = (members >= run.profile.ensemble.threshold)[:, counted]
    for key, score in (
        ("energy_distance", agreement.generalised_energy_distance),
        ("rater_dice", agreement.sample_rater_dice),
    ):
        scores[key] = score(votes, raters) if len(raters) else np.nan
    return _score_rows(run, scores, members, subject, **about)


def risk_curve(run: Run, members: np.ndarray, subject: str, set_aside: np.ndarray) -> pd.DataFrame:
    """Error rate of a subject's mask among the brain's other voxels, with shares of them set aside, those of most
    variance of members [E, Z, Y, X] first.

    Columns: set_aside; risk and oracle (see `agreement.risk_coverage`).
    """
    ensemble, inside, error = _errors(run, members, subject)
    curve = agreement.risk_coverage(error, ensemble.variance[inside], 1 - set_aside)
    return curve[["risk", "oracle"]].assign(set_aside=set_aside)


def ensemble_draws(run: Run, pool: np.ndarray, subject: str, sizes: Sequence[int], draws: int, **about) -> pd.DataFrame:
    """Dice of random ensembles drawn without replacement from a pool of members [P, Z, Y, X], as result rows.

    Column seed tells the draws apart: draw d takes the same members of every subject.
    """
    volume = run.volume(subject)
    parts = []
    for size in sizes:
        for draw in range(draws):
            chosen = np.random.default_rng((run.seed, size, draw)).choice(len(pool), size, replace=False)
            mask = ensemble_of(run, pool[chosen]).mask
            dice = metrics.score_volume(run.labels(subject), mask, volume.spacing_mm)["dice"]
            parts.append(_score_rows(run, {"dice": dice}, pool[chosen], subject, seed=draw, **about))
    return pd.concat(parts, ignore_index=True)


def _score_rows(run: Run, scores: dict[str, float], members: np.ndarray, subject: str, **about) -> pd.DataFrame:
    where = {"fold": run.fold, "seed": run.seed_of(subject), "subject": subject, "site": run.site(subject)}
    return records.score_rows(scores, **where | {"ensemble_size": len(members)} | about)


def _errors(run: Run, members: np.ndarray, subject: str) -> tuple[Ensemble, np.ndarray, np.ndarray]:
    """The ensemble of members [E, Z, Y, X], the brain's voxels that count (not label 2), and the errors in them."""
    volume, ensemble = run.volume(subject), ensemble_of(run, members)
    inside = volume.brain & ~volume.ignore
    return ensemble, inside, (ensemble.mask != (volume.mask == 1))[inside]
