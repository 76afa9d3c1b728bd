"""One reverse chain with a pluggable start and a pluggable finish: every diffusion row of Table 1.

| row          | start                      | finish                                   |
|--------------|----------------------------|------------------------------------------|
| vanilla DDPM | gaussian at index T - 1    | run_to_zero                              |
| PD-DDPM      | preseg, diffused to T' - 1 | run_to_zero                              |
| x0 jump      | preseg, diffused to T' - 1 | x0_jump: predicted x_start after one call |

ES-DDPM (Lyu 2022) is the preseg start with a draw of a generative model in the segmenter's place: one line apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib import noise, ops
from pdlib.codec import MaskCodec
from pdlib.noise import Streams
from pdlib.schedule import Schedule, chain_indices

Denoise = Callable[[Tensor, Tensor], Tensor]  # ([N, 3, H, W], [N] indices) -> [N, 1, H, W]
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
        stride: visit every stride-th index only (1 visits all).
        step: "ddpm" (ancestral) or "ddim".
        eta: DDIM's noise level, unused by ddpm.
        convention: "consistent" diffuses the start to index t_prime - 1, where the first call is made;
            "official" (the authors' code) diffuses it one step further and denoises from t_prime - 1 all the same.
    """

    start: str
    finish: str
    t_prime: int
    stride: int
    step: str
    eta: float
    convention: str

    def __post_init__(self) -> None:
        for name, value, known in (
            ("start", self.start, STARTS),
            ("finish", self.finish, FINISHES),
            ("step", self.step, ("ddpm", "ddim")),
            ("convention", self.convention, ("consistent", "official")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}: choose one of {sorted(known)}")

    @property
    def indices(self) -> tuple[int, ...]:
        """Visited indices, first t_prime - 1."""
        return FINISHES[self.finish](self.t_prime, self.stride)

    def start_index(self, schedule: Schedule) -> int:
        """The index to which a start is diffused."""
        return min(self.t_prime - (self.convention == "consistent"), schedule.steps - 1)


def gaussian_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """x_t ~ N(0, I), whatever the pre-segmentation (vanilla DDPM; Wolleb et al. 2021). [N, 1, H, W] -> the same."""
    return noise.normal(streams, noise.START, *preseg.shape[1:])


def preseg_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The pre-segmentation diffused to index (PD-DDPM, Section 2). {0, 1} [N, 1, H, W] -> x_t of the same shape."""
    fresh = noise.normal(streams, noise.START, *preseg.shape[1:])
    return ops.q_sample(diffusion.codec.encode(preseg), index, fresh, diffusion.schedule)


STARTS = {"gaussian": gaussian_start, "preseg": preseg_start}
FINISHES = {"run_to_zero": chain_indices, "x0_jump": lambda t_prime, stride: (t_prime - 1,)}


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
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise x_t along indices, one network call each, down to the clean mask (PD-DDPM Algorithm; DDPM Algorithm 2).

    Args:
        denoise: the network; sees the channel concat [image, x_t] and the index.
        image: [N, 2, H, W].
        x_t: [N, 1, H, W], the state at indices[0].
        indices: descending; the last step always arrives at the clean mask.
        streams: one random stream per row.
        on_step: called after each step with (index, state, predicted x_start).

    Returns:
        [N, 1, H, W] in the codec's range.
    """
    for t, t_prev in zip(indices, [*indices[1:], -1], strict=True):
        output = denoise(torch.cat([image, x_t], dim=1), torch.full((len(x_t),), t, device=x_t.device))
        x_start = ops.predict_x_start(
            diffusion.prediction, output.float(), x_t, t, diffusion.schedule, diffusion.codec.clamp
        )
        fresh = noise.normal(streams, t, *x_t.shape[1:])
        if step == "ddpm":
            x_t = ops.p_sample(x_start, x_t, t, t_prev, fresh, diffusion.schedule)
        else:
            x_t = ops.ddim_sample(x_start, x_t, t, t_prev, fresh, diffusion.schedule, eta)
        if on_step is not None:
            on_step(t, x_t, x_start)
    return x_t


def sample(
    denoise: Denoise,
    image: Tensor,
    preseg: Tensor,
    *,
    chain: Chain,
    diffusion: Diffusion,
    streams: Streams,
    on_step: OnStep | None = None,
) -> Tensor:
    """Start, chain and finish of one row: image [N, 2, H, W], preseg {0, 1} [N, 1, H, W] -> 0..1 [N, 1, H, W]."""
    if chain.t_prime > diffusion.schedule.steps:
        raise ValueError(f"t_prime {chain.t_prime} exceeds the schedule's {diffusion.schedule.steps} steps")
    x_t = STARTS[chain.start](preseg, chain.start_index(diffusion.schedule), streams, diffusion)
    x_0 = reverse_chain(
        denoise,
        image,
        x_t,
        diffusion=diffusion,
        indices=chain.indices,
        streams=streams,
        step=chain.step,
        eta=chain.eta,
        on_step=on_step,
    )
    return diffusion.codec.decode(x_0)
