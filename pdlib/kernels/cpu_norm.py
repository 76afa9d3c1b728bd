"""GroupNorm and SiLU of channels-last images on a CPU (twin: reference.group_norm_silu).

Two ways that measure quicker there than the reference (benchmarks/ops.py): torch's norm in the image's own dtype, which
rounds bfloat16 once more, of small images in the order of planes; and for large images a gradient in closed form, for
torch's own walks over them slowly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

PIXELS = 1024  # of a large image: fewer, and torch's norm takes another, slower way through channels-last ones


def is_large(x: Tensor) -> bool:
    """Whether x [N, C, H, W] holds large images."""
    return x.shape[2] * x.shape[3] >= PIXELS


def rounded(h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """The norm of h [N, C, H, W] rounded to h's dtype before SiLU, in channels-last order; no gradient."""
    y = F.group_norm(h if is_large(h) else h.contiguous(), groups, weight.float(), bias.float(), eps)
    return (F.silu(y, inplace=True) if silu else y).contiguous(memory_format=torch.channels_last)


class LearnedNorm(torch.autograd.Function):
    """The reference's value, bit for bit, and its gradient from the sums of dz and dz h over each image's pixels.

    With mean m, 1 / deviation r, z = (h - m) r w + b and dz its gradient: dh = r (w dz - inner - (h - m) r outer),
    where inner and outer are a group's means of w dz and w dz (h - m) r (Wu & He 2018, differentiated).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        """h [N, C, H, W] in channels-last order, float32 or bfloat16."""
        rows, channels, height, width = h.shape
        weight, bias = weight.float(), bias.float()
        y, mean, rstd = torch.native_group_norm(h.float(), weight, bias, rows, channels, height * width, groups, eps)
        ctx.save_for_backward(h, weight, bias, mean, rstd)
        ctx.silu = silu
        return (F.silu(y) if silu else y).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of h, weight and bias, computed in float32."""
        saved, weight, bias, mean, rstd = ctx.saved_tensors
        per_group = saved.shape[1] // mean.shape[1]

        def each_channel(x: Tensor) -> Tensor:  # [N, groups] -> [N, C]
            return x.repeat_interleave(per_group, dim=1)

        def group_mean(sums: Tensor) -> Tensor:  # [N, C] sums over pixels -> [N, C], those of each channel's group
            return each_channel(sums.unflatten(1, (-1, per_group)).mean(dim=2)) / h.shape[1]

        mean, rstd = each_channel(mean), each_channel(rstd)
        h, dz = (x.permute(0, 2, 3, 1).flatten(1, 2).float() for x in (saved, dy))  # [N, H W, C]
        if ctx.silu:
            z = torch.addcmul((bias - mean * rstd * weight)[:, None], h, (rstd * weight)[:, None])
            dz = torch.ops.aten.silu_backward(dz, z)
        dbias = dz.sum(dim=1)
        dweight = rstd * ((dz * h).sum(dim=1) - mean * dbias)
        slope = -rstd.square() * group_mean(weight * dweight)
        offset = -rstd * group_mean(weight * dbias) - slope * mean
        dh = torch.addcmul(offset[:, None], h, slope[:, None]).addcmul_(dz, (rstd * weight)[:, None])
        dh = dh.unflatten(1, saved.shape[2:]).permute(0, 3, 1, 2).to(saved.dtype)
        return dh, dweight.sum(dim=0), dbias.sum(dim=0), None, None, None
