"""Every op in plain torch: the specification that its kernel has to agree with. [N, C, H, W] unless noted."""

import torch
import torch.nn.functional as F
from torch import Tensor


def column(value: Tensor, like: Tensor) -> Tensor:
    """A factor for [N, C, H, W] in like's dtype and device, from a scalar or one number per row, [N]."""
    value = value.to(dtype=like.dtype, device=like.device, non_blocking=True)
    return value if value.ndim == 0 else value.reshape(-1, 1, 1, 1)


def q_sample(x_start: Tensor, weights: Tensor, noise: Tensor) -> Tensor:
    """weights[0] x_start + weights[1] noise. weights: [2], or [N, 2] with a pair per row."""
    of_start, of_noise = (column(weight, x_start) for weight in weights.unbind(dim=-1))
    return of_start * x_start + of_noise * noise


def interpolate_logs(model_var_values: Tensor, min_log: Tensor, max_log: Tensor) -> Tensor:
    """exp of the point between min_log (at -1) and max_log (at 1) that a network's model_var_values choose.

    Nichol & Dhariwal 2021, Eq. 15, for variances or deviations alike.
    """
    frac = (model_var_values + 1) / 2
    return (frac * max_log + (1 - frac) * min_log).exp()


def reverse_step(
    x_t: Tensor,
    output: Tensor,
    weights: Tensor,
    noise: Tensor,
    clamp: tuple[float, float],
    model_var_values: Tensor | None = None,
) -> Tensor:
    """One reverse step as a weighted sum; the row's seven weights w, [N, 7], are those of a `StepTable`.

    x_start = clamp(w0 x_t + w1 output), and the new state is w2 x_start + w3 x_t + w4 noise. With model_var_values
    (in -1..1) the noise's weight lies between exp(w5) and exp(w6) instead, unless w4 is 0.
    """
    weights = [column(weight, x_t) for weight in weights.unbind(dim=1)]
    state_to_start, output_to_start, coef_start, coef_state, sigma, min_log, max_log = weights
    x_start = (state_to_start * x_t + output_to_start * output).clamp(*clamp)
    if model_var_values is not None:
        sigma = torch.where(sigma > 0, interpolate_logs(model_var_values, min_log, max_log), 0.0)
    return coef_start * x_start + coef_state * x_t + sigma * noise


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
    """Group normalisation (Wu & He 2018) of x + residual + shift in float32, then SiLU if silu; the dtype stays.

    x, residual: [N, C, H, W]; shift: [N, C]. Returns y and x + residual.
    """
    total = x if residual is None else x + residual
    h = total if shift is None else total + shift[:, :, None, None]
    y = F.group_norm(h.float(), groups, weight.float(), bias.float(), eps)
    return (F.silu(y) if silu else y).to(x.dtype), total


def ensemble_moments(members: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance (ddof 0), entropy of the mean (nat), members >= threshold: [E, ...] in 0..1 -> four of [...]."""
    members = members.float()
    mean = members.mean(dim=0)
    variance = (members - mean).square().mean(dim=0)
    entropy = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return mean, variance, entropy, (members >= threshold).sum(dim=0, dtype=torch.int32)
