"""Volumes through networks and chains: cut to the brain, run slice by slice, put back.

Volumes have one class (white matter lesions); `slices` handles any number.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from pdlib.data.wmh import Volume
from pdlib.diffusion.sampler import Sampler, preseg_start
from pdlib.inference.precision import Compute
from pdlib.inference.slices import OnBatch, Timed, draw_slices, sample_slices
from pdlib.inference.window import Window, brain_slices
from pdlib.kernels import noise, ops
from pdlib.kernels.noise import Streams
from pdlib.networks.gan import ConditionalGan


@dataclass(frozen=True)
class Subject:
    """A volume, and what its window and its random streams depend on.

    Args:
        volume: images and brain mask, [Z, Y, X].
        name: the subject's; with the seed it decides all noise.
        seed: of the run.
        multiple: height and width of the window are multiples of it.
    """

    volume: Volume
    name: str
    seed: int
    multiple: int

    def slices(self) -> tuple[Tensor, Window]:
        """The brain's slices [N, 2, H, W], and the window they were cut with."""
        return brain_slices(self.volume, self.multiple)

    def streams(self, numbers: Tensor, members: Tensor) -> Streams:
        """A random stream for each pair of slice number and member, both of the same shape."""
        return noise.subject_streams(self.seed, self.name, numbers, members)


def draw_member(network: nn.Module, subject: Subject, member: int, compute: Compute, on_batch: OnBatch) -> Timed:
    """One draw of a segmenter or generator for a subject, [Z, Y, X] float32.

    A segmenter gives lesion probabilities in 0..1, zero outside the brain; a generator gives a chain's state, zero
    outside the brain's window. A draw depends on seed, name, slice and member alone; a deterministic network's on none.
    """
    image, window = subject.slices()
    numbers = torch.from_numpy(window.slices)
    streams = subject.streams(numbers, torch.full_like(numbers, member))
    drawn = draw_slices(network, image, streams, compute, on_batch)
    values = window.put_back(drawn.values[:, 0], subject.volume.brain.shape)
    if not isinstance(network, ConditionalGan):
        values = expit(values) * subject.volume.brain
    return Timed(values, drawn.calls, drawn.seconds)


def sample_members(
    sampler: Sampler, subject: Subject, starts: np.ndarray, members: range, compute: Compute, on_batch: OnBatch
) -> Timed:
    """Ensemble members of a chain for a subject, [E, Z, Y, X] float32 in 0..1, zero outside the brain.

    starts: what the chain starts from, [1, Z, Y, X] for all members or [E, Z, Y, X]. Beyond the image the window holds
    an empty mask, which is diffused if the starts are a generator's states. Member e depends on seed, name, slice, e
    and its start alone, whatever the batch size and the other members.
    """
    image, window = subject.slices()
    start = torch.from_numpy(np.stack([window.cut(one.astype(np.float32)) for one in starts]))[:, :, None]
    member, number = torch.meshgrid(torch.tensor(members), torch.from_numpy(window.slices), indexing="ij")  # [E, N]
    streams = subject.streams(number, member)
    brain = subject.volume.brain
    if sampler.chain.start == "given":  # a generator's state ends with the image, and the window may reach beyond it
        inside = torch.from_numpy(window.cut(np.ones_like(brain)))[:, None]  # [N, 1, H, W]
        start = torch.where(inside, start, _empty_start(sampler, streams, inside.shape[1:]))
    drawn = sample_slices(sampler, image, start, streams, compute, on_batch)
    values = window.put_back(drawn.values[:, :, 0], brain.shape) * brain
    return Timed(values, drawn.calls, drawn.seconds)


def _empty_start(sampler: Sampler, streams: Streams, shape: tuple[int, ...]) -> Tensor:
    """An empty mask diffused to the index where a chain starts. streams [E, N], shape [C, H, W] -> [E, N, C, H, W]."""
    empty = torch.zeros(streams.keys.numel(), *shape)
    index = sampler.chain.start_index(sampler.diffusion.schedule)
    return preseg_start(empty, index, streams, sampler.diffusion).unflatten(0, streams.keys.shape)


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble's members come to: mask, mean and variance of every voxel or pixel."""

    mask: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def combine(members: np.ndarray, *, threshold: float, vote: str) -> Ensemble:
    """Members [E, ...] in 0..1 -> mask, mean and variance over members (ddof 0), [...] each."""
    mean, variance, mask = ops.ensemble_stats(torch.from_numpy(members), threshold, vote)
    return Ensemble(mask.numpy(), mean.numpy(), variance.numpy())
