"""One step of a chain over fixed buffers: a network call and a reverse step; on a GPU both are one CUDA graph."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pdlib.kernels import ops
from pdlib.kernels.noise import Streams
from pdlib.kernels.ops import StepTable
from pdlib.networks.guided_unet import PreparedDenoiser

GRAPHS = 4  # captured steps that a denoiser keeps, those of the shapes captured last
Denoise = Callable[[Tensor, Tensor], Tensor]  # ([N, image + C, H, W], [N] indices) -> [N, C or 2C, H, W]


@dataclass(frozen=True)
class Buffers:
    """What a step reads and writes.

    Args:
        x: the network's input [N, image + C, H, W], channels-last float32: the image, then the state.
        lines: [N] int32, the line of the table that comes next.
        table: of the chain's steps.
        streams: one random stream per row.
        classes: C.
    """

    x: Tensor
    lines: Tensor
    table: StepTable
    streams: Streams
    classes: int

    @property
    def state(self) -> Tensor:
        """x_t [N, C, H, W], a view."""
        return self.x[:, -self.classes :]

    @property
    def _tensors(self) -> list[Tensor]:
        own = [self.x, self.lines, self.table.indices, self.table.weights]
        return [*own, self.streams.keys, self.streams.slices, self.streams.members]

    def load(self, other: "Buffers") -> None:
        """Take the values of buffers of the same shapes."""
        for mine, theirs in zip(self._tensors, other._tensors, strict=True):
            mine.copy_(theirs)

    @property
    def kind(self) -> tuple:
        """Equal for buffers that one graph can serve."""
        return (self.classes, self.table.clamp, self.table.learns, *((one.shape, one.dtype) for one in self._tensors))


def ask(denoise: Denoise, buffers: Buffers) -> Tensor:
    """One network call at the index whose turn it is; what it said, [N, C or 2C, H, W]."""
    t = buffers.table.indices.index_select(0, buffers.lines)
    buffers.lines.add_(1)
    return denoise(buffers.x, t)


def advance(denoise: Denoise, buffers: Buffers) -> Tensor:
    """One network call and one step, in place; what the network said, [N, C or 2C, H, W]."""
    lines = buffers.lines.clone()
    output = ask(denoise, buffers)
    ops.reverse_step_(buffers.state, output, buffers.table, lines, buffers.streams)
    return output


def begin(denoise: Denoise, buffers: Buffers) -> tuple[Buffers, Callable[[], Tensor]]:
    """The buffers to look at and the function that takes the next step, as `advance` does.

    On a GPU a prepared denoiser's step is captured once for all chains of the same shapes, and replayed; where it
    cannot be captured, a warning says so and the steps are launched one kernel at a time.
    """
    if not (isinstance(denoise, PreparedDenoiser) and denoise.device.type == "cuda"):
        return buffers, lambda: advance(denoise, buffers)
    graphs, kind = denoise.graphs, buffers.kind
    if kind not in graphs:
        while len(graphs) >= GRAPHS:
            del graphs[next(iter(graphs))]
        graphs[kind] = _capture(denoise, buffers)
    captured = graphs[kind]
    if captured is None:
        return buffers, lambda: advance(denoise, buffers)
    graph, fixed, output = captured
    fixed.load(buffers)

    def replay() -> Tensor:
        graph.replay()
        return output

    return fixed, replay


def _capture(denoise: PreparedDenoiser, buffers: Buffers) -> tuple[torch.cuda.CUDAGraph, Buffers, Tensor] | None:
    fixed = _copy(buffers)
    try:
        graph = torch.cuda.CUDAGraph()
        if denoise.pool is None:
            denoise.pool = torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            advance(denoise, fixed)  # compiles kernels and chooses convolutions, which a capture must not
            fixed.lines.zero_()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph, pool=denoise.pool):
            output = advance(denoise, fixed)
    except RuntimeError as error:
        warnings.warn(f"no CUDA graph, so every kernel is launched by itself: {error}", RuntimeWarning, stacklevel=2)
        return None
    return graph, fixed, output


@torch.inference_mode(False)  # for chains in and out of it
def _copy(buffers: Buffers) -> Buffers:
    x, lines, indices, weights, *streams = (one.clone() for one in buffers._tensors)
    return replace(
        buffers,
        x=x,
        lines=lines,
        table=replace(buffers.table, indices=indices, weights=weights),
        streams=Streams(*streams),
    )
