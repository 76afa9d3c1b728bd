"""Batches of images through networks and chains: split to fit the memory, counted and timed.

The images may be slices or photographs, with any number of classes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from pdlib.diffusion.codec import Codec
from pdlib.diffusion.latent import LatentCodec
from pdlib.diffusion.sampler import Chain, Sampler
from pdlib.diffusion.steps import CAPTURE_FROM, bucket, bucket_below
from pdlib.inference.precision import Compute
from pdlib.kernels.noise import Streams
from pdlib.networks.prepared import PreparedDenoiser

MEMORY_SHARE = 0.8  # of a GPU's free memory that a batch may take
OnBatch = Callable[[int], None]  # images that a network was just called on; negative if a batch has to be repeated


class Calls:
    """Counts the images that networks are called on; the numbers of network calls in the tables come from here."""

    def __init__(self, on_batch: OnBatch):
        self.on_batch, self.images = on_batch, 0

    def __call__(self, images: int) -> None:
        self.images += images
        self.on_batch(images)

    def back_to(self, images: int) -> None:
        """Forget the calls made since the count was `images`: they will be made again."""
        if images != self.images:
            self(images - self.images)


@dataclass(frozen=True)
class Timed:
    """A prediction and its cost: network calls per image (and member, if there are several), and seconds in all."""

    values: np.ndarray
    calls: int
    seconds: float


@dataclass(frozen=True)
class Refine:
    """ADDPM's last network, which predicts the mask from the state at index t_stop - 1.

    Args:
        network: from [N, image + C, H, W], or [N, C, H, W] if mask_only, to logits [N, C, H, W].
        t_stop: that of the chain.
        mask_only: whether the network sees the state without the image.
    """

    network: nn.Module
    t_stop: int
    mask_only: bool

    def __call__(self, x: Tensor, classes: int) -> Tensor:
        """[N, image + classes, H, W] -> logits [N, classes, H, W]."""
        return self.network(x[:, -classes:] if self.mask_only else x)


@torch.inference_mode()
def draw_slices(network: nn.Module, image: Tensor, streams: Streams, compute: Compute, on_batch: OnBatch) -> Timed:
    """One draw of a segmenter or generator for each image: its logits or states, [N, C, H, W] float32.

    image: [N, in, H, W]; streams: N random streams.
    """
    calls = Calls(on_batch)

    def draw(part: Tensor, calls: OnBatch) -> Tensor:
        return _call(network, compute, calls, image[part].to(compute.device), streams[part].to(compute.device))

    def warm_up(part: Tensor) -> None:
        _once(network, (len(part), *image.shape[1:]), lambda: draw(part, silent))

    values, seconds = _in_batches(draw, warm_up, len(image), compute, calls)
    return Timed(values.numpy(), calls.images // len(image), seconds)


@torch.inference_mode()
def sample_slices(
    sampler: Sampler, image: Tensor, start: Tensor, streams: Streams, compute: Compute, on_batch: OnBatch
) -> Timed:
    """Ensemble members of a chain for each image, [E, N, C, H, W] float32 in 0..1.

    Each member depends on its own stream, whatever the batch size (up to rounding).

    Args:
        sampler: with a `Refine` if its chain stops early, and a denoiser on the device of compute.
        image: [N, in, H, W].
        start: what the chain starts from, [1, N, C, H, W] for all members or [E, N, C, H, W].
        streams: [E, N].
        compute: its precision is that of the last network and of an auto-encoder, each of whose halves counts as a
            network call; the denoiser was prepared for its own. Levels are estimated in float32, each a call as well.
    """
    members, count = streams.keys.shape
    row, member = torch.cartesian_prod(torch.arange(count), torch.arange(members)).unbind(dim=1)
    calls, device, exact = Calls(on_batch), compute.device, replace(compute, precision="32-true")

    def draw(part: Tensor, calls: OnBatch, chain: Chain = sampler.chain) -> Tensor:
        refine = _refined(sampler.refine, start.shape[2], compute, calls)
        diffusion = replace(sampler.diffusion, codec=counted(sampler.diffusion.codec, compute, calls))
        levels = sampler.levels and partial(_call, sampler.levels, exact, calls)
        one = replace(sampler, diffusion=diffusion, chain=chain, refine=refine, levels=levels)
        begun = start[member[part] % len(start), row[part]].to(device)
        own = streams[member[part], row[part]].to(device)
        return one.sample(image[row[part]].to(device), begun, own, on_call=calls)

    def warm_up(part: Tensor) -> None:
        short = replace(sampler.chain, calls=min(sampler.chain.calls, CAPTURE_FROM))
        key = (bucket(len(part)), *image.shape[1:], short.calls)
        _once(sampler.denoiser, key, lambda: draw(part, silent, short))

    if device.type == "cuda" and isinstance(sampler.denoiser, PreparedDenoiser):
        fit = _rows_that_fit(sampler.denoiser, _first_row(sampler, image[:1].to(device), start[0, :1].to(device)))
        compute = replace(compute, batch_size=bucket_below(min(compute.batch_size, fit)))
    values, seconds = _in_batches(draw, warm_up, len(row), compute, calls)
    values = values.unflatten(0, (count, members)).transpose(0, 1).numpy()
    return Timed(values, calls.images // len(row), seconds)


def _call(network: Callable[..., Tensor], compute: Compute, on_call: OnBatch, x: Tensor, *arguments) -> Tensor:
    """Call a network other than the denoiser on a batch [N, in, H, W] in compute's precision; float32 result."""
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=compute.precision == "bf16-mixed"):
        output = network(x, *arguments)
    on_call(len(x))
    return output.float()


