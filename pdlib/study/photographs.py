"""Photographs with several classes through the same networks and chains, as ensembles, scored as result rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch import nn

from pdlib.data.fundus import CLASSES, Fundus, majority_of_others
from pdlib.diffusion.sampler import Chain, Diffusion
from pdlib.evaluation import records
from pdlib.evaluation.metrics import class_dice
from pdlib.inference import volumes as inference
from pdlib.inference.slices import OnBatch, OneStep, Timed, draw_slices, sample_slices
from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.study.experiment import Run, silent


def photograph_members(
    run: Run,
    networks: Mapping[str, nn.Module],
    eyes: Sequence[Fundus],
    *,
    chain: Chain | None,
    diffusion: Diffusion,
    ensemble_size: int,
    on_batch: OnBatch,
) -> Timed:
    """Ensemble members of a chain, [E, N, C, H, W] in 0..1, or without a chain the segmenter's answer, [1, N, C, H, W].

    networks: "segmenter", unless the chain starts from pure noise, "denoiser" and, for a chain that stops before the
    end, "one_step". The cost is that of all members and what they start from; a photograph's seconds are its share.
    """
    image = torch.from_numpy(np.stack([eye.image for eye in eyes]))  # [N, 3, H, W]
    keys = torch.tensor([noise.stream_key(run.seed, eye.subject) for eye in eyes])
    member, key = torch.meshgrid(torch.arange(ensemble_size), keys, indexing="ij")
    streams = Streams(key, torch.zeros_like(key), member)  # [E, N]; a photograph is its subject's slice 0
    how = {"batch_size": run.batch_size, "precision": run.autocast, "on_batch": on_batch}
    begun = Timed(np.zeros((1, len(eyes), len(CLASSES), *image.shape[2:]), np.float32), 0, 0.0)
    if chain is None or chain.start == "preseg":
        begun = draw_slices(networks["segmenter"], image, streams[0], **how)
        begun = Timed(expit(begun.values)[None], begun.calls, begun.seconds / len(eyes))
    if chain is None:
        return begun
    denoiser = run.prepare(networks["denoiser"], diffusion.schedule.steps)
    drawn = sample_slices(
        denoiser,
        image,
        torch.from_numpy(begun.values >= run.threshold).float(),
        streams,
        chain=chain,
        diffusion=diffusion,
        one_step=OneStep(networks["one_step"], chain.t_stop, mask_only=False) if chain.t_stop else None,
        **how,
    )
    calls = begun.calls + ensemble_size * drawn.calls
    return replace(drawn, calls=calls, seconds=begun.seconds + drawn.seconds / len(eyes))


def photograph_dice(
    run: Run, networks: Mapping[str, nn.Module], eyes: Sequence[Fundus], chain: Chain | None, diffusion: Diffusion
) -> dict[str, float]:
    """Mean Dice of one member over photographs and classes, for the training curves of the networks."""
    how = {"chain": chain, "diffusion": diffusion, "ensemble_size": 1, "on_batch": silent}
    member = photograph_members(run, networks, eyes, **how).values[0]
    return {"dice": float(class_dice(member >= run.threshold, _references(eyes)).mean())}


def photograph_rows(
    run: Run, eyes: Sequence[Fundus], drawn: Timed, *, method: str, chain: Chain | None
) -> pd.DataFrame:
    """Dice of each class with the majority of all raters but one, the mean over the one left out, as rows of test
    photographs: methods and raters meet the same references.

    drawn: what `photograph_members` made of them with this chain, and its cost.
    """
    mask = inference.combine(drawn.values, threshold=run.threshold, vote=run.vote).mask
    about = {"method": method, "seed": run.seed, "nfe": drawn.calls, "seconds": drawn.seconds}
    about |= {"t_prime": chain and chain.t_prime, "ensemble_size": len(drawn.values)}
    return _rows(run, eyes, class_dice(mask, majority_of_others(_raters(eyes))).mean(axis=0), **about)


def rater_rows(run: Run, eyes: Sequence[Fundus], *, method: str) -> pd.DataFrame:
    """Dice of each class between a rater and the majority of the others, as result rows: seed is the rater's number."""
    raters = _raters(eyes)
    dice = class_dice(raters, majority_of_others(raters))  # [R, N, C]
    about = {"method": method, "nfe": 0, "seconds": np.nan}
    return pd.concat([_rows(run, eyes, dice[r], seed=r, **about) for r in range(len(raters))], ignore_index=True)


def _raters(eyes: Sequence[Fundus]) -> np.ndarray:
    return np.stack([eye.raters for eye in eyes], axis=1)  # [R, N, C, H, W]


def _references(eyes: Sequence[Fundus]) -> np.ndarray:
    return np.stack([eye.reference for eye in eyes])  # [N, C, H, W]


def _rows(run: Run, eyes: Sequence[Fundus], dice: np.ndarray, **about) -> pd.DataFrame:
    """Rows of the test photographs. dice [N, C]"""
    names = [f"dice_{name}" for name in CLASSES]
    about |= {"fold": run.fold, "site": "phantom", "split": "test"}
    rows = [
        records.score_rows(dict(zip(names, values, strict=True)), subject=eye.subject, **about)
        for eye, values in zip(eyes, dice.tolist(), strict=True)
    ]
    return pd.concat(rows, ignore_index=True)
