"""Slices for the pictures: states of a chain (Fig. 1), masks side by side (Fig. 2). `report.slices` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pdlib.diffusion.formulas import learned_variance, q_sample
from pdlib.diffusion.sampler import STARTS
from pdlib.inference.window import Window, brain_slices
from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.report.processes import Process, spaced
from pdlib.report.slices import Example
from pdlib.report.values import select, tested_values
from pdlib.study.comparison import Row
from pdlib.study.rows import ensemble_of
from pdlib.study.run import Run

APART = 0.43  # of T': how near two states of Fig. 1 may stand, a little less than half


@dataclass(frozen=True)
class WidestSlice:
    """The slice of a subject where the reference has most lesion, as a network sees it.

    Args:
        image: [1, 2, H, W].
        window: how the volume was cut.
        place: of the slice in the window.
        streams: the random stream of its first member.
    """

    image: Tensor
    window: Window
    place: int
    streams: Streams

    @classmethod
    def of(cls, run: Run, subject: str) -> "WidestSlice":
        volume = run.volume(subject)
        image, window = brain_slices(volume, run.profile.data.multiple)
        place = int(window.cut(volume.mask).sum(axis=(1, 2)).argmax())
        number = torch.tensor([int(window.slices[place])])
        streams = noise.subject_streams(run.seed, subject, number, torch.zeros_like(number))
        return cls(image[place][None], window, place, streams)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The slice of an array [Z, Y, X], [H, W]."""
        return self.window.cut(array)[self.place]

    def tensor(self, array: np.ndarray) -> Tensor:
        """The slice of an array [Z, Y, X] as [1, 1, H, W] float32."""
        return torch.from_numpy(self.cut(array)).float()[None, None]


def widest_slice(run: Run, subject: str, array: np.ndarray) -> np.ndarray:
    """The slice of an array [Z, Y, X] where the subject's reference has most lesion, [H, W]."""
    return WidestSlice.of(run, subject).cut(array)


@torch.inference_mode()
def chain_states(row: Row, subject: str) -> dict[int, np.ndarray]:
    """The states of the first member's chain on the widest slice, [H, W] by paper time t: its start, and what each call
    leaves, down to t = 0.
    """
    run, chain, sampler = row.run, row.chain, row.networks(subject).trained.sampler(row.run)
    seen = WidestSlice.of(run, subject)
    mask = seen.tensor(row.starts(subject, 1).values[0])
    start = chain.start_index(sampler.diffusion.schedule)
    first = STARTS[chain.start](mask, start, seen.streams, sampler.diffusion)
    visited: list[np.ndarray] = []
    device = run.compute.device
    sampler.sample(
        seen.image.to(device),
        mask.to(device),
        seen.streams.to(device),
        on_step=lambda index, x_t, x_start: visited.append(x_t[0, 0].cpu().numpy()),
    )
    times = [index + 1 for index in (*chain.indices[1:], -1)]
    return {start + 1: first[0, 0].numpy()} | dict(zip(times, visited, strict=True))


def processes(rows: Sequence[Row], subject: str, scores: pd.DataFrame) -> list[Process]:
    """The rows of Fig. 1 on the widest slice of a subject; scores: of the test subjects.

    A row shows as many of its states, evenly spaced in t, as lie about half of the shortest chain's T' apart.
    """
    states = {row.name: chain_states(row, subject) for row in rows}
    least = APART * min(max(of) for of in states.values())
    found = []
    for row in rows:
        mine = select(scores, {"method": row.name})
        dice, begun, of = tested_values(mine, "dice"), row.networks(subject).source, states[row.name]
        found.append(
            Process(
                method=row.name,
                states={t: of[t] for t in spaced([*of], least)},
                visited=[index + 1 for index in row.chain.indices],
                preseg=None if begun is None else widest_slice(row.run, subject, row.starts(subject, 1).values[0]),
                dice=float(dice[subject]),
                mean_dice=float(dice.mean()),
                calls=float(mine.nfe.mean()),
            )
        )
    return found


@torch.inference_mode()
def learned_variances(row: Row, subject: str, indices: Sequence[int]) -> pd.DataFrame:
    """What a denoiser that learns its variance makes of the widest slice, diffused to each index > 0.

    A row for each paper time t (the index); columns: the step's variances "posterior" and "fixed-large", for which
    values of -1 and 1 stand, and the geometric mean of the learned one "in lesions" and "outside", in the brain.
    """
    run, seen, sampler = row.run, WidestSlice.of(row.run, subject), row.networks(subject).trained.sampler(row.run)
    mask, brain = (seen.cut(array) > 0 for array in (run.volume(subject).mask, run.volume(subject).brain))
    schedule, device = sampler.diffusion.schedule, run.compute.device
    x_start = sampler.diffusion.codec.encode(torch.from_numpy(mask).float()[None, None])
    found = {}
    for index in indices:
        fresh = noise.normal(seen.streams, noise.START, *x_start.shape[1:])
        x_t = q_sample(x_start, index, fresh, schedule)
        network_input = torch.cat([seen.image, x_t], dim=1).to(device)
        output = sampler.denoiser(network_input, torch.full((1,), index, device=device)).cpu()
        _, model_var_values = output.chunk(2, dim=1)
        learned = learned_variance(model_var_values, index, index - 1, schedule)[0, 0].log().numpy()
        found[index + 1] = {
            "posterior": float(schedule.posterior_variance(index, index - 1)),
            "in lesions": np.exp(learned[mask].mean()),
            "outside": np.exp(learned[brain & ~mask].mean()),
            "fixed-large": float(schedule.step_beta(index, index - 1)),
        }
    return pd.DataFrame(found).T.rename_axis("t")


def example(rows: Sequence[Row], subject: str, scores: pd.DataFrame) -> Example:
    """One row of Fig. 2: the widest slice of a subject, the mask of each row of Table 1, the last one's variance."""
    run = rows[0].run
    volume, seen = run.volume(subject), WidestSlice.of(run, subject)
    combined = {row.name: ensemble_of(run, row.members(subject).values) for row in rows}
    dice = scores[(scores.subject == subject) & (scores.metric == "dice")].set_index("method").value
    return Example(
        subject=subject,
        flair=seen.cut(volume.image[0]),
        reference=seen.cut(volume.mask),
        predictions={name: seen.cut(one.mask) for name, one in combined.items()},
        variance=seen.cut(combined[rows[-1].name].variance),
        dice={name: float(dice[name]) for name in combined},
        pixel_aspect=volume.spacing_mm[1] / volume.spacing_mm[2],
    )
