"""One reverse chain with a pluggable start and a pluggable finish: every diffusion row of Table 1.

| row          | start                              | finish                                                |
|--------------|------------------------------------|-------------------------------------------------------|
| vanilla DDPM | gaussian at index T - 1            | run_to_zero                                           |
| PD-DDPM      | preseg, diffused to T' - 1         | run_to_zero                                           |
| ES-DDPM      | preseg, a VAE's draw per member    | run_to_zero                                           |
| TDPM         | given: a GAN's draw of x at T' - 1 | run_to_zero                                           |
| ADDPM        | preseg, diffused to T' - 1         | one_step: stop at t_stop, one call of another network |
| x0 jump      | preseg, diffused to T' - 1         | x0_jump: predicted x_start after one call             |
| refiner      | mask: the preseg without noise     | one_step, and no call before it                       |

PD-DDPM is ES-DDPM (Lyu 2022) with a deterministic segmenter as generator: their chains are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pdlib.diffusion import formulas
from pdlib.diffusion.codec import Codec, build_codec
from pdlib.diffusion.rules import RULES, States
from pdlib.diffusion.schedule import Schedule, build_schedule, chain_indices, trailing_indices
from pdlib.diffusion.steps import Denoiser, network_call
from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.kernels.ops import check_choice

OnCall = Callable[[int], None]  # the number of rows of a network call just made
OnStep = Callable[[int, Tensor, Tensor], None]  # index, state after the step, predicted x_start


@dataclass(frozen=True)
class Diffusion:
    """What a denoiser is trained with, and therefore sampled with.

    Args:
        schedule: of the noise.
        codec: how masks are written into the chain.
        prediction: what the network predicts, one of formulas.PREDICTIONS.
    """

    schedule: Schedule
    codec: Codec
    prediction: str


def build_diffusion(*, schedule: dict, codec: str, prediction: str) -> Diffusion:
    """Build a Diffusion from a profile's values; schedule is {"name": ..., and its arguments}, codec a name."""
    return Diffusion(build_schedule(**schedule), build_codec(codec), prediction)


def gaussian_start(start: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """N(0, I) in the shape of the encoded start (vanilla DDPM). [N, C, H, W] -> x_t."""
    return noise.normal(streams, noise.START, *diffusion.codec.encode(start).shape[1:])


def preseg_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The pre-segmentation diffused to index (PD-DDPM, Section 2). {0, 1} [N, C, H, W] -> x_t of the same shape."""
    return formulas.q_sample_start(diffusion.codec.encode(preseg), index, streams, diffusion.schedule)


def mask_start(preseg: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The pre-segmentation without noise, for a network that refines it. {0, 1} [N, C, H, W] -> the chain's range."""
    return diffusion.codec.encode(preseg)


def given_start(state: Tensor, index: int, streams: Streams, diffusion: Diffusion) -> Tensor:
    """The state itself, which a generator has drawn for this index (TDPM, Zheng et al. 2022). [N, C, H, W]."""
    return state


STARTS = {"gaussian": gaussian_start, "preseg": preseg_start, "mask": mask_start, "given": given_start}
FINISHES = ("run_to_zero", "x0_jump", "one_step")
CONVENTIONS = ("consistent", "official")
SPACINGS = ("both_ends", "trailing")


@dataclass(frozen=True)
class Chain:
    """The recipe of one reverse chain.

    Args:
        start: a key of STARTS.
        finish: one of FINISHES.
        t_prime: COUNT of steps; the chain starts at index t_prime - 1.
        calls: COUNT of network calls, evenly spread over the indices (see `schedule.chain_indices`); 1 for an x0_jump.
        rule: how a step is made, a key of rules.RULES.
        eta: the noise level of "ddim" and "start_matched" (0 is deterministic, 1 the posterior's); the other rules
            ignore it.
        convention: "consistent" diffuses the start to index t_prime - 1, where the first call is made; "official" (the
            authors' code) diffuses it one step further and makes the first call at t_prime - 1 all the same.
        t_stop: the last index visited; above 0 only for a "one_step" finish.
        spacing: "both_ends" visits T' - 1 and t_stop and spreads the rest evenly between them; "trailing" takes equal
            strides from T' - 1 to the clean image (see `schedule.trailing_indices`).
    """

    start: str
    finish: str
    t_prime: int
    calls: int
    rule: str
    eta: float
    convention: str
    t_stop: int = 0
    spacing: str = "both_ends"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("start", self.start, tuple(STARTS)),
            ("finish", self.finish, FINISHES),
            ("rule", self.rule, tuple(RULES)),
            ("convention", self.convention, CONVENTIONS),
            ("spacing", self.spacing, SPACINGS),
        ):
            check_choice(name, value, known)
        if self.t_stop and self.finish != "one_step":
            raise ValueError(f"t_stop {self.t_stop}: only a chain that ends by one_step stops early, not {self.finish}")
        if self.finish == "x0_jump" and self.calls != 1:
            raise ValueError(f"calls {self.calls}: an x0_jump makes one call")
        if self.rule == "start_matched" and (self.start, self.convention) != ("preseg", "consistent"):
            raise ValueError(
                f"start {self.start}, {self.convention}: a start-matched chain starts from a pre-segmentation that is "
                "diffused to the index of its first call"
            )
        if self.spacing == "trailing" and self.t_stop:
            raise ValueError(f"t_stop {self.t_stop}: trailing indices end at the clean image")
        _ = self.indices  # raises for impossible counts

    @property
    def indices(self) -> tuple[int, ...]:
        """The visited indices, one network call at each; the first is t_prime - 1. Empty if t_stop = t_prime."""
        if self.spacing == "trailing":
            return trailing_indices(self.t_prime, self.calls)
        return chain_indices(self.t_prime, self.calls, self.t_stop)

    def start_index(self, schedule: Schedule) -> int:
        """The index that the start is diffused to."""
        last = schedule.steps - 1
        return min(self.t_prime, last) if self.convention == "official" else self.t_prime - 1


