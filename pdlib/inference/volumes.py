"""A volume in; mask, mean and uncertainty volumes out: cut and pad, slices through networks, stitch.

Volumes have one class (white matter lesions); `slices` carries any number.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from pdlib.data.wmh import Volume
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, preseg_start
from pdlib.diffusion.schedule import build_schedule
from pdlib.inference.slices import OnBatch, OneStep, Timed, draw_slices, sample_slices
from pdlib.kernels import noise, ops
from pdlib.kernels.noise import Streams
from pdlib.networks.generators import ConditionalGan
from pdlib.networks.guided_unet import PreparedDenoiser
from pdlib.training.weights import load_weights


@dataclass(frozen=True)
class Window:
    """The slices and the in-plane rectangle that hold the brain, padded to a multiple; a whole slice if it must be."""

    slices: np.ndarray  # [N] indices along Z
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, brain: np.ndarray, multiple: int) -> "Window":
        """The smallest window of a brain mask [Z, Y, X] whose sides are multiples of multiple; it may stick out."""
        slices, rows, columns = (np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        top, height = _padded_range(rows, multiple)
        left, width = _padded_range(columns, multiple)
        return cls(slices, top, left, height, width)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """[Z, Y, X] -> [N, height, width], zero where the window sticks out of the image."""
        out = np.zeros((len(self.slices), self.height, self.width), dtype=array.dtype)
        inside, source = self._overlap(array.shape)
        out[(slice(None), *inside)] = array[(self.slices, *source)]
        return out

    def put_back(self, values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """[..., N, height, width] -> [..., Z, Y, X], zero outside the window."""
        out = np.zeros((*values.shape[:-3], *shape), dtype=values.dtype)
        inside, source = self._overlap(shape)
        out[(..., self.slices, *source)] = values[(..., *inside)]
        return out

    def _overlap(self, shape: tuple[int, int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        inside, source = [], []
        for start, length, size in ((self.top, self.height, shape[1]), (self.left, self.width, shape[2])):
            low, high = max(start, 0), min(start + length, size)
            inside.append(slice(low - start, high - start))
            source.append(slice(low, high))
        return tuple(inside), tuple(source)


def _padded_range(indices: np.ndarray, multiple: int) -> tuple[int, int]:
    length = int(indices[-1] - indices[0] + 1)
    padded = -(-length // multiple) * multiple
    return int(indices[0]) - (padded - length) // 2, padded


def brain_slices(volume: Volume, multiple: int) -> tuple[Tensor, Window]:
    """The network's view of a volume: image [N, 2, H, W] float32, and the window it was cut with."""
    window = Window.around(volume.brain, multiple)
    return torch.from_numpy(np.stack([window.cut(channel) for channel in volume.image], axis=1)), window


def draw_member(
    network: nn.Module,
    volume: Volume,
    *,
    subject: str,
    seed: int,
    member: int,
    multiple: int,
    batch_size: int,
    precision: str,
    on_batch: OnBatch,
) -> Timed:
    """One draw of a segmenter or generator, [Z, Y, X] float32: the lesion probability in 0..1, zero outside the brain,
    or a generator's state, zero outside the brain's window.

    A draw depends on (seed, subject, slice, member) alone; that of a deterministic network on none of them.
    """
    started = time.perf_counter()
    image, window = brain_slices(volume, multiple)
    numbers = torch.from_numpy(window.slices)
    streams = noise.subject_streams(seed, subject, numbers, torch.full_like(numbers, member))
    drawn = draw_slices(network, image, streams, batch_size=batch_size, precision=precision, on_batch=on_batch)
    values = window.put_back(drawn.values[:, 0], volume.brain.shape)
    if not isinstance(network, ConditionalGan):
        values = expit(values) * volume.brain
    return Timed(values, drawn.calls, time.perf_counter() - started)


