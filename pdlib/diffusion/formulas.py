"""The equations of the papers, each written once: training and sampling run these lines.

x_start, x_t, noise and network outputs are [N, C, H, W]; t and t_prev are indices (paper time - 1), whole numbers or
[N] tensors, and t_prev = -1 is the clean image. Coefficients are computed in float64 and cast last.

- forward process, DDPM Eq. 4 (PD-DDPM Eq. 1): `q_sample`
- network output: `training_target`, `predict_x_start`
- reverse steps: `ddpm_step` (DDPM Eq. 7), `ddim_step` (DDIM Eq. 12), `dpm_solver_step` (DPM-Solver++ Algorithm 2)
- progressive distillation (Salimans & Ho 2022): `distillation_target`
- start-matched PD-DDPM (ours): `start_matched_mean`, `start_matched_step`
- learned variance and the variational bound (Nichol & Dhariwal 2021): `learned_variance`, `variational_bound`

DDPM is Ho et al. 2020 (arXiv 2006.11239), DDIM is Song et al. 2020 (2010.02502), DPM-Solver++ is Lu et al. 2022
(2211.01095).
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pdlib.diffusion.schedule import Schedule
from pdlib.kernels import ops
from pdlib.kernels.noise import Streams
from pdlib.kernels.ops import StepTable, check_choice, check_same_shape
from pdlib.kernels.reference import column, interpolate_logs

if TYPE_CHECKING:
    from pdlib.diffusion.sampler import Diffusion

PREDICTIONS = ("eps", "v", "x_start")  # a network's regression targets
LOGIT = "logit"  # of the mask: what a network trained by cross-entropy gives
WEIGHTED_RULES = ("ddpm", "ddim")  # steps that are one weighted sum, see `step_weights`


# --- the forward process ---------------------------------------------------------------------------------------------


def q_sample(x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Diffuse x_start to index t in one jump: sqrt(abar) x_start + sqrt(1 - abar) noise (DDPM Eq. 4; PD-DDPM Eq. 1)."""
    return ops.q_sample(x_start, _q_sample_weights(x_start, t, schedule), noise)


def q_sample_start(x_start: Tensor, t: int, streams: Streams, schedule: Schedule) -> Tensor:
    """`q_sample` with the start noise of each row's random stream; float32."""
    return ops.q_sample_start(x_start, _q_sample_weights(x_start, t, schedule), streams)


