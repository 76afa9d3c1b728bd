"""How much noise a state holds, read off the state itself, and the indices that a chain visits from there.

San-Roman et al. 2021 (arXiv 2104.02600) let a network estimate alphas_cumprod of the state (`networks.noise_level`),
and refit the rest of the schedule to the estimate after every step. `background_level` is its control.
"""

import torch
from torch import Tensor
from torch.distributions import Normal

from pdlib.diffusion.schedule import Schedule


def background_level(x_t: Tensor) -> Tensor:
    """alphas_cumprod as the background's variance tells it, in closed form. [N, C, H, W] -> [N].

    Where the mask has its background x_t is a constant and noise of variance 1 - abar. While lesions are few, the
    median absolute deviation of all pixels estimates the noise's: MAD / Phi^-1(3/4) for Gaussian noise (Hampel 1974).
    """
    pixels = x_t.flatten(1).float()
    deviation = (pixels - pixels.median(dim=1, keepdim=True).values).abs().median(dim=1).values
    return 1 - (deviation / Normal(0.0, 1.0).icdf(torch.tensor(0.75))).square()


def nearest_index(abar: Tensor, schedule: Schedule) -> Tensor:
    """The index whose alphas_cumprod is nearest to each of abar, [N] -> [N] int64 on the CPU."""
    return (schedule.alphas_cumprod - abar.detach().double().cpu()[:, None]).abs().argmin(dim=1)


def within_reach(index: Tensor, highest: int | Tensor, calls: int) -> Tensor:
    """Indices held where a chain can go on: at most highest, and high enough for `calls` falling ones, [N]."""
    return torch.minimum(index.clamp_min(calls - 1), torch.as_tensor(highest))


def next_index(t: Tensor, calls: int) -> Tensor:
    """The index after t [N] of a chain whose `calls` remaining ones, t among them, are evenly spread from t to 0.

    The last call, calls = 1, arrives at the clean image: -1.
    """
    return torch.round(t * (calls - 2) / (calls - 1)).long() if calls > 1 else torch.full_like(t, -1)