@dataclass(frozen=True)
class Sampler:
    """Draws ensemble members from a chain.

    Args:
        denoiser: maps the channel concat [image, x_t] and the indices [N] to [N, C, H, W]. With 2C output channels the
            second half chooses the variance of "ddpm" steps (Nichol & Dhariwal 2021, Eq. 15).
        diffusion: what the denoiser was trained with.
        chain: the recipe; ValueError where it has more steps than the schedule.
        refine: the last network of a chain that stops before the end (ADDPM): [N, image + C, H, W], whose last channels
            are the state at index t_stop - 1, to a mask in 0..1, [N, C, H, W].
        levels: of the rule "noise_level": [image, x_t] [N, image + C, H, W] to alphas_cumprod as it reads them, [N].
    """

    denoiser: Denoiser
    diffusion: Diffusion
    chain: Chain
    refine: Callable[[Tensor], Tensor] | None = None
    levels: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.chain.rule == "noise_level") != (self.levels is not None):
            raise ValueError(f"rule {self.chain.rule}: levels belong to the rule noise_level, and it needs them")
        if self.chain.t_prime > self.diffusion.schedule.steps:
            raise ValueError(
                f"t_prime {self.chain.t_prime} exceeds the schedule's {self.diffusion.schedule.steps} steps"
            )

    def sample(
        self,
        image: Tensor,
        start: Tensor,
        streams: Streams,
        on_call: OnCall | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """One member per row: start, reverse chain and finish. Returns masks in 0..1, [N, C, H, W].

        image is [N, in, H, W]; start is a mask in {0, 1} [N, C, H, W], or for the start "given" the state itself;
        streams holds one random stream per row. ValueError for a chain that stops early without `refine`.
        """
        if self.chain.t_stop and self.refine is None:
            raise ValueError(f"a chain that stops at t_stop {self.chain.t_stop} needs a network to refine its state")
        codec, index = self.diffusion.codec, self.chain.start_index(self.diffusion.schedule)
        x_t = STARTS[self.chain.start](start, index, streams, self.diffusion)
        seen = codec.image(image)
        if self.chain.rule == "start_matched":
            seen = torch.cat([seen, codec.encode(start)], dim=1)
        x = self.reverse_chain(seen, x_t, streams, on_call, on_step)
        return self.refine(torch.cat([image, x], dim=1)) if self.chain.t_stop else codec.decode(x)

    def reverse_chain(
        self,
        image: Tensor,
        x_t: Tensor,
        streams: Streams,
        on_call: OnCall | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Denoise x_t from index t_prime - 1 down to index t_stop - 1 (DDPM Algorithm 2; the algorithm of PD-DDPM).

        image is what the network sees beside the state: for the rule "start_matched" it ends in the pre-segmentation.
        on_call is called after each network call with its number of rows; on_step after each step with the index, the
        state after it and the x_start predicted in it. Returns the last state, [N, C, H, W]; for t_stop = 0 that is a
        mask in the codec's range, or what stands for one there.
        """
        indices, classes = self.chain.indices, x_t.shape[1]
        if not indices:
            return x_t
        # x is the network's input [image, x_t]; every step overwrites its last channels.
        x = torch.cat([image, x_t], dim=1).float().contiguous(memory_format=torch.channels_last)
        states = States(self, x, classes, streams)
        network, rule = network_call(self.denoiser, x, calls=len(indices)), RULES[self.chain.rule](states)
        for i in range(len(indices)):
            t = rule.index(i)
            # The network predicts eps (or v, or x_start) from image, x_t and t.
            output = network(x, t)
            if on_call is not None:
                on_call(len(x))
            x_start = states.pred_x_start(output, t) if on_step is not None else None
            # The rule makes the state at the next index of it.
            rule.step(output, i)
            if on_step is not None:
                on_step(indices[i], states.x_t.clone(), x_start)
        return states.x_t.clone(memory_format=torch.contiguous_format)
