"""The ops of the chain: arguments are checked here, once, and the implementation is chosen here and nowhere else.

`q_sample_start`, `reverse_step_`, `group_norm_silu` (channels-last), `ensemble_moments` and `overlap_counts` take
their Triton kernels for tensors on a GPU where there is Triton. All else takes the references, and most norms on a
CPU `cpu_norm`. With TRITON_INTERPRET=1 in the environment, Triton's interpreter runs the kernels anywhere
(a check, and slow).
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pdlib.diffusion.codec import MaskCodec
from pdlib.diffusion.schedule import Schedule, step_weights
from pdlib.kernels import cpu_norm, noise, reference
from pdlib.kernels.noise import Streams

PREDICTIONS = ("eps", "v", "x_start")
WEIGHTED_STEPS = ("ddpm", "ddim")
VOTES = ("soft", "majority")
_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def fused(x: Tensor) -> bool:
    """Whether the kernels compute on this tensor."""
    return _TRITON and (x.is_cuda or _INTERPRETED)


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


def _check_rows(rows: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() != rows:
            raise ValueError(f"{name}: {tensor.numel()} for {rows} rows")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {list(known)}")


def q_sample(x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """Diffuse x_start to index t in one jump (PD-DDPM Eq. 1). [N, C, H, W] -> the same; t scalar or [N]."""
    _check_same_shape(x_start=x_start, noise=noise)
    _check_index(t, schedule, len(x_start))
    return reference.q_sample(x_start, t, noise, schedule)


def q_sample_start(x_start: Tensor, t: int, streams: Streams, schedule: Schedule) -> Tensor:
    """Diffuse x_start to index t, where a chain starts, with the noise of each row's stream. [N, C, H, W] float32."""
    _check_index(t, schedule, len(x_start))
    _check_rows(len(x_start), streams=streams.keys)
    if fused(x_start):
        from pdlib.kernels.q_sample import q_sample_into

        abar = schedule.abar(t)
        weights = torch.stack([abar.sqrt(), (1 - abar).sqrt()]).to(x_start.device, torch.float32)
        x_t = torch.empty_like(x_start, dtype=torch.float32)
        q_sample_into(x_t, x_start, weights.expand(len(x_start), 2).contiguous(), streams, noise.START)
        return x_t
    return reference.q_sample(x_start, t, noise.normal(streams, noise.START, *x_start.shape[1:]), schedule)