def sample_members(
    denoise: PreparedDenoiser,
    volume: Volume,
    starts: np.ndarray,
    *,
    chain: Chain,
    diffusion: Diffusion,
    one_step: OneStep | None,
    subject: str,
    seed: int,
    members: range,
    multiple: int,
    batch_size: int,
    precision: str,
    on_batch: OnBatch,
) -> Timed:
    """Ensemble members of a chain, [E, Z, Y, X] float32 in 0..1, zero outside the brain.

    starts: what the chain starts from, [1, Z, Y, X] for all members or [E, Z, Y, X]; beyond the image an empty mask, or
    beside a generator's state one that is diffused. Member e depends on it and on (seed, subject, slice, e) alone,
    whatever the batch size and the other members.
    """
    started = time.perf_counter()
    image, window = brain_slices(volume, multiple)
    start = torch.from_numpy(np.stack([window.cut(one.astype(np.float32)) for one in starts]))[:, :, None]
    member, number = torch.meshgrid(torch.tensor(members), torch.from_numpy(window.slices), indexing="ij")  # [E, N]
    streams = noise.subject_streams(seed, subject, number, member)
    if chain.start == "given":  # a generator's state ends where the image does, and the window may not
        inside = torch.from_numpy(window.cut(np.ones_like(volume.brain)))[:, None]  # [N, 1, H, W]
        start = torch.where(inside, start, _empty_start(streams, inside.shape[1:], chain, diffusion))
    drawn = sample_slices(
        denoise,
        image,
        start,
        streams,
        chain=chain,
        diffusion=diffusion,
        one_step=one_step,
        batch_size=batch_size,
        precision=precision,
        on_batch=on_batch,
    )
    values = window.put_back(drawn.values[:, :, 0], volume.brain.shape) * volume.brain
    return Timed(values, drawn.calls, time.perf_counter() - started)


def _empty_start(streams: Streams, shape: tuple[int, ...], chain: Chain, diffusion: Diffusion) -> Tensor:
    """An empty mask diffused to the index where a chain starts. streams [E, N], shape [C, H, W] -> [E, N, C, H, W]."""
    empty = torch.zeros(streams.keys.numel(), *shape)
    started = preseg_start(empty, chain.start_index(diffusion.schedule), streams, diffusion)
    return started.unflatten(0, streams.keys.shape)


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble says: mask, mean and variance of every voxel or pixel."""

    mask: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def combine(members: np.ndarray, *, threshold: float, vote: str) -> Ensemble:
    """Members [E, ...] in 0..1 -> mask, mean and variance over members (ddof 0), [...] each."""
    mean, variance, mask = ops.ensemble_stats(torch.from_numpy(members), threshold, vote)
    return Ensemble(mask.numpy(), mean.numpy(), variance.numpy())


def build_diffusion(*, schedule: dict, codec: str, prediction: str) -> Diffusion:
    """A Diffusion from a profile's names: schedule {"name": ..., its arguments}, codec, prediction."""
    return Diffusion(build_schedule(**schedule), build_codec(codec), prediction)


PROBES = 20  # tries of each precision, some milliseconds each


@cache
def fast_precision(device: torch.device) -> str:
    """ "bf16-mixed" where this device convolves at least a quarter faster in bfloat16, else "32-true".

    A processor without bfloat16 in hardware imitates it, several times slower than float32: it is measured, once, by
    the quickest of many tries in turns, for whatever else the machine does must not decide. A GPU says whether it has
    it; on one a convolution short enough for a probe would measure its launch.
    """
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"

    def timer(dtype: torch.dtype) -> Timer:
        x = torch.ones(4, 64, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(64, 64, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        used = {"conv2d": F.conv2d, "x": x, "weight": weight}
        return Timer("conv2d(x, weight)", globals=used, num_threads=torch.get_num_threads())

    timers = [timer(dtype) for dtype in (torch.bfloat16, torch.float32)]
    tries = [[one.timeit(2).mean for one in timers] for _ in range(PROBES)]
    half, full = (min(seconds) for seconds in zip(*tries, strict=True))
    return "bf16-mixed" if 1.25 * half < full else "32-true"


def load_segmenter(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """A trained segmenter in eval mode, and its card."""
    return load_network(path, device, "segmenter")


def load_denoiser(path: Path, device: torch.device, precision: str) -> tuple[PreparedDenoiser, dict]:
    """A trained denoiser (averaged weights), prepared for sampling in this precision, and its card."""
    network, card = load_network(path, device, "denoiser")
    return PreparedDenoiser(network, card["t_max"], precision), card


def load_network(path: Path, device: torch.device, *kinds: str) -> tuple[nn.Module, dict]:
    """A trained network of one of these kinds (keys of BUILDERS) in eval mode, and its card; ValueError for another."""
    weights = load_weights(path)
    return weights.build(device, *kinds), weights.card
