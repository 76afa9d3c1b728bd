"""Channels-last group normalisation and SiLU, forward and backward (twin: reference.group_norm_silu).

h = x + residual + shift is normalised. A group of up to TILE numbers is read once, by one program per (image, group).
A larger one is read twice: one kernel computes the moments of every channel over blocks of pixels, a small one joins
them, and a third normalises.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # numbers that a program holds: a whole group if it is no larger, or a tile of the two-pass kernels
WARPS = 8  # of such a program, so that a thread's numbers fit its registers


@triton.jit
def _silu(z):
    return z / (1.0 + tl.exp(-z))


@triton.jit
def _one_pass_kernel(
    x_ptr,
    residual_ptr,
    shift_ptr,
    shift_stride,
    weight_ptr,
    bias_ptr,
    y_ptr,
    sum_ptr,
    mean_ptr,
    rstd_ptr,
    pixels,
    channels,
    group_channels,
    groups,
    eps,
    RESIDUAL: tl.constexpr,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, group = tl.program_id(0), tl.program_id(1)
    pixel, within = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    channel = group * group_channels + within
    valid = (pixel < pixels)[:, None] & (within < group_channels)[None, :]
    known = within < group_channels
    at = (image.to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
    h = tl.load(x_ptr + at, mask=valid, other=0.0).to(tl.float32)
    if RESIDUAL:
        h += tl.load(residual_ptr + at, mask=valid, other=0.0).to(tl.float32)
        tl.store(sum_ptr + at, h.to(sum_ptr.dtype.element_ty), mask=valid)
    if SHIFT:
        h += tl.load(shift_ptr + image * shift_stride + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    h = tl.where(valid, h, 0.0)
    count = pixels * group_channels
    mean = tl.sum(tl.sum(h, axis=1), axis=0) / count
    centred = tl.where(valid, h - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(centred * centred, axis=1), axis=0) / count + eps)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    z = centred * rstd * weight[None, :] + bias[None, :]
    if SILU:
        z = _silu(z)
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=valid)
    tl.store(mean_ptr + image * groups + group, mean)
    tl.store(rstd_ptr + image * groups + group, rstd)


@triton.jit
def _block(pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where a program's block of an image's pixels lies, which of its places exist, its channels and which exist."""
    image, block = tl.program_id(0), tl.program_id(1)
    pixel, channel = block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C)
    known = channel < channels
    at = (image.to(tl.int64) * pixels + pixel)[:, None] * channels + channel[None, :]
    return at, (pixel < pixels)[:, None] & known[None, :], channel, known


@triton.jit
def _moments(mean_ptr, rstd_ptr, shift_ptr, shift_stride, channel, known, group_channels, groups, SHIFT: tl.constexpr):
    """Each channel's mean, less its shift, and its 1 / deviation."""
    image = tl.program_id(0)
    group = image * groups + channel // group_channels
    mean = tl.load(mean_ptr + group, mask=known, other=0.0)
    if SHIFT:
        mean -= tl.load(shift_ptr + image * shift_stride + channel, mask=known, other=0.0).to(tl.float32)
    return mean, tl.load(rstd_ptr + group, mask=known, other=0.0)


@triton.jit
def _normalised_and_dz(dy_ptr, h_ptr, weight_ptr, bias_ptr, at, valid, channel, known, mean, rstd, SILU: tl.constexpr):
    """What weight and bias were applied to, the gradient of what came out of that, and the weight."""
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    normalised = (tl.load(h_ptr + at, mask=valid, other=0.0).to(tl.float32) - mean[None, :]) * rstd[None, :]
    dz = tl.load(dy_ptr + at, mask=valid, other=0.0).to(tl.float32)
    if SILU:
        z = normalised * weight[None, :] + bias[None, :]
        gate = 1.0 / (1.0 + tl.exp(-z))
        dz *= gate * (1.0 + z * (1.0 - gate))
    return normalised, dz, weight


