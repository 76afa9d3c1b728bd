"""Every op of the chain in plain torch: the specification that a kernel has to agree with.

Scalars come from the float64 schedule and are cast last. x_start, x_t, eps: [N, C, H, W]. t and t_prev are indices
k = t - 1, and t_prev = -1 stands for the clean image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pdlib.diffusion.codec import MaskCodec
from pdlib.diffusion.schedule import Schedule


def _column(value: Tensor, like: Tensor) -> Tensor:
    """A float64 scalar or [N] -> a factor that broadcasts over [N, C, H, W] in like's dtype and device."""
    value = value.to(dtype=like.dtype, device=like.device)
    return value if value.ndim == 0 else value.reshape(-1, 1, 1, 1)


def q_sample(x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Diffuse x_start to index t in one jump: sqrt(abar) x_start + sqrt(1 - abar) noise (PD-DDPM Eq. 1; DDPM Eq. 4)."""
    abar = schedule.abar(t)
    return _column(abar.sqrt(), x_start) * x_start + _column((1 - abar).sqrt(), x_start) * noise


def training_target(prediction: str, x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """What the network learns to print at index t: eps, x_start, or v = sqrt(abar) eps - sqrt(1 - abar) x_start."""
    if prediction == "eps":
        return noise
    if prediction == "x_start":
        return x_start
    abar = schedule.abar(t)
    return _column(abar.sqrt(), x_start) * noise - _column((1 - abar).sqrt(), x_start) * x_start


def predict_x_start(
    prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, clamp: tuple[float, float]
) -> Tensor:
    """The network's output at index t turned into x_start and clamped (DDPM Eq. 15; v: Salimans & Ho 2022, App. D)."""
    abar = schedule.abar(t)
    signal, sigma = _column(abar.sqrt(), x_t), _column((1 - abar).sqrt(), x_t)
    if prediction == "eps":
        x_start = (x_t - sigma * output) / signal
    elif prediction == "v":
        x_start = signal * x_t - sigma * output
    else:
        x_start = output
    return x_start.clamp(*clamp)


def posterior_mean(x_start: Tensor, x_t: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """Mean of the state at t_prev given x_t and x_start (DDPM Eq. 7). [N, C, H, W] -> the same."""
    abar, abar_prev, beta = schedule.abar(t), schedule.abar(t_prev), schedule.step_beta(t, t_prev)
    mean = _column(abar_prev.sqrt() * beta / (1 - abar), x_t) * x_start
    return mean + _column((1 - beta).sqrt() * (1 - abar_prev) / (1 - abar), x_t) * x_t


def learned_variance(spread: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """Between the posterior's variance (spread -1) and the fixed-large one (spread 1), in the logarithm.

    Nichol & Dhariwal 2021, Eq. 15. The posterior's is 0 where t_prev is the clean image: that of the step before stands
    in for it, as in their code.
    """
    t, t_prev = torch.as_tensor(t), torch.as_tensor(t_prev)
    last = t_prev < 0
    small = schedule.posterior_variance(torch.where(last, t + 1, t), torch.where(last, t, t_prev)).log()
    large, part = schedule.step_beta(t, t_prev).log(), (spread + 1) / 2
    return (part * _column(large, spread) + (1 - part) * _column(small, spread)).exp()


def variational_bound(
    x_start: Tensor, predicted: Tensor, spread: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, codec: MaskCodec
) -> Tensor:
    """The bound's term at each row's index t, in nats, the mean over pixels and channels; all [N, C, H, W] -> [N].

    For t > 0 the divergence of the reverse step from the posterior (DDPM Eq. 5), at t = 0 the negative log-likelihood
    of the mask's two levels (DDPM Eq. 13 with two bins).
    """
    before = (t - 1).clamp_min(0)  # for t = 0 any index: that divergence is not used
    deviation = learned_variance(spread, t, t - 1, schedule).sqrt()
    believed = Normal(posterior_mean(predicted, x_t, t, t - 1, schedule), deviation)
    exact = schedule.posterior_variance(t.clamp_min(1), before).sqrt()
    truth = Normal(posterior_mean(x_start, x_t, t, t - 1, schedule), _column(exact, x_t))
    middle = (codec.low + codec.high) / 2
    side = torch.where(x_start > middle, 1.0, -1.0)
    decoded = -torch.special.log_ndtr(side * (believed.mean - middle) / deviation)
    term = torch.where(_column(t, x_t) > 0, kl_divergence(truth, believed), decoded)
    return term.mean(dim=(1, 2, 3))


def p_sample(
    x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule, spread: Tensor | None = None
) -> Tensor:
    """One ancestral step t -> t_prev given predicted x_start (DDPM Eq. 7), no noise on arrival at -1.

    The variance is beta (fixed-large), or with the network's spread the learned one; over a stride both are the longer
    step's.
    """
    mean = posterior_mean(x_start, x_t, t, t_prev, schedule)
    if t_prev < 0:
        return mean
    if spread is None:
        return mean + _column(schedule.step_beta(t, t_prev).sqrt(), x_t) * noise
    return mean + learned_variance(spread, t, t_prev, schedule).sqrt() * noise


def ddim_sample(
    x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule, eta: float
) -> Tensor:
    """One DDIM step t -> t_prev given predicted x_start (Song et al. 2020, Eq. 12 and 16); eta = 0 is deterministic."""
    abar, abar_prev = schedule.abar(t), schedule.abar(t_prev)
    sigma = eta * schedule.posterior_variance(t, t_prev).sqrt()
    eps = (x_t - _column(abar.sqrt(), x_t) * x_start) / _column((1 - abar).sqrt(), x_t)
    mean = _column(abar_prev.sqrt(), x_t) * x_start + _column((1 - abar_prev - sigma**2).clamp_min(0).sqrt(), x_t) * eps
    return mean + _column(sigma, x_t) * noise


def dpm_solver_sample(
    x_start: Tensor, before: tuple[int, Tensor] | None, x_t: Tensor, t: int, t_prev: int, schedule: Schedule
) -> Tensor:
    """One DPM-Solver++(2M) step t -> t_prev (Lu et al. 2022, arXiv 2211.01095, Algorithm 2); deterministic.

    before: index and predicted x_start of the step before; None in the first step, which is of first order, as is the
    arrival at -1.
    """
    _, sigma, level = _half_logsnr(t, schedule)
    signal_prev, sigma_prev, level_prev = _half_logsnr(t_prev, schedule)
    if before is not None and t_prev >= 0:
        ratio = (level - _half_logsnr(before[0], schedule)[2]) / (level_prev - level)
        x_start = x_start + _column(1 / (2 * ratio), x_t) * (x_start - before[1])
    kept = _column(signal_prev * (1 - (level - level_prev).exp()), x_t)
    return _column(sigma_prev / sigma, x_t) * x_t + kept * x_start


def _half_logsnr(t: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """sqrt(abar), sqrt(1 - abar) and the logarithm of their ratio, the solver's time."""
    signal, sigma = schedule.abar(t).sqrt(), (1 - schedule.abar(t)).sqrt()
    return signal, sigma, signal.log() - sigma.log()


def reverse_step(
    x_t: Tensor,
    output: Tensor,
    weights: Tensor,
    noise: Tensor,
    clamp: tuple[float, float],
    spread: Tensor | None = None,
) -> Tensor:
    """One ancestral or DDIM step as a weighted sum: [N, C, H, W] -> the same. weights: [N, 7], of `step_weights`.

    spread: what a network that learns its variance says of it, in -1..1, [N, C, H, W].
    """
    columns = (_column(weight, x_t) for weight in weights.unbind(dim=1))
    of_state, of_output, of_start, kept, sigma, small, large = columns
    x_start = (of_state * x_t + of_output * output).clamp(*clamp)
    if spread is not None:
        part = (spread + 1) / 2
        sigma = torch.where(sigma > 0, (part * large + (1 - part) * small).exp(), 0.0)
    return of_start * x_start + kept * x_t + sigma * noise


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Group normalisation (Wu & He 2018) of x + residual + shift in float32, then SiLU if asked for; the dtype stays.

    x, residual: [N, C, H, W]; shift: [N, C]. Returns y and x + residual.
    """
    total = x if residual is None else x + residual
    h = total if shift is None else total + shift[:, :, None, None]
    y = F.group_norm(h.float(), groups, weight.float(), bias.float(), eps)
    return (F.silu(y) if silu else y).to(x.dtype), total


def overlap_counts(masks: Tensor, references: Tensor) -> Tensor:
    """Pixels that two masks share, and those of each: bool [E, N, H, W], [N, H, W] -> int32 [E, N, 3]."""
    references = references.expand_as(masks)
    counts = [both.sum((2, 3), dtype=torch.int32) for both in (masks & references, masks, references)]
    return torch.stack(counts, dim=2)


def ensemble_moments(members: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0), entropy of the mean (nat), members >= threshold: [E, ...] in 0..1 -> four of [...]."""
    members = members.float()
    mean = members.mean(dim=0)
    variance = (members - mean).square().mean(dim=0)
    entropy = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return mean, variance, entropy, (members >= threshold).sum(dim=0, dtype=torch.int32)
