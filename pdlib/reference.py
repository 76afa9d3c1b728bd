"""Every op of the chain in plain torch: the specification that a kernel has to agree with.

Scalars come from the float64 schedule and are cast last. x_start, x_t, eps: [N, 1, H, W]. t and t_prev are indices
k = t - 1, and t_prev = -1 stands for the clean image.
"""

from torch import Tensor

from pdlib.schedule import Schedule


def _column(value: Tensor, like: Tensor) -> Tensor:
    """A float64 scalar or [N] -> a factor that broadcasts over [N, 1, H, W] in like's dtype and device."""
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


def p_sample(x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule) -> Tensor:
    """One ancestral step t -> t_prev given predicted x_start (DDPM Eq. 7, sigma^2 = beta, no noise on arrival at -1).

    Between neighbours beta is the schedule's; over a stride it is 1 - abar[t] / abar[t_prev].
    """
    abar, abar_prev = schedule.abar(t), schedule.abar(t_prev)
    alpha = abar / abar_prev
    beta = 1 - alpha
    mean = _column(abar_prev.sqrt() * beta / (1 - abar), x_t) * x_start
    mean = mean + _column(alpha.sqrt() * (1 - abar_prev) / (1 - abar), x_t) * x_t
    return mean if t_prev < 0 else mean + _column(beta.sqrt(), x_t) * noise


def ddim_sample(
    x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule, eta: float
) -> Tensor:
    """One DDIM step t -> t_prev given predicted x_start (Song et al. 2020, Eq. 12 and 16); eta = 0 is deterministic."""
    abar, abar_prev = schedule.abar(t), schedule.abar(t_prev)
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
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


def ensemble_stats(members: Tensor, threshold: float, vote: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0) and mask over the first axis: [E, ...] in 0..1 -> three of [...].

    vote "soft" thresholds the mean, "majority" asks for more than half of the members at or above the threshold.
    """
    mean = members.mean(dim=0)
    variance = members.var(dim=0, correction=0)
    if vote == "soft":
        return mean, variance, mean >= threshold
    return mean, variance, (members >= threshold).to(members.dtype).mean(dim=0) > 0.5