@triton.jit
def _partial_moments_kernel(
    x_ptr,
    residual_ptr,
    sum_ptr,
    partial_ptr,
    pixels,
    channels,
    blocks,
    RESIDUAL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over a block of pixels: partial [N, blocks, 2, C]."""
    at, valid, channel, known = _block(pixels, channels, BLOCK_P, BLOCK_C)
    h = tl.load(x_ptr + at, mask=valid, other=0.0).to(tl.float32)
    if RESIDUAL:
        h += tl.load(residual_ptr + at, mask=valid, other=0.0).to(tl.float32)
        tl.store(sum_ptr + at, h.to(sum_ptr.dtype.element_ty), mask=valid)
    image, block = tl.program_id(0), tl.program_id(1)
    count = tl.minimum(pixels - block * BLOCK_P, BLOCK_P)
    mean = tl.sum(h, axis=0) / count
    centred = tl.where(valid, h - mean[None, :], 0.0)
    to = partial_ptr + (image * blocks + block) * 2 * channels + channel
    tl.store(to, mean, mask=known)
    tl.store(to + channels, tl.sum(centred * centred, axis=0), mask=known)


@triton.jit
def _blocks(first, blocks, pixels, channel, known, channels, PIXELS_A_BLOCK: tl.constexpr, BLOCK_B: tl.constexpr):
    """Where the means of BLOCK_B blocks lie in an image's part of partial, and how many pixels each stands for."""
    block = first + tl.arange(0, BLOCK_B)
    counts = tl.minimum(pixels - block * PIXELS_A_BLOCK, PIXELS_A_BLOCK).to(tl.float32)[:, None]
    counts = tl.where((block < blocks)[:, None] & known[None, :], counts, 0.0)
    return block[:, None] * 2 * channels + channel[None, :], counts


@triton.jit
def _join_moments_kernel(
    partial_ptr,
    shift_ptr,
    shift_stride,
    mean_ptr,
    rstd_ptr,
    pixels,
    channels,
    group_channels,
    groups,
    blocks,
    eps,
    SHIFT: tl.constexpr,
    PIXELS_A_BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Moments of a group from those of its channels' blocks (Chan et al. 1979); a shift moves a channel's means."""
    image, group = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, BLOCK_C)
    channel = group * group_channels + within
    known = within < group_channels
    partial_ptr += image * blocks * 2 * channels
    shift = tl.zeros((BLOCK_C,), tl.float32)
    if SHIFT:
        shift = tl.load(shift_ptr + image * shift_stride + channel, mask=known, other=0.0).to(tl.float32)
    count = pixels * group_channels
    total = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for first in range(0, blocks, BLOCK_B):
        at, counts = _blocks(first, blocks, pixels, channel, known, channels, PIXELS_A_BLOCK, BLOCK_B)
        total += counts * (tl.load(partial_ptr + at, mask=counts > 0.0, other=0.0) + shift[None, :])
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / count
    total = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for first in range(0, blocks, BLOCK_B):
        at, counts = _blocks(first, blocks, pixels, channel, known, channels, PIXELS_A_BLOCK, BLOCK_B)
        away = tl.load(partial_ptr + at, mask=counts > 0.0, other=0.0) + shift[None, :] - mean
        total += tl.load(partial_ptr + at + channels, mask=counts > 0.0, other=0.0) + counts * away * away
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / count
    tl.store(mean_ptr + image * groups + group, mean)
    tl.store(rstd_ptr + image * groups + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _apply_kernel(
    h_ptr,
    shift_ptr,
    shift_stride,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    y_ptr,
    pixels,
    channels,
    group_channels,
    groups,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    at, valid, channel, known = _block(pixels, channels, BLOCK_P, BLOCK_C)
    mean, rstd = _moments(mean_ptr, rstd_ptr, shift_ptr, shift_stride, channel, known, group_channels, groups, SHIFT)
    scale = rstd * tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + at, mask=valid, other=0.0).to(tl.float32)
    z = (h - mean[None, :]) * scale[None, :] + bias[None, :]
    if SILU:
        z = _silu(z)
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=valid)


@triton.jit
def _backward_sums_kernel(
    dy_ptr,
    h_ptr,
    shift_ptr,
    shift_stride,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    partial_ptr,
    pixels,
    channels,
    group_channels,
    groups,
    blocks,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of dz and dz * normalised over a block of pixels, for each channel: partial [N, blocks, 2, C]."""
    at, valid, channel, known = _block(pixels, channels, BLOCK_P, BLOCK_C)
    mean, rstd = _moments(mean_ptr, rstd_ptr, shift_ptr, shift_stride, channel, known, group_channels, groups, SHIFT)
    normalised, dz, _ = _normalised_and_dz(
        dy_ptr, h_ptr, weight_ptr, bias_ptr, at, valid, channel, known, mean, rstd, SILU
    )
    to = partial_ptr + (tl.program_id(0) * blocks + tl.program_id(1)) * 2 * channels + channel
    tl.store(to, tl.sum(dz, axis=0), mask=known)
    tl.store(to + channels, tl.sum(tl.where(valid, dz * normalised, 0.0), axis=0), mask=known)


@triton.jit
def _backward_apply_kernel(
    dy_ptr,
    h_ptr,
    shift_ptr,
    shift_stride,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    inner_ptr,
    outer_ptr,
    dh_ptr,
    pixels,
    channels,
    group_channels,
    groups,
    SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dh = rstd (dz w - inner - normalised outer), inner and outer the group's means of dz w (times normalised)."""
    at, valid, channel, known = _block(pixels, channels, BLOCK_P, BLOCK_C)
    mean, rstd = _moments(mean_ptr, rstd_ptr, shift_ptr, shift_stride, channel, known, group_channels, groups, SHIFT)
    group = tl.program_id(0) * groups + channel // group_channels
    inner = tl.load(inner_ptr + group, mask=known, other=0.0)
    outer = tl.load(outer_ptr + group, mask=known, other=0.0)
    normalised, dz, weight = _normalised_and_dz(
        dy_ptr, h_ptr, weight_ptr, bias_ptr, at, valid, channel, known, mean, rstd, SILU
    )
    dh = rstd[None, :] * (dz * weight[None, :] - inner[None, :] - normalised * outer[None, :])
    tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=valid)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalised y, the sum x + residual (x itself without one), and mean and rstd [N, groups] for the backward.

    x, residual: [N, C, H, W] channels-last, fp32 or bf16; shift: [N, C], its rows contiguous.
    """
    images, channels, height, width = x.shape
    pixels, group_channels = height * width, channels // groups
    y = torch.empty_like(x, memory_format=torch.channels_last)
    total = x if residual is None else torch.empty_like(x, memory_format=torch.channels_last)
    mean, rstd = (torch.empty(images, groups, device=x.device) for _ in range(2))
    flags = {"RESIDUAL": residual is not None, "SHIFT": shift is not None}
    group_block, stride = triton.next_power_of_2(group_channels), _row_stride(shift)
    image_block = triton.next_power_of_2(pixels)
    if image_block * group_block <= TILE:
        _one_pass_kernel[images, groups](
            x, residual, shift, stride, weight, bias, y, total, mean, rstd,
            pixels, channels, group_channels, groups, eps,
            **flags, SILU=silu, BLOCK_P=image_block, BLOCK_C=group_block,
            num_warps=WARPS,
        )  # fmt: skip
        return y, total, mean, rstd
    tile = _tile(channels)
    blocks = triton.cdiv(pixels, tile["BLOCK_P"])
    partial = torch.empty(images, blocks, 2, channels, device=x.device)
    _partial_moments_kernel[images, blocks](
        x, residual, total, partial, pixels, channels, blocks, RESIDUAL=flags["RESIDUAL"], **tile
    )
    _join_moments_kernel[images, groups](
        partial, shift, stride, mean, rstd, pixels, channels, group_channels, groups, blocks, eps,
        SHIFT=flags["SHIFT"], PIXELS_A_BLOCK=tile["BLOCK_P"],
        BLOCK_B=min(triton.next_power_of_2(blocks), TILE // group_block), BLOCK_C=group_block, num_warps=WARPS,
    )  # fmt: skip
    _apply_kernel[images, blocks](
        total, shift, stride, weight, bias, mean, rstd, y, pixels, channels, group_channels, groups,
        SHIFT=flags["SHIFT"], SILU=silu, **tile,
    )  # fmt: skip
    return y, total, mean, rstd


def backward(
    dy: Tensor, total: Tensor, weight: Tensor, bias: Tensor, groups: int, silu: bool, shift: Tensor | None,
    mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of h [N, C, H, W], weight [C] and bias [C], from that of y and what `forward` returned."""
    images, channels, height, width = dy.shape
    pixels, group_channels = height * width, channels // groups
    tile = _tile(channels)
    blocks = triton.cdiv(pixels, tile["BLOCK_P"])
    partial = torch.empty(images, blocks, 2, channels, device=dy.device)
    shared = (dy, total, shift, _row_stride(shift), weight, bias, mean, rstd)
    sizes, flags = (pixels, channels, group_channels, groups), {"SHIFT": shift is not None, "SILU": silu}
    _backward_sums_kernel[images, blocks](*shared, partial, *sizes, blocks, **flags, **tile)
    sums = partial.sum(dim=1)  # [N, 2, C]
    weighted = (sums * weight.float()).unflatten(2, (groups, group_channels)).sum(3) / (pixels * group_channels)
    inner, outer = weighted[:, 0].contiguous(), weighted[:, 1].contiguous()  # [N, groups]
    dh = torch.empty_like(total, memory_format=torch.channels_last)
    _backward_apply_kernel[images, blocks](*shared, inner, outer, dh, *sizes, **flags, **tile)
    dbias, dweight = (one.clone() for one in sums.sum(dim=0))  # an operator's outputs may not share memory
    return dh, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _row_stride(shift: Tensor | None) -> int:
    return 0 if shift is None else shift.stride(0)


def _tile(channels: int) -> dict[str, int]:
    wide = triton.next_power_of_2(channels)
    return {"BLOCK_P": max(1, TILE // wide), "BLOCK_C": wide, "num_warps": WARPS}


@torch.library.custom_op("pdlib::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`forward` as an operator that autograd and torch.compile know; without a residual the sum is an empty tensor."""
    y, total, mean, rstd = forward(x, weight, bias, groups, eps, silu, shift, residual)
    return y, x.new_empty(0) if residual is None else total, mean, rstd


@group_norm_silu.register_fake
def _(x, weight, bias, groups, eps, silu, shift, residual):
    moments = x.new_empty(len(x), groups, dtype=torch.float32)
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x), moments, moments.clone()


@torch.library.custom_op("pdlib::group_norm_silu_backward", mutates_args=())
def group_norm_silu_backward(
    dy: Tensor,
    total: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    silu: bool,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward` as an operator."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    return backward(dy, total, weight, bias, groups, silu, shift, mean, rstd)


@group_norm_silu_backward.register_fake
def _(dy, total, weight, bias, groups, silu, shift, mean, rstd):
    return torch.empty_like(total), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx, inputs, output):
    x, weight, bias, ctx.groups, _, ctx.silu, shift, residual = inputs
    _, total, mean, rstd = output
    ctx.joined = residual is not None
    ctx.save_for_backward(total if ctx.joined else x, weight, bias, shift, mean, rstd)


def _gradients(ctx, dy, dtotal, *_):
    total, weight, bias, shift, mean, rstd = ctx.saved_tensors
    dh, dweight, dbias = group_norm_silu_backward(dy, total, weight, bias, ctx.groups, ctx.silu, shift, mean, rstd)
    dshift = None if shift is None else dh.float().sum((2, 3)).to(shift.dtype)
    if ctx.joined:
        dh = dh + dtotal
    return dh, dweight, dbias, None, None, None, dshift, dh if ctx.joined else None


group_norm_silu.register_autograd(_gradients, setup_context=_keep)
