"""Group normalisation and SiLU of channels-last images on a CPU, faster there than `reference.group_norm_silu`.

For sampling, `group_norm_silu` normalises in the image's own dtype (the reference converts to float32 first), so
bfloat16 is rounded once more; small images are copied to channels-first order, for which torch has a faster loop. For
training, `LearnedNorm` computes the reference's values and replaces the gradient by its closed form, since torch's own
gradient is slow on large channels-last images. `benchmarks/ops.py` measures both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

PIXELS = 1024  # from this many pixels on, torch's norm runs faster on channels-last images than on a copy


def is_large(x: Tensor) -> bool:
    """Whether the images in x [N, C, H, W] have at least PIXELS pixels."""
    return x.shape[2] * x.shape[3] >= PIXELS


def group_norm_silu(h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """Group norm of h [N, C, H, W], rounded to h's dtype, then SiLU if silu. Channels-last result, no gradient."""
    y = F.group_norm(h if is_large(h) else h.contiguous(), groups, weight.float(), bias.float(), eps)
    return (F.silu(y, inplace=True) if silu else y).contiguous(memory_format=torch.channels_last)


class LearnedNorm(torch.autograd.Function):
    """Group norm and SiLU with the reference's values, bit for bit, and a gradient in closed form.

    Per group, let m be the mean of h, r the reciprocal of its deviation and n = (h - m) r. Then z = n w + b, and with
    dz the gradient of z (Wu & He 2018, differentiated)

        dh = r (w dz - mean(w dz) - n mean(w dz n)),

    where mean() is over the group's channels and pixels. `backward` needs only the sums of dz and dz h over the pixels.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, h: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        """h: [N, C, H, W] channels-last, float32 or bfloat16; weight, bias: [C]. Returns the same shape and dtype."""
        rows, channels, height, width = h.shape
        weight, bias = weight.float(), bias.float()
        # A single image that was cut out of a batch has a stride by which torch takes it for no channels-last one.
        h = h.permute(0, 2, 3, 1).flatten(0, 2).unflatten(0, (rows, height, width)).permute(0, 3, 1, 2)
        y, mean, rstd = torch.native_group_norm(h.float(), weight, bias, rows, channels, height * width, groups, eps)
        ctx.save_for_backward(h, weight, bias, mean, rstd)
        ctx.silu = silu
        return (F.silu(y) if silu else y).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of h, weight and bias, computed in float32."""
        saved, weight, bias, mean, rstd = ctx.saved_tensors
        per_group = saved.shape[1] // mean.shape[1]  # channels

        def per_channel(x: Tensor) -> Tensor:  # [N, groups] -> [N, C]
            return x.repeat_interleave(per_group, dim=1)

        def group_mean(sums: Tensor) -> Tensor:  # sums over pixels [N, C] -> the mean of each channel's group [N, C]
            return per_channel(sums.unflatten(1, (-1, per_group)).mean(dim=2)) / h.shape[1]

        mean, rstd = per_channel(mean), per_channel(rstd)
        h, dz = (x.permute(0, 2, 3, 1).flatten(1, 2).float() for x in (saved, dy))  # [N, H W, C]
        if ctx.silu:
            z = torch.addcmul((bias - mean * rstd * weight)[:, None], h, (rstd * weight)[:, None])
            dz = torch.ops.aten.silu_backward(dz, z)
        dbias = dz.sum(dim=1)  # of each image, [N, C]
        dweight = rstd * ((dz * h).sum(dim=1) - mean * dbias)
        # dh = dz r w + h slope + offset, the equation above sorted by h
        slope = -rstd.square() * group_mean(weight * dweight)
        offset = -rstd * group_mean(weight * dbias) - slope * mean
        dh = torch.addcmul(offset[:, None], h, slope[:, None]).addcmul_(dz, (rstd * weight)[:, None])
        dh = dh.unflatten(1, saved.shape[2:]).permute(0, 3, 1, 2).to(saved.dtype)
        return dh, dweight.sum(dim=0), dbias.sum(dim=0), None, None, None
