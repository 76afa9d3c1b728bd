"""The public ops: each checks its arguments, then chooses an implementation; nothing else in pdlib chooses.

`q_sample_start`, `reverse_step_`, `group_norm_silu` (channels-last) and `ensemble_moments` run their Triton kernels on
a GPU of compute capability 8.0 (Ampere) or newer, if Triton is installed. Everything else runs the references, except
most norms on a CPU, which run `cpu_norm`. TRITON_INTERPRET=1 in the environment makes Triton interpret the kernels on
any machine: a check of their results, hundreds of times slower.
"""

import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pdlib.kernels import cpu_norm, noise, reference
from pdlib.kernels.noise import Streams

VOTES = ("soft", "majority")
CAPABILITY = (8, 0)  # the oldest GPUs that the kernels are compiled for
_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def fused(x: Tensor) -> bool:
    """Whether the Triton kernels compute on this tensor."""
    return _TRITON and (_INTERPRETED or (x.is_cuda and _supported(x.device)))


@lru_cache
def _supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def check_same_shape(**tensors: Tensor) -> None:
    """ValueError with all shapes where they differ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError with the choices where value is none of them."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {list(known)}")


def _check_rows(count: int, /, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() != count:
            raise ValueError(f"{name}: {tensor.numel()} for {count} rows")


def q_sample(x_start: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
    """weights[0] x_start + weights[1] noise. [N, C, H, W] -> the same; weights: [2], or [N, 2] with a pair per row."""
    check_same_shape(x_start=x_start, noise=noise)
    _check_weights(x_start, weights)
    return reference.q_sample(x_start, weights, noise)


def q_sample_start(x_start: Tensor, weights: Tensor, streams: Streams) -> Tensor:
    """`q_sample` with the start noise of each row's stream. [N, C, H, W] -> the same, float32."""
    _check_rows(len(x_start), streams=streams.keys)
    _check_weights(x_start, weights)
    if fused(x_start):
        from pdlib.kernels.q_sample import q_sample_into

        weights = weights.to(x_start.device, torch.float32).expand(len(x_start), 2).contiguous()
        x_t = torch.empty_like(x_start, dtype=torch.float32)
        q_sample_into(x_t, x_start, weights, streams, noise.START)
        return x_t
    return reference.q_sample(x_start, weights, noise.normal(streams, noise.START, *x_start.shape[1:]))


def _check_weights(x_start: Tensor, weights: Tensor) -> None:
    if weights.shape not in ((2,), (len(x_start), 2)):
        raise ValueError(f"weights must be [2] or [{len(x_start)}, 2], got shape {tuple(weights.shape)}")


@dataclass(frozen=True)
class StepTable:
    """The weights of every step of a chain, one row per step, on the chain's device.

    Args:
        indices: [S] int32, the index that each step starts from; also the counter word of its noise.
        weights: [S, 7] float32, as `reference.reverse_step` uses them.
        clamp: the range that a predicted x_start is clamped to.
        learned_variance: whether a network with 2C output channels chooses the variance.
    """

    indices: Tensor
    weights: Tensor
    clamp: tuple[float, float]
    learned_variance: bool


def reverse_step_(x_t: Tensor, output: Tensor, table: StepTable, rows: Tensor, streams: Streams) -> None:
    """Take one reverse step in place: x_t [N, C, H, W] becomes the next state.

    Args:
        x_t: may be a view of the last channels of the network's input; its other channels stay untouched.
        output: the network's, [N, C, H, W], or with 2C channels of which the second half chooses the variance.
        rows: [N] int32, the row of the table that holds each sample's weights.
        streams: one random stream per sample.
    """
    classes = x_t.shape[1]
    learned = table.learned_variance and output.shape[1] == 2 * classes
    output = output if learned else output[:, :classes]
    check_same_shape(x_t=x_t, output=output[:, :classes])
    _check_rows(len(x_t), streams=streams.keys, rows=rows)
    if fused(x_t):
        from pdlib.kernels.p_sample import p_sample_into

        p_sample_into(x_t, output, table.weights, table.indices, rows, streams, table.clamp)
        return
    weights = table.weights[rows]
    noisy = x_t.is_cuda or bool(weights[:, 4].any())  # reading the weights of a GPU would make the CPU wait for it
    fresh = noise.normal(streams, table.indices[rows], *x_t.shape[1:]) if noisy else torch.zeros_like(x_t)
    output, *model_var_values = output.split(classes, dim=1)
    x_t.copy_(reference.reverse_step(x_t, output, weights, fresh, table.clamp, *model_var_values))


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
    """Normalise x + residual + shift by groups, then apply SiLU if silu. Returns that and x + residual.

    x, residual: [N, C, H, W], shift: [N, C]. Moments and normalisation are computed in float32, the dtype stays.
    Without a residual the second result is x itself. On a CPU and without gradients bfloat16 images are rounded once
    more, before SiLU.
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
        return _kernel_group_norm_silu(x, weight, bias, groups, eps, silu, shift, residual)
    learning = torch.is_grad_enabled()
    if x.device.type != "cpu" or not channels_last or (learning and not cpu_norm.is_large(x)):
        return reference.group_norm_silu(x, weight, bias, groups, eps, silu, shift, residual)
    total = x if residual is None else x + residual
    if channels == groups and not learning:
        shift = None  # in groups of one channel the mean takes it away again
    h = total if shift is None else total + shift[:, :, None, None]
    norm = cpu_norm.LearnedNorm.apply if learning else cpu_norm.group_norm_silu
    return norm(h, weight, bias, groups, eps, silu), total


def _kernel_group_norm_silu(x, weight, bias, groups, eps, silu, shift, residual) -> tuple[Tensor, Tensor]:
    from pdlib.kernels.group_norm_silu import group_norm_silu as kernel

    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    if shift is not None and shift.stride(1) != 1:
        shift = shift.contiguous()
    y, total, *_ = kernel(x, weight, bias, groups, eps, silu, shift, residual)
    return y, x if residual is None else total


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

    The mask holds where the mean reaches the threshold (vote "soft"), or where more than half of the members do
    ("majority").
    """
    check_choice("vote", vote, VOTES)
    mean, variance, _, votes = ensemble_moments(members, threshold)
    return mean, variance, mean >= threshold if vote == "soft" else 2 * votes > len(members)
