"""What trainings are watched by: Dice of validation subjects, a generator's states beside diffused references."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
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


def state_statistics(
    run: Run, weights: Weights, diffusion: Diffusion, t_prime: int, subjects: Sequence[str]
) -> pd.DataFrame:
    """A generator's states beside diffused references at the same index, inside the brains of subjects.

    Rows "diffused" and "drawn"; columns: the mean in and outside lesions, the deviation outside them, and that between
    two draws of the same subject.
    """
    found = {"diffused": [], "drawn": []}
    for subject in subjects:
        volume = run.volume(subject)
        start = torch.from_numpy(volume.mask[None].astype(np.float32))  # [1, Z, Y, X]
        streams = noise.subject_streams(run.seed, subject, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        fresh = noise.normal(streams, noise.START, *volume.mask.shape)
        pair = q_sample(diffusion.codec.encode(start).expand(2, -1, -1, -1), t_prime - 1, fresh, diffusion.schedule)
        for name, states in (("diffused", pair.numpy()), ("drawn", draws(run, weights, subject, 2).values)):
            found[name].append(states[:, volume.brain].astype(np.float64))
    lesion = np.concatenate([run.volume(subject).mask[run.volume(subject).brain] == 1 for subject in subjects])
    table = {}
    for name, parts in found.items():
        one, two = np.concatenate(parts, axis=1)
        table[name] = {
            "mean in lesions": one[lesion].mean(),
            "mean outside": one[~lesion].mean(),
            "deviation outside": one[~lesion].std(),
            "deviation between draws": (one - two)[~lesion].std() / np.sqrt(2),
        }
    return pd.DataFrame(table).T


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