def training_target(prediction: str, x_start: Tensor, t: int | Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """The regression target at index t for a network that predicts eps, v or x_start. [N, C, H, W] -> the same."""
    _check_choice("prediction", prediction, PREDICTIONS)
    _check_same_shape(x_start=x_start, noise=noise)
    _check_index(t, schedule, len(x_start))
    return reference.training_target(prediction, x_start, t, noise, schedule)


def predict_x_start(
    prediction: str, output: Tensor, x_t: Tensor, t: int | Tensor, schedule: Schedule, clamp: tuple[float, float]
) -> Tensor:
    """Network output at index t -> clamped x_start. [N, C, H, W] -> the same."""
    _check_choice("prediction", prediction, PREDICTIONS)
    _check_same_shape(output=output, x_t=x_t)
    _check_index(t, schedule, len(x_t))
    return reference.predict_x_start(prediction, output, x_t, t, schedule, clamp)


def learned_variance(spread: Tensor, t: int | Tensor, t_prev: int | Tensor, schedule: Schedule) -> Tensor:
    """The variance of a step from t to t_prev < t that the network's spread stands for. [N, C, H, W] -> the same."""
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


def dpm_solver_sample(
    x_start: Tensor, before: tuple[int, Tensor] | None, x_t: Tensor, t: int, t_prev: int, schedule: Schedule
) -> Tensor:
    """One DPM-Solver++(2M) step from t to t_prev < t; -1 is the clean image. [N, C, H, W] -> the same.

    before: index (> t) and predicted x_start of the step before, None in the first.
    """
    _check_same_shape(x_start=x_start, x_t=x_t)
    _check_pair(t, t_prev, schedule)
    if before is not None:
        _check_same_shape(before=before[1], x_t=x_t)
        _check_index(before[0], schedule, len(x_t))
        if before[0] <= t:
            raise ValueError(f"the step before was made at {before[0]}, not above t={t}")
    return reference.dpm_solver_sample(x_start, before, x_t, t, t_prev, schedule)


def _check_pair(t: int, t_prev: int, schedule: Schedule) -> None:
    _check_index(t, schedule, 1)
    if not -1 <= t_prev < t:
        raise ValueError(f"t_prev must lie in -1..t-1, got t={t}, t_prev={t_prev}")


@dataclass(frozen=True)
class StepTable:
    """What the steps of a chain multiply by, a line for each visited index, on the chain's device.

    Args:
        indices: [T] int32, first the visited indices, then zeros; also the noise's counter words.
        weights: [T, 7] float32, of `schedule.step_weights`; T is the schedule's number of steps.
        clamp: the range of a predicted x_start.
        learns: whether a network with 2C channels decides the variance.
    """

    indices: Tensor
    weights: Tensor
    clamp: tuple[float, float]
    learns: bool


def step_table(
    schedule: Schedule,
    pairs: Sequence[tuple[int, int]],
    *,
    prediction: str,
    step: str,
    eta: float,
    clamp: tuple[float, float],
    device: torch.device,
) -> StepTable:
    """The table of "ddpm" or "ddim" steps t -> t_prev < t; -1 is the clean image."""
    _check_choice("prediction", prediction, PREDICTIONS)
    _check_choice("step", step, WEIGHTED_STEPS)
    for t, t_prev in pairs:
        _check_pair(t, t_prev, schedule)
    weights = [step_weights(schedule, *pair, prediction=prediction, step=step, eta=eta) for pair in pairs]
    spare = schedule.steps - len(pairs)  # all tables of a schedule have one shape, so that one graph serves them
    indices = F.pad(torch.tensor([t for t, _ in pairs], dtype=torch.int32), (0, spare))
    weights = F.pad(torch.tensor(weights, dtype=torch.float64), (0, 0, 0, spare))
    return StepTable(indices.to(device), weights.to(device, torch.float32), clamp, learns=step == "ddpm")


def reverse_step_(x_t: Tensor, output: Tensor, table: StepTable, lines: Tensor, streams: Streams) -> None:
    """x_t [N, C, H, W] becomes the state after one step, by the line of the table that each row names, [N] int32.

    x_t may be the last channels of the network's input: nothing else of that is touched. output: [N, C, H, W], or 2C
    channels where the network says in the second half how large a "ddpm" step's variance is.
    """
    classes = x_t.shape[1]
    learned = table.learns and output.shape[1] == 2 * classes
    output = output if learned else output[:, :classes]
    _check_same_shape(x_t=x_t, output=output[:, :classes])
    _check_rows(len(x_t), streams=streams.keys, lines=lines)
    if fused(x_t):
        from pdlib.kernels.p_sample import p_sample_into

        p_sample_into(x_t, output, table.weights, table.indices, lines, streams, table.clamp)
        return
    weights = table.weights[lines]
    noisy = x_t.is_cuda or bool(weights[:, 4].any())  # asking a GPU would make it wait
    fresh = noise.normal(streams, table.indices[lines], *x_t.shape[1:]) if noisy else torch.zeros_like(x_t)
    output, *spread = output.split(classes, dim=1)
    x_t.copy_(reference.reverse_step(x_t, output, weights, fresh, table.clamp, *spread))


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Group normalisation of x + residual + shift, then SiLU if asked for, and x + residual (without one x itself).

    x, residual: [N, C, H, W], shift: [N, C]; moments and normalisation in float32, the dtype stays. On a CPU images of
    bfloat16 are rounded once more before SiLU where no gradient is wanted.
    """
    rows, channels = x.shape[:2]
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    wanted = {"weight": (weight, (channels,)), "bias": (bias, (channels,))}
    wanted |= {"shift": (shift, (rows, channels)), "residual": (residual, x.shape)}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    if fused(x) and channels_last:
        from pdlib.kernels.group_norm_silu import group_norm_silu as kernel

        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        if shift is not None and shift.stride(1) != 1:
            shift = shift.contiguous()
        y, total, *_ = kernel(x, weight, bias, groups, eps, silu, shift, residual)
        return y, x if residual is None else total
    learning = torch.is_grad_enabled()
    if x.device.type != "cpu" or not channels_last or (learning and not cpu_norm.is_large(x)):
        return reference.group_norm_silu(x, weight, bias, groups, eps, silu, shift, residual)
    total = x if residual is None else x + residual
    if channels == groups and not learning:
        shift = None  # it leaves with the mean
    h = total if shift is None else total + shift[:, :, None, None]
    norm = cpu_norm.LearnedNorm.apply if learning else cpu_norm.rounded
    return norm(h, weight, bias, groups, eps, silu), total


def ensemble_moments(members: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0), entropy of the mean (nat) and the number of members at or above the threshold.

    [E, ...] in 0..1 -> four of [...], the last int32.
    """
    if members.shape[0] < 1:
        raise ValueError("an ensemble needs at least one member")
    if fused(members):
        from pdlib.kernels.ensemble_stats import ensemble_moments as kernel

        return kernel(members.contiguous(), threshold)
    return reference.ensemble_moments(members, threshold)


def ensemble_stats(members: Tensor, threshold: float, vote: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0) and mask over members: [E, ...] in 0..1 -> three of [...].

    vote "soft" thresholds the mean, "majority" asks for more than half of the members at or above the threshold.
    """
    _check_choice("vote", vote, VOTES)
    mean, variance, _, votes = ensemble_moments(members, threshold)
    return mean, variance, mean >= threshold if vote == "soft" else 2 * votes > len(members)


def overlap_counts(masks: Tensor, references: Tensor) -> Tensor:
    """Pixels that two masks share, and those of each: bool [E, N, H, W], [N, H, W] -> int32 [E, N, 3]."""
    _check_same_shape(masks=masks[0], references=references)
    if fused(masks):
        from pdlib.kernels.overlap_counts import overlap_counts as kernel

        return kernel(masks.contiguous(), references.contiguous())
    return reference.overlap_counts(masks, references)
