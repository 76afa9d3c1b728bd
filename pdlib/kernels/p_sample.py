"""One reverse step in one pass over the state, in place in the network's input (twin: reference.reverse_step)."""

import triton
import triton.language as tl
from torch import Tensor

from pdlib.kernels.noise import Streams
from pdlib.kernels.stream import key_and_words, row_channel_pixel, stream_normal

BLOCK = 1024  # places of a program


@triton.jit
def _p_sample_kernel(
    x_ptr,
    output_ptr,
    weights_ptr,
    rows_ptr,
    steps_ptr,
    keys_ptr,
    slices_ptr,
    members_ptr,
    low,
    high,
    pixels,
    x_stride_row,
    x_stride_channel,
    x_stride_pixel,
    output_stride_row,
    output_stride_channel,
    output_stride_pixel,
    LEARNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, channel, classes = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    table_row = tl.load(rows_ptr + row)
    weights = weights_ptr + 7 * table_row
    at = row.to(tl.int64) * output_stride_row + channel * output_stride_channel + pixel * output_stride_pixel
    output = tl.load(output_ptr + at, mask=inside, other=0.0).to(tl.float32)
    at = row.to(tl.int64) * x_stride_row + channel * x_stride_channel + pixel * x_stride_pixel
    x_t = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x_start = tl.load(weights) * x_t + tl.load(weights + 1) * output
    x_start = tl.maximum(x_start, low, propagate_nan=tl.PropagateNan.ALL)
    x_start = tl.minimum(x_start, high, propagate_nan=tl.PropagateNan.ALL)
    x_prev = tl.load(weights + 2) * x_start + tl.load(weights + 3) * x_t
    sigma = tl.load(weights + 4)
    if sigma != 0.0:
        deviation = tl.zeros((BLOCK,), tl.float32) + sigma
        if LEARNED:
            values_ptr = output_ptr + row.to(tl.int64) * output_stride_row + (channel + classes) * output_stride_channel
            values = tl.load(values_ptr + pixel * output_stride_pixel, mask=inside, other=0.0).to(tl.float32)
            frac = (values + 1.0) / 2.0
            deviation = tl.exp(frac * tl.load(weights + 6) + (1.0 - frac) * tl.load(weights + 5))
        key, slice_number, member = (tl.load(keys_ptr + row), tl.load(slices_ptr + row), tl.load(members_ptr + row))
        step = tl.load(steps_ptr + table_row)
        x_prev += deviation * stream_normal(key, channel * pixels + pixel, step, member, slice_number)
    tl.store(x_ptr + at, x_prev.to(x_ptr.dtype.element_ty), mask=inside)


def p_sample_into(
    x: Tensor, output: Tensor, table: Tensor, steps: Tensor, rows: Tensor, streams: Streams, clamp: tuple[float, float]
) -> None:
    """Take one reverse step of x in place: sample n uses the weights in row rows[n] of the table.

    x, output: [N, C, H, W] views whose pixels lie at one stride, fp32 or bf16; output may have 2C channels, the second
    half of which chooses the variance. table: [S, 7] float32, as in `reference.reverse_step`; steps: [S] int32, the
    counter word of each row's noise; rows: [N] int32. Only x is written.
    """
    samples, channels, height, width = x.shape
    pixels = height * width
    _p_sample_kernel[samples, channels, triton.cdiv(pixels, BLOCK)](
        x,
        output,
        table,
        rows,
        steps,
        *key_and_words(streams),
        *clamp,
        pixels,
        *row_channel_pixel(x),
        *row_channel_pixel(output),
        LEARNED=output.shape[1] == 2 * channels,
        BLOCK=BLOCK,
    )
