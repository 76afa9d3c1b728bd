"""The ops of the chain: arguments are checked here, once, and the implementation is chosen here and nowhere else."""

import torch
from torch import Tensor

from pdlib import reference
from pdlib.codec import MaskCodec
from pdlib.schedule import Schedule

PREDICTIONS = ("eps", "v", "x_start")
VOTES = ("soft", "majority")


def _check_index(t: int | Tensor, schedule: Schedule, rows: int) -> None:
    index = torch.as_tensor(t)
    if index.ndim > 1 or (index.ndim == 1 and len(index) != rows):
        raise ValueError(f"t must be a scalar or one index per row ({rows}), got shape {tuple(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= schedule.steps:
        raise ValueError(f"t must lie in 0..{schedule.steps - 1}, got {index.tolist()}")


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {list(known)}")


def q_sample(x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Diffuse x_start to index t in one jump (PD-DDPM Eq. 1). [N, 1, H, W] -> the same; t scalar or [N]."""
    _check_same_shape(x_start=x_start, noise=noise)
    _check_index(t, schedule, len(x_start))
    return reference.q_sample(x_start, t, noise, schedule)


def training_target(prediction: str, x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """The regression target at index t for a network that predicts eps, v or x_start. [N, 1, H, W] -> the same."""
    _check_choice("prediction", prediction, PREDICTIONS)
    _check_same_shape(x_start=x_start, noise=noise)
    _check_index(t, schedule, len(x_start))
    return reference.training_target(prediction, x_start, t, noise, schedule)


def predict_x_start(
    prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, clamp: tuple[float, float]
) -> Tensor:
    """Network output at index t -> clamped x_start. [N, 1, H, W] -> the same."""
    _check_choice("prediction", prediction, PREDICTIONS)
    _check_same_shape(output=output, x_t=x_t)
    _check_index(t, schedule, len(x_t))
    return reference.predict_x_start(prediction, output, x_t, t, schedule, clamp)


def p_sample(
    x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule, spread: Tensor | None = None
) -> Tensor:
    """One ancestral step from t to t_prev < t; -1 is the clean image (DDPM Eq. 7). [N, 1, H, W] -> the same.

    spread: what a network with a learned variance says of it, [N, 1, H, W]; without it the variance is fixed-large.
    """
    _check_step(x_start, x_t, t, t_prev, noise, schedule)
    if spread is not None:
        _check_same_shape(spread=spread, x_t=x_t)
    return reference.p_sample(x_start, x_t, t, t_prev, noise, schedule, spread)


def learned_variance(spread: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """The variance of a step from t to t_prev < t that the network's spread stands for. [N, 1, H, W] -> the same."""
    _check_index(t, schedule, len(spread))
    return reference.learned_variance(spread, t, t_prev, schedule)


def variational_bound(
    x_start: Tensor, predicted: Tensor, spread: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, codec: MaskCodec
) -> Tensor:
    """The variational bound's term at each row's index (Nichol & Dhariwal 2021, Eq. 4 to 7). [N, C, H, W] -> [N] nats.

    predicted: the network's x_start, spread: what it says of the variance, t: [N].
    """
    _check_same_shape(x_start=x_start, predicted=predicted, spread=spread, x_t=x_t)
    _check_index(t, schedule, len(x_t))
    return reference.variational_bound(x_start, predicted, spread, x_t, t, schedule, codec)


def ddim_sample(
    x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule, eta: float
) -> Tensor:
    """One DDIM step from t to t_prev < t; -1 is the clean image (DDIM Eq. 12). [N, 1, H, W] -> the same."""
    _check_step(x_start, x_t, t, t_prev, noise, schedule)
    return reference.ddim_sample(x_start, x_t, t, t_prev, noise, schedule, eta)


def dpm_solver_sample(
    x_start: Tensor, before: tuple[int, Tensor] | None, x_t: Tensor, t: int, t_prev: int, schedule: Schedule
) -> Tensor:
    """One DPM-Solver++(2M) step from t to t_prev < t; -1 is the clean image. [N, C, H, W] -> the same.

    before: index (> t) and predicted x_start of the step before, None in the first.
    """
    _check_step(x_start, x_t, t, t_prev, x_start, schedule)
    if before is not None:
        _check_same_shape(before=before[1], x_t=x_t)
        _check_index(before[0], schedule, len(x_t))
        if before[0] <= t:
            raise ValueError(f"the step before was made at {before[0]}, not above t={t}")
    return reference.dpm_solver_sample(x_start, before, x_t, t, t_prev, schedule)


def _check_step(x_start: Tensor, x_t: Tensor, t: int, t_prev: int, noise: Tensor, schedule: Schedule) -> None:
    _check_same_shape(x_start=x_start, x_t=x_t, noise=noise)
    _check_index(t, schedule, len(x_t))
    if not -1 <= t_prev < t:
        raise ValueError(f"t_prev must lie in -1..t-1, got t={t}, t_prev={t_prev}")


def ensemble_stats(members: Tensor, threshold: float, vote: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0) and mask over members: [E, ...] in 0..1 -> three of [...]."""
    _check_choice("vote", vote, VOTES)
    if members.shape[0] < 1:
        raise ValueError("an ensemble needs at least one member")
    return reference.ensemble_stats(members, threshold, vote)
