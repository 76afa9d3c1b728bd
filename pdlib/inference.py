"""A volume in; mask, mean and uncertainty volumes out: cut, pad, batch slices x members, stitch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn

from pdlib import noise, ops
from pdlib.codec import build_codec
from pdlib.data.wmh import Volume
from pdlib.denoiser import GuidedUNet
from pdlib.generators import ConditionalGan, build_generator
from pdlib.sampler import Chain, Diffusion, sample
from pdlib.schedule import build_schedule
from pdlib.segmenters import build_segmenter
from pdlib.training import read_weights

OnBatch = Callable[[int], None]  # network calls on images just made


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


class CountedCalls:
    """A network that counts the images it was called on: the numbers of network calls in the tables come from here."""

    def __init__(self, network: Callable[..., Tensor], precision: str, on_batch: OnBatch):
        self.network, self.precision, self.on_batch = network, precision, on_batch
        self.images = 0

    def __call__(self, x: Tensor, *arguments) -> Tensor:
        self.images += len(x)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            output = self.network(x, *arguments)
        self.on_batch(len(x))
        return output.float()


@dataclass(frozen=True)
class Timed:
    """A prediction with its cost: network calls per image and the seconds spent."""

    values: np.ndarray
    calls: int
    seconds: float


@torch.inference_mode()
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
    device = next(network.parameters()).device
    image, window = brain_slices(volume, multiple)
    numbers = torch.from_numpy(window.slices)
    streams = noise.subject_streams(seed, subject, numbers, torch.full_like(numbers, member))
    counted = CountedCalls(network, precision, on_batch)
    outputs = [
        counted(image[part].to(device), streams[part].to(device)).cpu()
        for part in torch.arange(len(image)).split(batch_size)
    ]
    values = window.put_back(torch.cat(outputs)[:, 0].numpy(), volume.brain.shape)
    if not isinstance(network, ConditionalGan):
        values = expit(values) * volume.brain
    return Timed(values, counted.images // len(image), time.perf_counter() - started)


@dataclass(frozen=True)
class OneStep:
    """ADDPM's denoising network, which turns the state at index t_stop - 1 into the mask; mask_only hides the image."""

    network: nn.Module
    t_stop: int
    mask_only: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[N, image + 1, H, W] -> logits [N, 1, H, W]."""
        return self.network(x[:, -1:] if self.mask_only else x)


@torch.inference_mode()
def sample_members(
    network: nn.Module,
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

    starts: what the chain starts from, [1, Z, Y, X] for all members or [E, Z, Y, X]. Member e depends on it and on
    (seed, subject, slice, e) alone, whatever the batch size and the other members.
    """
    started = time.perf_counter()
    device = next(network.parameters()).device
    image, window = brain_slices(volume, multiple)
    start = torch.from_numpy(np.stack([window.cut(one.astype(np.float32)) for one in starts]))  # [1 or E, N, H, W]
    row, place = torch.cartesian_prod(torch.arange(len(image)), torch.arange(len(members))).unbind(dim=1)
    member = torch.tensor(members)[place]
    streams = noise.subject_streams(seed, subject, torch.from_numpy(window.slices)[row], member)
    counted = CountedCalls(network, precision, on_batch)
    last = CountedCalls(one_step, precision, on_batch)
    outputs = [
        sample(
            counted,
            image[row[part]].to(device),
            start[place[part] % len(start), row[part], None].to(device),
            chain=chain,
            diffusion=diffusion,
            streams=streams[part].to(device),
            refine=lambda x: torch.sigmoid(last(x)),
        ).cpu()
        for part in torch.arange(len(row)).split(batch_size)
    ]
    values = torch.cat(outputs).reshape(len(image), len(members), *image.shape[-2:]).transpose(0, 1).numpy()
    values = window.put_back(values, volume.brain.shape) * volume.brain
    return Timed(values, (counted.images + last.images) // len(row), time.perf_counter() - started)


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble says of a volume, [Z, Y, X] each."""

    mask: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def combine(members: np.ndarray, *, threshold: float, vote: str) -> Ensemble:
    """Members [E, Z, Y, X] in 0..1 -> mask, mean and variance over members (ddof 0)."""
    mean, variance, mask = ops.ensemble_stats(torch.from_numpy(members), threshold, vote)
    return Ensemble(mask.numpy(), mean.numpy(), variance.numpy())


def build_diffusion(*, schedule: dict, codec: str, prediction: str) -> Diffusion:
    """A Diffusion from a profile's names: schedule {"name": ..., its arguments}, codec, prediction."""
    return Diffusion(build_schedule(**schedule), build_codec(codec), prediction)


def fast_precision(device: torch.device) -> str:
    """ "bf16-mixed" where the device computes bfloat16 in hardware, else "32-true"."""
    if device.type == "cuda":
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        hardware = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if hardware else "32-true"


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "segmenter": build_segmenter,
    "generator": build_generator,
    "one_step": build_segmenter,
    "denoiser": GuidedUNet,
}


def load_segmenter(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """A trained segmenter in eval mode, and its card."""
    return load_network(path, device, "segmenter")


def load_denoiser(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """A trained denoiser (averaged weights) in eval mode, and its card."""
    return load_network(path, device, "denoiser")


def load_network(path: Path, device: torch.device, *kinds: str) -> tuple[nn.Module, dict]:
    """A trained network of one of these kinds (keys of BUILDERS) in eval mode, and its card. ValueError for another."""
    tensors, card = read_weights(path)
    if card.get("kind") not in kinds:
        raise ValueError(f"{path}: holds a {card.get('kind')}, not a {' or '.join(kinds)}")
    try:
        network = BUILDERS[card["kind"]](**card["network"])
        network.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: weights and card do not fit together ({error})") from error
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False), card
