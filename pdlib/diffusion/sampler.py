"""One reverse chain with a pluggable start and a pluggable finish: every diffusion row of Table 1.

| row          | start                              | finish                                             |
|--------------|------------------------------------|----------------------------------------------------|
| vanilla DDPM | gaussian at index T - 1            | run_to_zero                                        |
| PD-DDPM      | preseg, diffused to T' - 1         | run_to_zero                                        |
| ES-DDPM      | preseg, a VAE's draw a member      | run_to_zero                                        |
| TDPM         | given: a GAN's draw of x at T' - 1 | run_to_zero                                        |
| ADDPM        | preseg, diffused to T' - 1         | one_step: stop at t_stop, one call of another network |
| x0 jump      | preseg, diffused to T' - 1         | x0_jump: predicted x_start after one call          |

PD-DDPM is ES-DDPM (Lyu 2022) with a deterministic segmenter for the generator: the chains differ in that word alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.diffusion.codec import MaskCodec
from pdlib.diffusion.schedule import Schedule, chain_indices
from pdlib.diffusion.steps import Buffers, Denoise, ask, begin
from pdlib.kernels import noise, ops
from pdlib.kernels.noise import Streams

Refine = Callable[[Tensor], Tensor]  # [N, image + C, H, W], x at index t_stop - 1 -> 0..1 [N, C, H, W]
OnCall = Callable[[int], None]  # rows that the network was just called on
OnStep = Callable[[int, Tensor, Tensor], None]  # (index, state after the step, predicted x_start)


@dataclass(frozen=True)
class Diffusion:
    """What a denoiser was trained with, and so is sampled with: schedule, mask codec, meaning of its output."""

    schedule: Schedule
    codec: MaskCodec
    prediction: str


@dataclass(frozen=True)
class Chain:
    """One row's recipe.

    Args:
        start: a key of STARTS.
        finish: a key of FINISHES.
        t_prime: COUNT of steps; the chain starts at index t_prime - 1.
        stride: visit about every stride-th index, evenly spaced, first and last among them (1 visits all).
        step: "ddpm" (ancestral), "ddim" or "dpm_solver" (DPM-Solver++(2M), deterministic).
        eta: DDIM's noise level, unused by the others.
        convention: "consistent" diffuses the start to index t_prime - 1, where the first call is made;
            "official" (the authors' code) diffuses it one step further and denoises from t_prime - 1 all the same.
        t_stop: where a "one_step" finish leaves the chain: the last index visited, 0 for one that goes to the end.
    """

    start: str
    finish: str
    t_prime: int
    stride: int
    step: str
    eta: float
    convention: str
    t_stop: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("start", self.start, STARTS),
            ("finish", self.finish, FINISHES),
            ("step", self.step, STEPS),
            ("convention", self.convention, ("consistent", "official")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {sorted(known)}")
        if self.t_stop and self.finish != "one_step":
            raise ValueError(f"t_stop {self.t_stop}: a chain that ends by {self.finish} does not stop before")

    @property
    def indices(self) -> tuple[int, ...]:
        """Visited indices, first t_prime - 1; none where the chain stops at its start."""
        return FINISHES[self.finish](self)

    def start_index(self, schedule: Schedule) -> int:
        """The index to which a start is diffused."""
        return min(self.t_prime - (self.convention == "consistent"), schedule.steps - 1)


def gaussian_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """x_t ~ N(0, I), whatever the pre-segmentation (vanilla DDPM; Wolleb et al. 2021). [N, C, H, W] -> the same."""
    return noise.normal(streams, noise.START, *preseg.shape[1:])


def preseg_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The pre-segmentation diffused to index (PD-DDPM, Section 2). {0, 1} [N, C, H, W] -> x_t of the same shape."""
    return ops.q_sample_start(diffusion.codec.encode(preseg), index, streams, diffusion.schedule)


def given_start(state: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The state itself, drawn by a generator of x at this index (TDPM, Zheng et al. 2022). [N, C, H, W] -> the same."""
    return state


STARTS = {"gaussian": gaussian_start, "preseg": preseg_start, "given": given_start}
STEPS = ("ddpm", "ddim", "dpm_solver")
FINISHES = {
    "run_to_zero": lambda chain: chain_indices(chain.t_prime, chain.stride),
    "x0_jump": lambda chain: (chain.t_prime - 1,),
    "one_step": lambda chain: chain_indices(chain.t_prime, chain.stride, chain.t_stop),
}


def reverse_chain(
    denoise: Denoise,
    image: Tensor,
    x_t: Tensor,
    *,
    diffusion: Diffusion,
    indices: Sequence[int],
    streams: Streams,
    step: str,
    eta: float,
    t_stop: int = 0,
    on_call: OnCall | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise x_t along indices, one network call each, down to index t_stop - 1 (PD-DDPM Algorithm; DDPM Algorithm 2).

    Args:
        denoise: the network; sees the channel concat [image, x_t] and the index. One with 2C channels says in the
            second half how large an ancestral step's variance is (Nichol & Dhariwal 2021, Eq. 15).
        image: [N, 2, H, W], or whatever the network was trained on.
        x_t: [N, C, H, W], the state at indices[0].
        indices: descending; the last step arrives at index t_stop - 1, which for 0 is the clean mask.
        streams: one random stream per row.
        on_call: called after each network call with the number of rows it was made on.
        on_step: called after each step with (index, state, predicted x_start).

    Returns:
        [N, C, H, W]; a clean mask is in the codec's range.
    """
    if step not in STEPS:
        raise ValueError(f"unknown step {step!r}: choose one of {list(STEPS)}")
    if not indices:
        return x_t
    schedule, clamp = diffusion.schedule, diffusion.codec.clamp
    pairs = list(zip(indices, [*indices[1:], t_stop - 1], strict=True))
    weighted = "ddim" if step == "dpm_solver" else step
    table = ops.step_table(
        schedule, pairs, prediction=diffusion.prediction, step=weighted, eta=eta, clamp=clamp, device=x_t.device
    )
    seen = torch.cat([image, x_t], dim=1).float().contiguous(memory_format=torch.channels_last)
    lines = torch.zeros(len(x_t), dtype=torch.int32, device=x_t.device)
    buffers = Buffers(seen, lines, table, streams, x_t.shape[1])
    solver, before = step == "dpm_solver", None
    buffers, advance = (buffers, lambda: ask(denoise, buffers)) if solver else begin(denoise, buffers)
    for t, t_prev in pairs:
        x_t = buffers.state.clone() if solver or on_step is not None else None
        output = advance()
        if on_call is not None:
            on_call(len(output))
        if x_t is None:
            continue
        predicted = output[:, : x_t.shape[1]]
        x_start = ops.predict_x_start(diffusion.prediction, predicted, x_t, t, schedule, clamp)
        if solver:
            buffers.state.copy_(ops.dpm_solver_sample(x_start, before, x_t, t, t_prev, schedule))
            before = (t, x_start)
        if on_step is not None:
            on_step(t, buffers.state.clone(), x_start)
    return buffers.state.clone(memory_format=torch.contiguous_format)


def sample(
    denoise: Denoise,
    image: Tensor,
    preseg: Tensor,
    *,
    chain: Chain,
    diffusion: Diffusion,
    streams: Streams,
    refine: Refine | None = None,
    on_call: OnCall | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Start, chain and finish of one row: image [N, 2, H, W], preseg [N, C, H, W] -> 0..1 [N, C, H, W].

    preseg is what the start takes: a mask in {0, 1}, or for "given" the state itself. refine is the network of a
    "one_step" finish; one that stops at 0 has nothing left to do and is never called. ValueError where it is missing.
    """
    if chain.t_stop and refine is None:
        raise ValueError("a chain that stops before the end needs the network that goes on from there")
    if chain.t_prime > diffusion.schedule.steps:
        raise ValueError(f"t_prime {chain.t_prime} exceeds the schedule's {diffusion.schedule.steps} steps")
    x_t = STARTS[chain.start](preseg, chain.start_index(diffusion.schedule), streams, diffusion)
    x = reverse_chain(
        denoise,
        image,
        x_t,
        diffusion=diffusion,
        indices=chain.indices,
        streams=streams,
        step=chain.step,
        eta=chain.eta,
        t_stop=chain.t_stop,
        on_call=on_call,
        on_step=on_step,
    )
    return refine(torch.cat([image, x], dim=1)) if chain.t_stop else diffusion.codec.decode(x)
