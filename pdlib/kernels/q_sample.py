"""Diffuse a mask with the noise of each row's stream; the result may be a view (twin: reference.q_sample)."""

import triton
import triton.language as tl
from torch import Tensor

from pdlib.kernels.noise import Streams
from pdlib.kernels.stream import key_and_words, row_channel_pixel, signed_word, stream_normal

BLOCK = 1024  # places of a program


@triton.jit
def _q_sample_kernel(
    x_start_ptr,
    out_ptr,
    weights_ptr,
    keys_ptr,
    slices_ptr,
    members_ptr,
    step,
    pixels,
    x_stride_row,
    x_stride_channel,
    x_stride_pixel,
    out_stride_row,
    out_stride_channel,
    out_stride_pixel,
    BLOCK: tl.constexpr,
):
    row, channel = tl.program_id(0), tl.program_id(1)
    pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    key, slice_number, member = (tl.load(keys_ptr + row), tl.load(slices_ptr + row), tl.load(members_ptr + row))
    noise = stream_normal(key, channel * pixels + pixel, step, member, slice_number)
    at = row.to(tl.int64) * x_stride_row + channel * x_stride_channel + pixel * x_stride_pixel
    x_start = tl.load(x_start_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x_t = tl.load(weights_ptr + 2 * row) * x_start + tl.load(weights_ptr + 2 * row + 1) * noise
    at = row.to(tl.int64) * out_stride_row + channel * out_stride_channel + pixel * out_stride_pixel
    tl.store(out_ptr + at, x_t.to(out_ptr.dtype.element_ty), mask=inside)


def q_sample_into(out: Tensor, x_start: Tensor, weights: Tensor, streams: Streams, step: int) -> None:
    """out[n] = weights[n, 0] x_start[n] + weights[n, 1] noise, the noise that of each row's stream at step.

    out, x_start: [N, C, H, W] views whose pixels lie at one stride (contiguous or channels-last), fp32 or bf16;
    weights: [N, 2] float32.
    """
    rows, channels, height, width = x_start.shape
    pixels = height * width
    _q_sample_kernel[rows, channels, triton.cdiv(pixels, BLOCK)](
        x_start,
        out,
        weights,
        *key_and_words(streams),
        signed_word(step),
        pixels,
        *row_channel_pixel(x_start),
        *row_channel_pixel(out),
        BLOCK=BLOCK,
    )
