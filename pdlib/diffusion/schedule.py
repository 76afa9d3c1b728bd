"""Noise schedules: float64 tables over the code index k = t - 1 in 0..T-1 (paper time t is in 1..T)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The tables that depend on T alone, float64 on the CPU; whoever uses a value casts it last.

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
        return torch.cumprod(1.0 - self.betas, dim=0)

    def abar(self, index: int | Tensor) -> Tensor:
        """alphas_cumprod at index, where index -1 is the clean image (abar = 1)."""
        padded = torch.cat([self.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
        return padded[torch.as_tensor(index, device="cpu")]

    def step_beta(self, t: int | Tensor, t_prev: int | Tensor) -> Tensor:
        """Variance of the forward step from t_prev to t, 1 - abar[t] / abar[t_prev]: betas[t] between neighbours."""
        return 1 - self.abar(t) / self.abar(t_prev)

    def posterior_variance(self, t: int | Tensor, t_prev: int | Tensor) -> Tensor:
        """Variance of the state at t_prev given those at t and at the clean image (DDPM Eq. 7); 0 on arrival at -1."""
        return (1 - self.abar(t_prev)) / (1 - self.abar(t)) * self.step_beta(t, t_prev)


def cosine_schedule(steps: int, offset: float, max_beta: float) -> Schedule:
    """The cosine schedule of Nichol & Dhariwal (2021, Eq. 17): offset is their s, max_beta their clip of beta."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return Schedule(torch.clamp(1 - f[1:] / f[:-1], max=max_beta))


def linear_schedule(steps: int, first_beta: float, last_beta: float) -> Schedule:
    """Betas linear in k (Ho et al. 2020, Section 4), both ends included."""
    return Schedule(torch.linspace(first_beta, last_beta, steps, dtype=torch.float64))


def step_weights(
    schedule: Schedule, t: int, t_prev: int, *, prediction: str, step: str, eta: float
) -> tuple[float, ...]:
    """The weights of a "ddpm" or "ddim" step t -> t_prev, float64: x_start = w0 x_t + w1 output, which is clamped, then
    w2 x_start + w3 x_t + w4 noise (DDPM Eq. 7, 15; DDIM Eq. 12, 16), no noise on arrival at -1.

    w4 is the fixed-large deviation of a "ddpm" step; one that learns its variance has w4's place taken by a deviation
    between exp(w5) and exp(w6), in the logarithm (Nichol & Dhariwal 2021, Eq. 15).
    """
    abar, abar_prev = float(schedule.abar(t)), float(schedule.abar(t_prev))
    signal, sigma = math.sqrt(abar), math.sqrt(1 - abar)
    of_state, of_output = {"eps": (1 / signal, -sigma / signal), "v": (signal, -sigma), "x_start": (0.0, 1.0)}[
        prediction
    ]
    posterior, beta = float(schedule.posterior_variance(t, t_prev)), float(schedule.step_beta(t, t_prev))
    if step == "ddpm":
        of_start = math.sqrt(abar_prev) * beta / (1 - abar)
        kept = math.sqrt(1 - beta) * (1 - abar_prev) / (1 - abar)
        if t_prev < 0:
            return of_state, of_output, of_start, kept, 0.0, 0.0, 0.0
        return of_state, of_output, of_start, kept, math.sqrt(beta), math.log(posterior) / 2, math.log(beta) / 2
    spread = eta * math.sqrt(posterior)
    kept = math.sqrt(max(1 - abar_prev - spread**2, 0.0)) / sigma
    return of_state, of_output, math.sqrt(abar_prev) - kept * signal, kept, spread, 0.0, 0.0


SCHEDULES = {"cosine": cosine_schedule, "linear": linear_schedule}


def build_schedule(name: str, **arguments) -> Schedule:
    """The schedule called name; ValueError for a name that is not in SCHEDULES."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {sorted(SCHEDULES)}")
    return SCHEDULES[name](**arguments)


def chain_indices(t_prime: int, stride: int, t_stop: int = 0) -> tuple[int, ...]:
    """The indices visited by a chain from t_prime - 1 down to t_stop, both included: all of them when stride is 1.

    A stride s > 1 keeps ceil((t_prime - t_stop) / s) of them, evenly spaced, and both ends whatever the stride. A chain
    that stops where it starts (t_stop = t_prime) visits none.
    """
    if t_prime < 1 or stride < 1 or not 0 <= t_stop <= t_prime:
        raise ValueError(f"t_prime {t_prime}, stride {stride} must be at least 1, t_stop {t_stop} in 0..t_prime")
    length = t_prime - t_stop
    count = max(math.ceil(length / stride), min(length, 2))
    return tuple(int(k) for k in np.linspace(t_prime - 1, t_stop, count).round())


def scale_t_prime(t_prime: int, paper_steps: int, steps: int) -> int:
    """A T' or t_stop of the paper (of paper_steps) carried to a schedule of other length: its share of T carries over.

    0 stays 0, and more than that is at least 1.
    """
    return max(min(t_prime, 1), round(t_prime * steps / paper_steps))
