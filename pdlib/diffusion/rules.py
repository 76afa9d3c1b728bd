"""How a chain steps: for each call the index of the states, and what the next states are made of.

A rule is bound to the states of one chain. `index(i)` gives the index at which call i finds each row; `step(output, i)`
replaces the states by those at the next index.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pdlib.diffusion import formulas, levels
from pdlib.kernels import noise, ops
from pdlib.kernels.noise import Streams
from pdlib.kernels.ops import StepTable

if TYPE_CHECKING:
    from pdlib.diffusion.sampler import Sampler


class Rule(Protocol):
    """See the module."""

    def index(self, i: int) -> Tensor:
        """The index of each row's state before call i, [N] int32 on the states' device."""

    def step(self, output: Tensor, i: int) -> None:
        """Replace the states by the next ones, made of the network's output [N, C or 2C, H, W] of call i."""


@dataclass(frozen=True)
class States:
    """The states of a chain and what their steps depend on.

    Args:
        sampler: whose chain it is.
        x: the network's input [N, image + C, H, W]; a step overwrites its last channels, the states.
        classes: C.
        streams: one random stream a row.
    """

    sampler: "Sampler"
    x: Tensor
    classes: int
    streams: Streams

    @property
    def x_t(self) -> Tensor:
        """The states, a view of x."""
        return self.x[:, -self.classes :]

    def planned(self, i: int) -> Tensor:
        """The chain's own index of call i, the same for all rows, [N] int32."""
        index = self.sampler.chain.indices[i]
        return torch.full((len(self.x),), index, dtype=torch.int32, device=self.x.device)

    def arrival(self, i: int) -> int:
        """The index that the step of call i arrives at; -1 is the clean image."""
        chain = self.sampler.chain
        return [*chain.indices[1:], chain.t_stop - 1][i]

    def pred_x_start(self, output: Tensor, t: int | Tensor) -> Tensor:
        """x_start as the network's output says, clamped."""
        diffusion, x_t = self.sampler.diffusion, self.x_t
        output = output[:, : self.classes]
        return formulas.predict_x_start(diffusion.prediction, output, x_t, t, diffusion.schedule, diffusion.codec.clamp)


@dataclass(frozen=True)
class WeightedSum:
    """The ancestral step and DDIM: the next state is a weighted sum of x_start, x_t and noise."""

    states: States
    table: StepTable

    @classmethod
    def of(cls, states: States) -> "Rule":
        """Of a logit the next state is no weighted sum, and DDIM goes through x_start; ValueError for another rule."""
        sampler, chain = states.sampler, states.sampler.chain
        if sampler.diffusion.prediction == formulas.LOGIT:
            if chain.rule != "ddim":
                raise ValueError(f"rule {chain.rule}: a network that predicts a logit steps by ddim")
            return ThroughXStart(states)
        where = states.x.device
        table = formulas.step_table(sampler.diffusion, chain.indices, chain.t_stop, chain.rule, chain.eta, where)
        return cls(states, table)

    def index(self, i: int) -> Tensor:
        return self.states.planned(i)

    def step(self, output: Tensor, i: int) -> None:
        states = self.states
        rows = torch.full((len(states.x),), i, dtype=torch.int32, device=states.x.device)
        ops.reverse_step_(states.x_t, output, self.table, rows, states.streams)


@dataclass
class DpmSolver:
    """DPM-Solver++(2M): the prediction of the step before enters as well."""

    states: States
    before: tuple[int, Tensor] | None = None  # index and predicted x_start of the last step

    def index(self, i: int) -> Tensor:
        return self.states.planned(i)

    def step(self, output: Tensor, i: int) -> None:
        states, t = self.states, self.states.sampler.chain.indices[i]
        x_start, schedule = states.pred_x_start(output, t), states.sampler.diffusion.schedule
        x_s = formulas.dpm_solver_step(x_start, self.before, states.x_t, t, states.arrival(i), schedule)
        states.x_t.copy_(x_s)
        self.before = t, x_start


@dataclass(frozen=True)
class ThroughXStart:
    """DDIM by way of the predicted x_start, for a network whose output is no part of a weighted sum."""

    states: States

    def index(self, i: int) -> Tensor:
        return self.states.planned(i)

    def origin(self, x_start: Tensor) -> Tensor:
        """What the chain's mean comes from: x_start itself, for states that are diffused references."""
        return x_start

    def step(self, output: Tensor, i: int) -> None:
        states, sampler = self.states, self.states.sampler
        t, t_prev, t_start = sampler.chain.indices[i], states.arrival(i), sampler.chain.t_prime - 1
        x_start, schedule = states.pred_x_start(output, t), sampler.diffusion.schedule
        given = (x_start, self.origin(x_start), states.x_t)
        x_s, sigma = formulas.start_matched_step(*given, (t, t_prev, t_start), sampler.chain.eta, schedule)
        if sigma > 0:
            x_s = x_s + float(sigma) * noise.normal(states.streams, self.index(i), *x_s.shape[1:])
        states.x_t.copy_(x_s)


@dataclass(frozen=True)
class StartMatched(ThroughXStart):
    """The step of a chain that was trained from its start: x_t still holds a share of the pre-segmentation."""

    def origin(self, x_start: Tensor) -> Tensor:
        classes = self.states.classes
        return self.states.x[:, -2 * classes : -classes]  # the network sees [image, preseg, x_t]


@dataclass
class NoiseLevel:
    """DDIM at the level that another network reads off the states (San-Roman et al. 2021): each row has its own.

    After every step the levels are estimated anew, and the calls that are left are spread evenly from there to 0.
    """

    states: States
    t: Tensor = field(init=False)  # [N] int64 on the CPU, the rows' own indices

    def index(self, i: int) -> Tensor:
        sampler, x = self.states.sampler, self.states.x
        found = levels.nearest_index(sampler.levels(x), sampler.diffusion.schedule)
        highest = self.t - 1 if i else sampler.chain.t_prime - 1
        self.t = levels.within_reach(found, highest, self._left(i))
        return self.t.to(x.device, torch.int32)

    def step(self, output: Tensor, i: int) -> None:
        states, sampler = self.states, self.states.sampler
        diffusion, where = sampler.diffusion, states.x.device
        t_prev = levels.next_index(self.t, self._left(i))
        eta = sampler.chain.eta
        weights = formulas.step_weights(diffusion.schedule, self.t, t_prev, diffusion.prediction, "ddim", eta)
        indices = self.t.to(where, torch.int32)
        table = StepTable(indices, weights.to(where, torch.float32), diffusion.codec.clamp, learned_variance=False)
        rows = torch.arange(len(indices), dtype=torch.int32, device=where)
        ops.reverse_step_(states.x_t, output, table, rows, states.streams)

    def _left(self, i: int) -> int:
        """The calls that are left before call i, that one among them."""
        return len(self.states.sampler.chain.indices) - i


RULES = {
    "ddpm": WeightedSum.of,
    "ddim": WeightedSum.of,
    "dpm_solver": DpmSolver,
    "start_matched": StartMatched,
    "noise_level": NoiseLevel,
}