def _q_sample_weights(x_start: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    _check_index(t, schedule, len(x_start))
    abar = schedule.abar(t)
    return torch.stack([abar.sqrt(), (1 - abar).sqrt()], dim=-1)  # [2] or [N, 2]


# --- the network's output --------------------------------------------------------------------------------------------


def training_target(prediction: str, x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """The network's regression target at index t: eps, x_start, or v = sqrt(abar) eps - sqrt(1 - abar) x_start.

    v is from Salimans & Ho 2022 (arXiv 2202.00512), Appendix D.
    """
    check_choice("prediction", prediction, PREDICTIONS)
    check_same_shape(x_start=x_start, noise=noise)
    _check_index(t, schedule, len(x_start))
    if prediction == "eps":
        return noise
    if prediction == "x_start":
        return x_start
    abar = schedule.abar(t)
    return column(abar.sqrt(), x_start) * noise - column((1 - abar).sqrt(), x_start) * x_start


def predict_x_start(
    prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, clamp: tuple[float, float]
) -> Tensor:
    """x_start from the network's output at index t, clamped to a range (DDPM Eq. 15; for v see `training_target`).

    Of a mask's "logit" it is the probability, written into that range.
    """
    check_choice("prediction", prediction, (*PREDICTIONS, LOGIT))
    check_same_shape(output=output, x_t=x_t)
    _check_index(t, schedule, len(x_t))
    if prediction == LOGIT:
        low, high = clamp
        return low + (high - low) * output.sigmoid()
    abar = schedule.abar(t)
    return _predict_x_start(prediction, output, x_t, abar).clamp(*clamp)


def _predict_x_start(prediction: str, output: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    signal, sigma = column(abar.sqrt(), x_t), column((1 - abar).sqrt(), x_t)
    if prediction == "eps":
        return (x_t - sigma * output) / signal
    if prediction == "v":
        return signal * x_t - sigma * output
    return output


# --- the reverse steps, from t to t_prev < t -------------------------------------------------------------------------


def posterior_mean_coefs(t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """posterior_mean_coef1 of x_start and posterior_mean_coef2 of x_t in the mean of q(x_prev | x_t, x_start).

    DDPM Eq. 7, also for steps over several indices; float64, shaped like t.
    """
    abar, abar_prev, beta = schedule.abar(t), schedule.abar(t_prev), schedule.step_beta(t, t_prev)
    return abar_prev.sqrt() * beta / (1 - abar), (1 - beta).sqrt() * (1 - abar_prev) / (1 - abar)


def posterior_mean(x_start: Tensor, x_t: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """Mean of the state at t_prev given x_t and x_start (DDPM Eq. 7)."""
    coef1, coef2 = posterior_mean_coefs(t, t_prev, schedule)
    return column(coef1, x_t) * x_start + column(coef2, x_t) * x_t


def ddpm_step(t: Tensor, t_prev: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """The ancestral step x_prev = coef1 x_start + coef2 x_t + sigma noise: its coefficients (DDPM Algorithm 2).

    sigma^2 is beta, the fixed-large variance, and 0 on arrival at the clean image. float64, shaped like t.
    """
    coef1, coef2 = posterior_mean_coefs(t, t_prev, schedule)
    return coef1, coef2, torch.where(t_prev < 0, 0.0, schedule.step_beta(t, t_prev).sqrt())


def ddim_step(t: Tensor, t_prev: Tensor, schedule: Schedule, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The DDIM step: the coefficients of x_start, x_t and noise (DDIM Eq. 12; sigma from Eq. 16).

    x_prev = sqrt(abar_prev) x_start + sqrt(1 - abar_prev - sigma^2) eps + sigma noise, where
    eps = (x_t - sqrt(abar) x_start) / sqrt(1 - abar). With eta = 0 sigma is 0. float64, shaped like t.
    """
    abar, abar_prev = schedule.abar(t), schedule.abar(t_prev)
    sigma = eta * schedule.posterior_variance(t, t_prev).sqrt()
    coef_state = (1 - abar_prev - sigma**2).clamp_min(0).sqrt() / (1 - abar).sqrt()
    return abar_prev.sqrt() - coef_state * abar.sqrt(), coef_state, sigma


def dpm_solver_step(
    x_start: Tensor, before: tuple[int, Tensor] | None, x_t: Tensor, t: int, t_prev: int, schedule: Schedule
) -> Tensor:
    """The DPM-Solver++(2M) step (Lu et al. 2022, Algorithm 2); deterministic.

    before: index (> t) and predicted x_start of the previous step. Without it the step is of first order, as is every
    arrival at the clean image. ValueError for other orders of the indices.
    """
    check_same_shape(x_start=x_start, x_t=x_t)
    _check_index(t, schedule, 1)
    if not -1 <= t_prev < t:
        raise ValueError(f"t_prev must lie in -1..t-1, got t={t}, t_prev={t_prev}")
    if before is not None and before[0] <= t:
        raise ValueError(f"the step before was made at {before[0]}, not above t={t}")
    _, sigma, level = _half_log_snr(t, schedule)
    signal_prev, sigma_prev, level_prev = _half_log_snr(t_prev, schedule)
    if before is not None and t_prev >= 0:
        ratio = (level - _half_log_snr(before[0], schedule)[2]) / (level_prev - level)
        x_start = x_start + column(1 / (2 * ratio), x_t) * (x_start - before[1])
    coef_start = column(signal_prev * (1 - (level - level_prev).exp()), x_t)
    return column(sigma_prev / sigma, x_t) * x_t + coef_start * x_start


def _half_log_snr(t: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """sqrt(abar), sqrt(1 - abar) and the logarithm of their ratio, which is the solver's time."""
    signal, sigma = schedule.abar(t).sqrt(), (1 - schedule.abar(t)).sqrt()
    return signal, sigma, signal.log() - sigma.log()


# --- progressive distillation ----------------------------------------------------------------------------------------


def noiseless_step(x_start: Tensor, x_t: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """The state at t_prev after a `ddim_step` with eta 0."""
    coef_start, coef_state, _ = ddim_step(t, t_prev, schedule, eta=0.0)
    return column(coef_start, x_t) * x_start + column(coef_state, x_t) * x_t


def distillation_target(x_t: Tensor, x_s: Tensor, t: int | Tensor, s: int | Tensor, schedule: Schedule) -> Tensor:
    """The x_start with which one noiseless step takes x_t to x_s, whose index s is below t.

    Salimans & Ho 2022 (arXiv 2202.00512), Algorithm 2: (x_s - r x_t) / (sqrt(abar_s) - r sqrt(abar_t)) with
    r = sqrt(1 - abar_s) / sqrt(1 - abar_t). At the clean image, s = -1, it is x_s.
    """
    check_same_shape(x_t=x_t, x_s=x_s)
    abar_t, abar_s = schedule.abar(t), schedule.abar(s)
    ratio = (1 - abar_s).sqrt() / (1 - abar_t).sqrt()
    return (x_s - column(ratio, x_t) * x_t) / column(abar_s.sqrt() - ratio * abar_t.sqrt(), x_t)


def implied_noise(x_start: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule) -> Tensor:
    """The noise that makes x_t of x_start: `q_sample` solved for it."""
    abar = schedule.abar(t)
    return (x_t - column(abar.sqrt(), x_t) * x_start) / column((1 - abar).sqrt(), x_t)


# --- start-matched PD-DDPM -------------------------------------------------------------------------------------------


def start_matched_mean(x_start: Tensor, preseg: Tensor, t: int | Tensor, t_start: int, schedule: Schedule) -> Tensor:
    """x_start moved towards the pre-segmentation, m_t = x_start + w_t (preseg - x_start); ours.

    w_t = g_t / g_{t_start} with g_t = (1 - sqrt(abar_t)) / sqrt(abar_t): 1 at t_start, where a chain starts from the
    diffused pre-segmentation, and 0 for the clean image. Where sqrt(abar) is 1/2 at t_start these are the states of
    Resfusion (arXiv 2311.14900), sqrt(abar) x_start + (1 - sqrt(abar)) (preseg - x_start) before noise.
    """
    check_same_shape(x_start=x_start, preseg=preseg)
    share = _gap(t, schedule) / _gap(t_start, schedule)
    return x_start + column(share, x_start) * (preseg - x_start)


def _gap(t: int | Tensor, schedule: Schedule) -> Tensor:
    signal = schedule.abar(t).sqrt()
    return (1 - signal) / signal


def start_matched_step(
    x_start: Tensor, preseg: Tensor, x_t: Tensor, route: tuple[int, int, int], eta: float, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """The step of a chain whose mean moves from the pre-segmentation to x_start: the next state's mean and deviation.

    route is (t, t_prev, t_start). As in `ddim_step` x_t says what eps was, here beside m_t, and eta chooses sigma:
    sqrt(abar_prev) m_prev + sqrt(1 - abar_prev - sigma^2) eps + sigma noise. With eta = 1 this is the posterior's step.
    """
    t, t_prev, t_start = route
    m_t, m_prev = (start_matched_mean(x_start, preseg, index, t_start, schedule) for index in (t, t_prev))
    abar_prev, sigma = schedule.abar(t_prev), eta * schedule.posterior_variance(t, t_prev).sqrt()
    eps = implied_noise(m_t, x_t, t, schedule)
    rest = (1 - abar_prev - sigma**2).clamp_min(0).sqrt()
    mean = column(abar_prev.sqrt(), x_t) * m_prev + column(rest, x_t) * eps
    return mean, sigma


# --- learned variance ------------------------------------------------------------------------------------------------


def learned_variance(model_var_values: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """The step's variance, between the posterior's (model_var_values -1) and beta (1), interpolated in the logarithm.

    Nichol & Dhariwal 2021, Eq. 15. On arrival at the clean image the posterior's variance is 0: as in their code, that
    of the step before takes its place.
    """
    t, t_prev = torch.as_tensor(t), torch.as_tensor(t_prev)
    last = t_prev < 0
    smallest = schedule.posterior_variance(torch.where(last, t + 1, t), torch.where(last, t, t_prev)).log()
    largest = schedule.step_beta(t, t_prev).log()
    return interpolate_logs(model_var_values, column(smallest, model_var_values), column(largest, model_var_values))


def variational_bound(
    x_start: Tensor, pred_x_start: Tensor, model_var_values: Tensor, x_t: Tensor, t: Tensor, diffusion: "Diffusion"
) -> Tensor:
    """The bound's term at each row's index t [N], in bits, averaged over pixels and channels. [N, C, H, W] -> [N].

    For t > 0 the divergence of the network's step from the posterior (DDPM Eq. 5), at t = 0 the negative log-likelihood
    of the mask's two levels (DDPM Eq. 13 with two bins). guided-diffusion counts in bits as well.
    """
    check_same_shape(x_start=x_start, pred_x_start=pred_x_start, model_var_values=model_var_values, x_t=x_t)
    schedule, codec = diffusion.schedule, diffusion.codec
    _check_index(t, schedule, len(x_t))
    deviation = learned_variance(model_var_values, t, t - 1, schedule).sqrt()
    model = Normal(posterior_mean(pred_x_start, x_t, t, t - 1, schedule), deviation, validate_args=False)
    before = (t - 1).clamp_min(0)  # any index will do for t = 0, where the divergence is not used
    exact = schedule.posterior_variance(t.clamp_min(1), before).sqrt()
    posterior = Normal(posterior_mean(x_start, x_t, t, t - 1, schedule), column(exact, x_t), validate_args=False)
    middle = (codec.low + codec.high) / 2
    side = torch.where(x_start > middle, 1.0, -1.0)
    decoder = -torch.special.log_ndtr(side * (model.mean - middle) / deviation)
    nats = torch.where(column(t, x_t) > 0, kl_divergence(posterior, model), decoder)
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


# --- the steps of a chain as a table of weights ----------------------------------------------------------------------


def step_weights(schedule: Schedule, t: Tensor, t_prev: Tensor, prediction: str, rule: str, eta: float) -> Tensor:
    """The weights of "ddpm" or "ddim" steps t -> t_prev, [S] indices each, for `ops.reverse_step_`: [S, 7] float64.

    Columns: x_t and the network's output in x_start; x_start, x_t and noise in the next state; the logarithms of the
    smallest and the largest deviation that a learned variance may take (0 where it takes none).
    """
    check_choice("prediction", prediction, PREDICTIONS)
    check_choice("rule", rule, WEIGHTED_RULES)
    one, zero = torch.ones(len(t), 1, 1, 1, dtype=torch.float64), torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    abar = schedule.abar(t)  # x_start is linear in x_t and the output: each weight is its value for (1, 0) or (0, 1)
    state_to_start = _predict_x_start(prediction, zero, one, abar).flatten()
    output_to_start = _predict_x_start(prediction, one, zero, abar).flatten()
    if rule == "ddim":
        logs = torch.zeros(2, len(t), dtype=torch.float64)
        return torch.stack([state_to_start, output_to_start, *ddim_step(t, t_prev, schedule, eta), *logs], dim=1)
    variances = schedule.posterior_variance(t, t_prev), schedule.step_beta(t, t_prev)
    logs = [torch.where(t_prev < 0, 0.0, variance.log() / 2) for variance in variances]
    return torch.stack([state_to_start, output_to_start, *ddpm_step(t, t_prev, schedule), *logs], dim=1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # one table serves chains in and out of it
def step_table(
    diffusion: "Diffusion", indices: tuple[int, ...], t_stop: int, rule: str, eta: float, device: torch.device
) -> StepTable:
    """The table of a chain's steps: from each of the indices to the next, and from the last to t_stop - 1."""
    schedule, t = diffusion.schedule, torch.tensor(indices)
    _check_index(t, schedule, len(t))
    t_prev = torch.tensor([*indices[1:], t_stop - 1])
    if bool((t_prev >= t).any()) or t_stop < 0:
        raise ValueError(f"indices {indices} must fall, and end above t_stop - 1 = {t_stop - 1}")
    weights = step_weights(schedule, t, t_prev, diffusion.prediction, rule, eta)
    return StepTable(
        indices=t.to(device, torch.int32),
        weights=weights.to(device, torch.float32),
        clamp=diffusion.codec.clamp,
        learned_variance=rule == "ddpm",
    )


def _check_index(t: int | Tensor, schedule: Schedule, rows: int) -> None:
    index = torch.as_tensor(t)
    if index.ndim > 1 or (index.ndim == 1 and len(index) != rows):
        raise ValueError(f"t must be a scalar or one index per row ({rows}), got shape {tuple(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= schedule.steps:
        raise ValueError(f"t must lie in 0..{schedule.steps - 1}, got {index.tolist()}")