def _refined(refine: Refine | None, classes: int, compute: Compute, calls: OnBatch) -> Callable | None:
    """What `Sampler` takes as refine: from [N, image + classes, H, W] to a mask in 0..1, counted as a call."""
    if refine is None:
        return None
    return lambda x: torch.sigmoid(_call(refine, compute, calls, x, classes))


def counted(codec: Codec, compute: Compute, on_call: OnBatch) -> Codec:
    """A codec whose networks, where it has any, run in compute's precision; each call of one is counted."""
    if not isinstance(codec, LatentCodec):
        return codec
    encoder, decoder = (partial(_call, half, compute, on_call) for half in (codec.encoder, codec.decoder))
    return replace(codec, encoder=encoder, decoder=decoder)


def _in_batches(
    draw: Callable[[Tensor, OnBatch], Tensor],
    warm_up: Callable[[Tensor], None],
    rows: int,
    compute: Compute,
    calls: Calls,
) -> tuple[Tensor, float]:
    """Draw rows 0 to rows - 1 in batches; returns the joined results on the CPU, and the seconds spent.

    A batch that does not fit the memory is repeated in halves, and so are those after it; its calls and seconds do not
    count. On a GPU the batches are made equally large, and warm_up runs before the clock starts, so that compiling
    kernels and capturing graphs is not part of the seconds. torch.OutOfMemoryError where one row does not fit.

    Args:
        draw: takes the numbers of its rows, and what to call after each network call.
        warm_up: takes the numbers of the rows that come next.
    """
    size = compute.batch_size
    if compute.device.type == "cuda":
        size = math.ceil(rows / math.ceil(rows / size))
    outputs, seconds, done = [], 0.0, 0
    while done < rows:
        part, counted = torch.arange(done, min(done + size, rows)), calls.images
        try:
            if compute.device.type == "cuda":
                warm_up(part)
            started = time.perf_counter()
            outputs.append(draw(part, calls).cpu())  # copying to the CPU waits for the device
            seconds += time.perf_counter() - started
            done += len(part)
            continue
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        # Here, after the except clause, the tensors of the failed batch are free.
        calls.back_to(counted)
        size = math.ceil(len(part) / 2)
        torch.cuda.empty_cache()
    return torch.cat(outputs), seconds


_WARM: WeakKeyDictionary[object, set[tuple]] = WeakKeyDictionary()  # what each network has been run on


def _once(network: object, key: tuple, run: Callable[[], Tensor]) -> None:
    """Run a network to the end, unless it has run under this key before."""
    known = _WARM.setdefault(network, set())
    if key not in known:
        run().cpu()
        known.add(key)


def silent(images: int) -> None:
    """Take network calls on images, and show no progress."""


def _first_row(sampler: Sampler, image: Tensor, start: Tensor) -> Tensor:
    """A row of the denoiser's input, [1, image + C, h, w], with nothing diffused: it serves for its shape."""
    codec = sampler.diffusion.codec
    state = start if sampler.chain.start == "given" else codec.encode(start)
    beside = [state] if sampler.chain.rule == "start_matched" else []
    return torch.cat([codec.image(image), *beside, state], dim=1)


def _rows_that_fit(denoiser: PreparedDenoiser, row: Tensor) -> int:
    """Rows that a GPU has memory for in a network call, judged once per shape by a call on one, [1, in + C, H, W]."""
    if row.shape not in denoiser.rows:
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        graphs = torch.cuda.memory_reserved() - held  # memory of captured calls, which others may use
        free = torch.cuda.mem_get_info()[0] + graphs
        torch.cuda.reset_peak_memory_stats()
        denoiser(row, torch.zeros(1, dtype=torch.int32, device=row.device))
        needed = torch.cuda.max_memory_allocated() - held
        denoiser.rows[row.shape] = max(1, int(MEMORY_SHARE * free / needed))
    return denoiser.rows[row.shape]
