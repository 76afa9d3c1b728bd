"""How a chain calls its network: directly, or on a GPU by replaying a CUDA graph of the call.

Launching the hundreds of kernels of a network call one by one can take the CPU longer than the GPU needs to compute
them. A CUDA graph records the launches of one call and repeats them all at once. Recording (the capture) takes about as
long as some calls, so a chain of few calls does without. A graph serves one shape of input; the number of rows is
rounded up to one of few bucket sizes, so that subjects with different numbers of slices share a graph.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.networks.prepared import PreparedDenoiser

CAPTURE_FROM = 8  # calls of a chain from which on a capture pays
GRAPHS = 16  # that a denoiser keeps, the most recently captured ones
Denoiser = Callable[[Tensor, Tensor], Tensor]  # ([N, image + C, H, W], [N] indices) -> [N, C or 2C, H, W]


def bucket(rows: int) -> int:
    """The smallest bucket that holds `rows`: 1, 2, .. 16, 18, .. 32, 36, .. 64, 72, ..; at most an eighth more."""
    width = 2 ** max((rows - 1).bit_length() - 4, 0)
    return -(-rows // width) * width


def bucket_below(rows: int) -> int:
    """The largest bucket that `rows` rows fill."""
    width = 2 ** max(rows.bit_length() - 4, 0)
    return rows // width * width


@dataclass(frozen=True)
class CapturedCall:
    """A CUDA graph of one network call; called like the network, with as many rows as its bucket or fewer.

    Args:
        graph: reads x and t, writes output.
        x: [bucket, image + C, H, W] channels-last float32. Rows beyond those of a call keep old values.
        t: [bucket] int32 indices.
        output: [bucket, C or 2C, H, W]; the next call overwrites it.
    """

    graph: "torch.cuda.CUDAGraph"
    x: Tensor
    t: Tensor
    output: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """As the network: [N, image + C, H, W], [N] -> [N, C or 2C, H, W], valid until the next call."""
        rows = len(x)
        self.x[:rows].copy_(x)
        self.t[:rows].copy_(t)
        self.graph.replay()
        return self.output[:rows]


def network_call(denoiser: Denoiser, x: Tensor, calls: int) -> Denoiser:
    """What a chain of so many calls on inputs shaped like x [N, image + C, H, W] calls instead of the denoiser.

    On a GPU a prepared denoiser's call is captured, once per shape; if that fails, a warning names the cause and the
    denoiser itself is called. torch.OutOfMemoryError where a capture does not fit the memory, even as the only graph.
    """
    if not (isinstance(denoiser, PreparedDenoiser) and denoiser.device.type == "cuda"):
        return denoiser
    graphs, shape = denoiser.graphs, (bucket(len(x)), *x.shape[1:])
    if shape not in graphs:
        if calls < CAPTURE_FROM:
            return denoiser
        while len(graphs) >= GRAPHS:
            del graphs[next(iter(graphs))]
        graphs[shape] = capture(denoiser, shape)
    return graphs[shape] or denoiser


def capture(denoiser: PreparedDenoiser, shape: tuple[int, ...]) -> CapturedCall | None:
    """Capture a call on inputs of this shape; None, with a warning, where CUDA cannot."""
    try:
        return _capture(denoiser, shape)
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or isinstance(error.__context__, torch.OutOfMemoryError)
        if full and not denoiser.graphs:
            raise torch.OutOfMemoryError(f"capturing a network call on {shape[0]} rows: {error}") from error
        if not full:
            why = f"no CUDA graph, so every kernel is launched by itself: {error}"
            warnings.warn(why, RuntimeWarning, stacklevel=2)
            return None
    denoiser.graphs.clear()  # the graphs of other shapes hold memory
    torch.cuda.empty_cache()
    return capture(denoiser, shape)


@torch.inference_mode(False)  # the buffers serve chains in and out of it
def _buffers(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    return x, torch.zeros(shape[0], dtype=torch.int32, device=device)


@torch.no_grad()
def _capture(denoiser: PreparedDenoiser, shape: tuple[int, ...]) -> CapturedCall:
    graph = torch.cuda.CUDAGraph()
    x, t = _buffers(shape, denoiser.device)
    if denoiser.pool is None:
        denoiser.pool = torch.cuda.graph_pool_handle()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        denoiser(x, t)  # compiles kernels and chooses convolution algorithms, which is impossible during a capture
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph, pool=denoiser.pool):
        output = denoiser(x, t)
    return CapturedCall(graph, x, t, output)
