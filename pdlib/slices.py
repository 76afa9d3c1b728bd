"""Slices through networks and chains, whatever they are slices of: any number of classes, batched, counted, timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pdlib.noise import Streams
from pdlib.sampler import Chain, Diffusion, sample

OnBatch = Callable[[int], None]  # network calls on images just made


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


@dataclass(frozen=True)
class OneStep:
    """ADDPM's denoising network, which turns the state at index t_stop - 1 into the mask; mask_only hides the image."""

    network: nn.Module
    t_stop: int
    mask_only: bool

    def __call__(self, x: Tensor, classes: int) -> Tensor:
        """[N, image + classes, H, W] -> logits [N, classes, H, W]."""
        return self.network(x[:, -classes:] if self.mask_only else x)


@torch.inference_mode()
def draw_slices(
    network: nn.Module, image: Tensor, streams: Streams, *, batch_size: int, precision: str, on_batch: OnBatch
) -> Timed:
    """One draw of a segmenter or generator, its logits or states: image [N, in, H, W], N streams -> [N, C, H, W]."""
    started = time.perf_counter()
    device = next(network.parameters()).device
    counted = CountedCalls(network, precision, on_batch)
    outputs = [
        counted(image[part].to(device), streams[part].to(device)).cpu()
        for part in torch.arange(len(image)).split(batch_size)
    ]
    return Timed(torch.cat(outputs).numpy(), counted.images // len(image), time.perf_counter() - started)


@torch.inference_mode()
def sample_slices(
    network: nn.Module,
    image: Tensor,
    start: Tensor,
    streams: Streams,
    *,
    chain: Chain,
    diffusion: Diffusion,
    one_step: OneStep | None,
    batch_size: int,
    precision: str,
    on_batch: OnBatch,
) -> Timed:
    """Ensemble members of a chain, [E, N, C, H, W] float32 in 0..1, each by its own stream whatever the batch size.

    Args:
        image: [N, in, H, W].
        start: what the chain starts from, [1, N, C, H, W] for all members or [E, N, C, H, W].
        streams: [E, N].
        one_step: the last network of a chain that stops before the end.
    """
    started = time.perf_counter()
    device = next(network.parameters()).device
    size, count = streams.keys.shape
    row, place = torch.cartesian_prod(torch.arange(count), torch.arange(size)).unbind(dim=1)
    counted = CountedCalls(network, precision, on_batch)
    last = CountedCalls(one_step, precision, on_batch)
    outputs = [
        sample(
            counted,
            image[row[part]].to(device),
            start[place[part] % len(start), row[part]].to(device),
            chain=chain,
            diffusion=diffusion,
            streams=streams[place[part], row[part]].to(device),
            refine=lambda x: torch.sigmoid(last(x, start.shape[2])),
        ).cpu()
        for part in torch.arange(len(row)).split(batch_size)
    ]
    values = torch.cat(outputs).unflatten(0, (count, size)).transpose(0, 1).numpy()
    return Timed(values, (counted.images + last.images) // len(row), time.perf_counter() - started)
