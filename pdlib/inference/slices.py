"""Slices through networks and chains, whatever they are slices of: any number of classes, batched, counted, timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pdlib.diffusion.sampler import Chain, Diffusion, sample
from pdlib.kernels.noise import Streams
from pdlib.networks.guided_unet import PreparedDenoiser

MEMORY_SHARE = 0.8  # of a GPU's free memory that a batch may take
OnBatch = Callable[[int], None]  # network calls on images just made


class Calls:
    """Counts the images that networks were called on: the numbers of network calls in the tables come from here."""

    def __init__(self, on_batch: OnBatch):
        self.on_batch, self.images = on_batch, 0

    def __call__(self, images: int) -> None:
        self.images += images
        self.on_batch(images)


def call(network: Callable[..., Tensor], precision: str, on_call: OnBatch, x: Tensor, *arguments) -> Tensor:
    """A segmenter, generator or last network on a batch [N, in, H, W], in this precision; float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        output = network(x, *arguments)
    on_call(len(x))
    return output.float()


@dataclass(frozen=True)
class Timed:
    """A prediction with its cost: network calls per image (and member, of several) and the seconds spent."""

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
    calls = Calls(on_batch)
    outputs = [
        call(network, precision, calls, image[part].to(device), streams[part].to(device)).cpu()
        for part in torch.arange(len(image)).split(batch_size)
    ]
    return Timed(torch.cat(outputs).numpy(), calls.images // len(image), time.perf_counter() - started)


@torch.inference_mode()
def sample_slices(
    denoise: PreparedDenoiser,
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
        batch_size: of members times slices, at most; fewer where a GPU's free memory holds no more.
        image: [N, in, H, W].
        start: what the chain starts from, [1, N, C, H, W] for all members or [E, N, C, H, W].
        streams: [E, N].
        one_step: the last network of a chain that stops before the end.
        precision: of the last network; a denoiser has been prepared for its own.
    """
    started = time.perf_counter()
    size, count = streams.keys.shape
    row, place = torch.cartesian_prod(torch.arange(count), torch.arange(size)).unbind(dim=1)
    device = denoise.device
    if device.type == "cuda":
        batch_size = min(batch_size, _rows_that_fit(denoise, torch.cat([image[:1], start[0, :1]], dim=1).to(device)))
    calls = Calls(on_batch)

    def finish(x: Tensor) -> Tensor:
        return torch.sigmoid(call(one_step, precision, calls, x, start.shape[2]))

    outputs = [
        sample(
            denoise,
            image[row[part]].to(device),
            start[place[part] % len(start), row[part]].to(device),
            chain=chain,
            diffusion=diffusion,
            streams=streams[place[part], row[part]].to(device),
            refine=finish if one_step else None,
            on_call=calls,
        ).cpu()
        for part in torch.arange(len(row)).split(batch_size)
    ]
    values = torch.cat(outputs).unflatten(0, (count, size)).transpose(0, 1).numpy()
    return Timed(values, calls.images // len(row), time.perf_counter() - started)


def _rows_that_fit(denoise: PreparedDenoiser, row: Tensor) -> int:
    """Rows that a network call on a GPU has memory for, judged once by a call on one row [1, in + C, H, W]."""
    if row.shape not in denoise.rows:
        torch.cuda.empty_cache()
        free, held = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        denoise(row, torch.zeros(1, dtype=torch.int32, device=row.device))
        needed = torch.cuda.max_memory_allocated() - held
        denoise.rows[row.shape] = max(1, int(MEMORY_SHARE * free / needed))
    return denoise.rows[row.shape]
