"""Noise schedules, and which of their indices a chain visits.

The papers count t = 1..T. The code uses the index k = t - 1 in 0..T-1, and -1 for the clean image. `t_prime` is a count
of steps: a chain of T' steps starts at index T' - 1.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise each index holds: float64 tables on the CPU. Code that uses a value casts it last.

    Args:
        betas: [T] variances of the forward steps, each in (0, 1).
    """

    betas: Tensor

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar[k] = prod_{i<=k} (1 - beta[i]), [T] float64 (DDPM, Ho et al. 2020, Eq. 4)."""
        return self._padded[:-1]

    @cached_property
    def _padded(self) -> Tensor:
        with torch.inference_mode(False):  # the tables also serve training
            return torch.cat([torch.cumprod(1.0 - self.betas, dim=0), torch.ones(1, dtype=torch.float64)])

    def abar(self, index: int | Tensor) -> Tensor:
        """alphas_cumprod at an index or at several; at -1, the clean image, it is 1."""
        return self._padded[torch.as_tensor(index, device="cpu")]

    def step_beta(self, t: int | Tensor, t_prev: int | Tensor) -> Tensor:
        """Variance of the forward step from t_prev to t, 1 - abar[t] / abar[t_prev]; betas[t] if t_prev = t - 1."""
        return 1 - self.abar(t) / self.abar(t_prev)

    def posterior_variance(self, t: int | Tensor, t_prev: int | Tensor) -> Tensor:
        """Variance of the state at t_prev given x_t and x_start (DDPM Eq. 7); 0 where t_prev is -1."""
        return (1 - self.abar(t_prev)) / (1 - self.abar(t)) * self.step_beta(t, t_prev)


def cosine_schedule(steps: int, offset: float, max_beta: float) -> Schedule:
    """The cosine schedule of Nichol & Dhariwal (2021, Eq. 17): offset is their s, max_beta clips beta."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return Schedule(torch.clamp(1 - f[1:] / f[:-1], max=max_beta))


def linear_schedule(steps: int, first_beta: float, last_beta: float) -> Schedule:
    """Betas that grow linearly with the index, from first_beta to last_beta (Ho et al. 2020, Section 4)."""
    return Schedule(torch.linspace(first_beta, last_beta, steps, dtype=torch.float64))


SCHEDULES = {"cosine": cosine_schedule, "linear": linear_schedule}


def build_schedule(name: str, **arguments) -> Schedule:
    """Build the schedule that SCHEDULES lists under name; ValueError for any other name."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {sorted(SCHEDULES)}")
    return SCHEDULES[name](**arguments)


def chain_indices(t_prime: int, calls: int, t_stop: int = 0) -> tuple[int, ...]:
    """The indices at which a chain calls its network: `calls` of them, evenly spaced, from t_prime - 1 down to t_stop.

    Both ends are included; a single call is made at t_prime - 1. With t_stop = t_prime the chain stops where it starts:
    calls must be 0, and the result is empty. ValueError for fewer calls than 1 or more than there are indices.
    """
    length = t_prime - t_stop
    if t_prime < 1 or not 0 <= t_stop <= t_prime:
        raise ValueError(f"t_prime {t_prime} must be at least 1, and t_stop {t_stop} in 0..t_prime")
    if not min(length, 1) <= calls <= length:
        raise ValueError(
            f"calls {calls} must be in {min(length, 1)}..{length} from t_prime {t_prime} to t_stop {t_stop}"
        )
    return tuple(int(k) for k in np.linspace(t_prime - 1, t_stop, calls).round())


def trailing_indices(t_prime: int, calls: int) -> tuple[int, ...]:
    """The indices of `calls` equal strides from t_prime - 1 to the clean image: round(i t_prime / calls) - 1.

    i falls from calls to 1, so every second index of 2N calls is the grid of N calls, as progressive distillation needs
    (Salimans & Ho 2022, Algorithm 2). ValueError for fewer calls than 1 or more than t_prime.
    """
    if not 1 <= calls <= t_prime:
        raise ValueError(f"calls {calls} must be in 1..{t_prime} from t_prime {t_prime}")
    return tuple(round(i * t_prime / calls) - 1 for i in range(calls, 0, -1))


def calls_of_stride(t_prime: int, stride: int, t_stop: int = 0) -> int:
    """The number of calls in a chain that visits about every stride-th index: ceil(length / stride), at least 2.

    A chain of fewer than two indices has as many calls as indices.
    """
    if stride < 1:
        raise ValueError(f"stride {stride} must be at least 1")
    length = t_prime - t_stop
    return max(math.ceil(length / stride), min(length, 2))


def scale_t_prime(t_prime: int, paper_steps: int, steps: int) -> int:
    """Carry a T' or t_stop from the paper's schedule of paper_steps to one of `steps`, as the same share of T.

    0 stays 0; any other value becomes at least 1.
    """
    return max(min(t_prime, 1), round(t_prime * steps / paper_steps))
