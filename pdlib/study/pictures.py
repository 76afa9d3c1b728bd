"""Slices for the pictures: states of a chain (Fig. 1), masks side by side (Fig. 2). `figures` draws them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pdlib.data import wmh
from pdlib.diffusion.sampler import STARTS, Chain, sample
from pdlib.inference import volumes as inference
from pdlib.kernels import noise, ops
from pdlib.study.experiment import Denoiser, Run, chain_members, draws, starts


def widest_slice(run: Run, subject: str, array: np.ndarray) -> np.ndarray:
    """The slice of an array [..., Z, Y, X] where the subject's reference has most lesion, cut like a network input."""
    volume = run.volume(subject)
    _, window = inference.brain_slices(volume, run.multiple)
    return window.cut(array)[_widest(volume, window)]


def _widest(volume: wmh.Volume, window: inference.Window) -> int:
    return int(window.cut(volume.mask).sum(axis=(1, 2)).argmax())


def _one_slice(run: Run, subject: str) -> tuple[torch.Tensor, inference.Window, int, noise.Streams]:
    """Image [1, 2, H, W] of the widest slice, its window and place, and the stream of its first member."""
    volume = run.volume(subject)
    image, window = inference.brain_slices(volume, run.multiple)
    place = _widest(volume, window)
    number = torch.tensor([int(window.slices[place])])
    return image[place][None], window, place, noise.subject_streams(run.seed, subject, number, torch.zeros_like(number))


@torch.inference_mode()
def chain_states(
    run: Run, denoiser: Denoiser, chain: Chain, preseg: Path | None, subject: str, panels: int
) -> list[tuple[str, np.ndarray, bool]]:
    """States of one member's chain on the widest slice, for Fig. 1: (title, x_t [H, W], reached by adding noise)."""
    image, window, place, streams = _one_slice(run, subject)
    mask = torch.from_numpy(window.cut(starts(run, preseg, subject, 1).values[0])[place]).float()[None, None]
    start = chain.start_index(denoiser.diffusion.schedule)
    first = STARTS[chain.start](mask, start, streams, denoiser.diffusion)
    states = [] if preseg is None else [("pre-segmentation", mask[0, 0].numpy(), False)]
    states.append((f"t = {start + 1}", first[0, 0].numpy(), preseg is not None))
    visited: list[np.ndarray] = []
    sample(
        denoiser.network,
        image.to(run.device),
        mask.to(run.device),
        chain=chain,
        diffusion=denoiser.diffusion,
        streams=streams.to(run.device),
        on_step=lambda index, x_t, x_start: visited.append(x_t[0, 0].cpu().numpy()),
    )
    times = [index + 1 for index in (*chain.indices[1:], -1)]
    shown = np.unique(np.linspace(0, len(visited) - 1, panels - len(states)).round().astype(int))
    return states + [(f"t = {times[i]}", visited[i], False) for i in shown]


@torch.inference_mode()
def denoised_references(run: Run, denoiser: Denoiser, subject: str, indices: list[int]) -> dict[str, np.ndarray]:
    """The widest slice's reference, and the x_start predicted from it after diffusion to each index, [H, W] each."""
    image, window, place, streams = _one_slice(run, subject)
    mask = torch.from_numpy(window.cut(run.volume(subject).mask)[place]).float()[None, None]
    chain = Chain("preseg", "x0_jump", 1, 1, "ddpm", 1.0, "consistent")
    pictures = {"reference": mask[0, 0].numpy()}
    for index in indices:
        jump = replace(chain, t_prime=index + 1)
        believed = sample(
            denoiser.network,
            image.to(run.device),
            mask.to(run.device),
            chain=jump,
            diffusion=denoiser.diffusion,
            streams=streams.to(run.device),
        )
        pictures[f"from t = {index + 1}"] = believed[0, 0].cpu().numpy()
    return pictures


@torch.inference_mode()
def learned_variances(run: Run, denoiser: Denoiser, subject: str, indices: list[int]) -> pd.DataFrame:
    """What a denoiser that learns its variance makes of the widest slice, diffused to each index > 0.

    A row for each paper time t (the index); columns: the step's variances "posterior" and "fixed-large", for which a
    spread of -1 and 1 stands, and the geometric mean of the learned one "in lesions" and "outside", in the brain.
    """
    image, window, place, streams = _one_slice(run, subject)
    mask, brain = (window.cut(array)[place] > 0 for array in (run.volume(subject).mask, run.volume(subject).brain))
    schedule = denoiser.diffusion.schedule
    x_start = denoiser.diffusion.codec.encode(torch.from_numpy(mask).float()[None, None])
    rows = {}
    for index in indices:
        fresh = noise.normal(streams, noise.START, *x_start.shape[1:])
        x_t = ops.q_sample(x_start, index, fresh, schedule)
        seen = torch.cat([image, x_t], dim=1).to(run.device)
        _, spread = denoiser.network(seen, torch.full((1,), index, device=run.device)).cpu().chunk(2, dim=1)
        learned = ops.learned_variance(spread, index, index - 1, schedule)[0, 0].log().numpy()
        rows[index + 1] = {
            "posterior": float(schedule.posterior_variance(index, index - 1)),
            "in lesions": np.exp(learned[mask].mean()),
            "outside": np.exp(learned[brain & ~mask].mean()),
            "fixed-large": float(schedule.step_beta(index, index - 1)),
        }
    return pd.DataFrame(rows).T.rename_axis("t")


def example(
    run: Run,
    denoiser: Denoiser,
    subject: str,
    segmenters: dict[str, tuple[list[Path], int]],
    chains: dict[str, tuple[Chain, Path | None, int]],
    scores: pd.DataFrame,
) -> dict:
    """The fields of one row of Fig. 2: the widest slice of a subject, each method's mask, the last chain's variance."""
    volume = run.volume(subject)
    stacks = {
        name: np.concatenate([draws(run, path, subject, size).values for path in paths])
        for name, (paths, size) in segmenters.items()
    }
    for name, (chain, preseg, size) in chains.items():
        stacks[name] = chain_members(run, denoiser, chain, preseg, subject, size).values
    combined = {
        name: inference.combine(stack, threshold=run.threshold, vote=run.vote) for name, stack in stacks.items()
    }
    dice = scores[(scores.subject == subject) & (scores.metric == "dice")].set_index("method").value
    return {
        "subject": subject,
        "flair": widest_slice(run, subject, volume.image[0]),
        "t1": widest_slice(run, subject, volume.image[1]),
        "reference": widest_slice(run, subject, volume.mask),
        "predictions": {name: widest_slice(run, subject, one.mask) for name, one in combined.items()},
        "variance": widest_slice(run, subject, combined[list(chains)[-1]].variance),
        "dice": {name: float(dice[name]) for name in combined},
        "pixel_aspect": volume.spacing_mm[1] / volume.spacing_mm[2],
    }
