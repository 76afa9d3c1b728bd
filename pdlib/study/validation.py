"""What trainings are watched by: Dice of validation subjects, a generator's states beside diffused references."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import nn

from pdlib.diffusion.formulas import q_sample
from pdlib.diffusion.sampler import Diffusion, Sampler
from pdlib.evaluation import metrics
from pdlib.kernels import noise
from pdlib.study.members import drawn_once, draws, sampled
from pdlib.study.run import Run
from pdlib.training.weights import Weights


def segmenter_dice(run: Run, network: nn.Module) -> dict[str, float]:
    """Mean volume Dice of a segmenter on the validation subjects, for its training curve."""
    subjects = run.subjects("validation")
    return {"dice": mean_dice(run, subjects, (drawn_once(run, network, subject) for subject in subjects))}


def sampled_dice(
    run: Run, sampler: Sampler, subjects: Sequence[str], starts: Callable[[str], np.ndarray | None] | None = None
) -> dict[str, float]:
    """Mean volume Dice of one sampled member a subject, for the training curves of the networks that a chain uses.

    starts gives what the chain of a subject starts from, [Z, Y, X]; without it the chain starts from nothing.
    """
    members = (sampled(run, sampler, subject, starts(subject) if starts else None) for subject in subjects)
    return {"dice": mean_dice(run, subjects, members)}


def mean_dice(run: Run, subjects: Sequence[str], predictions: Iterable[np.ndarray]) -> float:
    """Mean volume Dice of predictions [Z, Y, X] in 0..1; a subject without lesion and prediction has none."""
    scores = []
    for subject, prediction in zip(subjects, predictions, strict=True):
        mask = prediction >= run.profile.ensemble.threshold
        scores.append(metrics.score_volume(run.labels(subject), mask, run.volume(subject).spacing_mm)["dice"])
    return float(np.nanmean(scores))


def state_overlap(run: Run, states: Mapping[str, np.ndarray], background: float, lesion: float) -> dict[str, float]:
    """How far a generator's states [Z, Y, X] of subjects hold the reference's lesions, for its training curve.

    background, lesion: means of a state where the mask is 0 and 1. "in_lesions": the mean in lesions. "overlap": the
    soft Dice of the mask in the states, over all subjects at once; in these sums the noise is averaged away.
    """
    inside, drawn = [], 0.0
    for subject, state in states.items():
        volume, mask = run.volume(subject), (state.astype(np.float64) - background) / (lesion - background)
        inside.append(mask[volume.mask == 1])
        drawn += mask[volume.brain].sum()
    within = np.concatenate(inside)
    mean = background + (lesion - background) * within.mean()
    return {"in_lesions": float(mean), "overlap": float(2 * within.sum() / (drawn + len(within)))}


def state_statistics(
    run: Run, weights: Weights, diffusion: Diffusion, t_prime: int, subjects: Sequence[str]
) -> pd.DataFrame:
    """A generator's states beside diffused masks at the same index, inside the brains of subjects.

    Rows: "diffused", the reference; "rater", masks of other raters where every subject has some, in turn for one draw
    and the other: about what draws that know the image alone can come to; "drawn", the generator's. Columns: the mean
    in and outside lesions of the reference, the deviation outside them, and that between two draws of the same subject
    outside and in lesions.
    """
    found = {"diffused": [], "rater": [], "drawn": []}
    for subject in subjects:
        volume, others = run.volume(subject), [labels == 1 for labels in run.raters(subject).values()]
        streams = noise.subject_streams(run.seed, subject, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        fresh = noise.normal(streams, noise.START, *volume.mask.shape)
        masks = {"diffused": [volume.mask] * 2} | ({"rater": [others[0], others[-1]]} if others else {})
        states = {"drawn": draws(run, weights, subject, 2).values}
        for name, pair in masks.items():
            start = diffusion.codec.encode(torch.from_numpy(np.stack(pair).astype(np.float32)))  # [2, Z, Y, X]
            states[name] = q_sample(start, t_prime - 1, fresh, diffusion.schedule).numpy()
        for name, pair in states.items():
            found[name].append(pair[:, volume.brain].astype(np.float64))
    lesion = np.concatenate([run.volume(subject).mask[run.volume(subject).brain] == 1 for subject in subjects])
    whole = {name: np.concatenate(parts, axis=1) for name, parts in found.items() if len(parts) == len(subjects)}
    return pd.DataFrame({name: _pair_statistics(pair, lesion) for name, pair in whole.items()}).T


def _pair_statistics(pair: np.ndarray, lesion: np.ndarray) -> dict[str, float]:
    """Of two draws [2, voxels]; lesion [voxels] tells where the reference has one."""
    between = (pair[0] - pair[1]) / np.sqrt(2)
    return {
        "mean in lesions": pair[:, lesion].mean(),
        "mean outside": pair[:, ~lesion].mean(),
        "deviation outside": pair[:, ~lesion].std(),
        "deviation between draws": between[~lesion].std(),
        "deviation between draws in lesions": between[lesion].std(),
    }


def state_faults(states: pd.DataFrame, limits: Mapping[str, float], of: str) -> list[str]:
    """The columns of `state_statistics` in which the draws are further from the row `of` than the limits; none is best.

    limits: `mean_in_lesions`, `mean_outside`: distances; `deviation_outside`: a share of it; `between_draws`: the least
    share of the deviation between draws.
    """
    drawn, wanted = states.loc["drawn"], states.loc[of]
    distance = (drawn - wanted).abs()
    kept = {
        "mean in lesions": distance["mean in lesions"] <= limits["mean_in_lesions"],
        "mean outside": distance["mean outside"] <= limits["mean_outside"],
        "deviation outside": distance["deviation outside"] <= limits["deviation_outside"] * wanted["deviation outside"],
        "deviation between draws": drawn["deviation between draws"]
        >= limits["between_draws"] * wanted["deviation between draws"],
    }
    return [name for name, fine in kept.items() if not fine]


def drawn_masks(run: Run, weights: Weights, subject: str, count: int) -> np.ndarray:
    """The soft masks [count, Z, Y, X] in 0..1 in a generator's first draws: its states without their noise, which is
    known; zero outside the brain.
    """
    network, one, found = run.network(weights, "generator"), run.subject(subject), []
    (image, window), reach = one.slices(), network.lesion - network.background
    numbers = torch.from_numpy(window.slices)
    for member, state in enumerate(draws(run, weights, subject, count).values):
        streams = one.streams(numbers, torch.full_like(numbers, member))
        eps = noise.normal(streams, noise.START, 1, *image.shape[2:])[:, 0].numpy()
        mask = (window.cut(state) - network.deviation * eps - network.background) / reach
        found.append(window.put_back(np.clip(mask, 0, 1), state.shape) * one.volume.brain)
    return np.stack(found)


def lesion_statistics(run: Run, mask: np.ndarray, subject: str) -> dict[str, float]:
    """A mask [Z, Y, X] by its lesions (26-connected): how many, the volume of all and of the median one in ml, and
    beside the reference the shares of its lesions that are touched, and of the mask's that touch one, and Dice.
    """
    labels, count = ndimage.label(mask, metrics.CONNECTED_26)
    ml = np.bincount(labels.ravel(), minlength=count + 1)[1:] * np.prod(run.volume(subject).spacing_mm) / 1000
    scores = metrics.score_volume(run.labels(subject), mask, run.volume(subject).spacing_mm)
    beside = {"share found": scores["lesion_recall"], "share true": scores["lesion_precision"], "Dice": scores["dice"]}
    return {"lesions": count, "ml": ml.sum(), "median ml": np.median(ml) if count else np.nan} | beside


def pick_checkpoints(curve: pd.Series, gaps: Sequence[float]) -> list[int]:
    """Steps of one training with rising scores that lie closest to best - gap, the best checkpoint among them.

    curve: validation score by step; gaps: distances below the best score, one of them 0. Of all choices of distinct
    scores the one with the least sum of deviations is taken. ValueError where there are too few distinct scores.
    """
    distinct = curve.sort_index().drop_duplicates().sort_values()
    targets = distinct.iloc[-1] - np.sort(gaps)[::-1]
    if len(distinct) < len(targets):
        raise ValueError(f"{len(targets)} checkpoints asked of a training with {len(distinct)} distinct scores")
    choices = combinations(range(len(distinct) - 1), len(targets) - 1)
    chosen = min(choices, key=lambda choice: np.abs(distinct.iloc[[*choice, -1]] - targets).sum())
    return [int(step) for step in distinct.index[[*chosen, -1]]]
