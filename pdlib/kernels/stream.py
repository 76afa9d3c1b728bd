"""The noise streams of `noise` inside a kernel: the same Philox key and counter, hence the same bits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pdlib.kernels.noise import Streams


@triton.jit
def stream_normal(key, place, step, member, slice_number):
    """Standard Gaussian noise of `noise.normal` (Box-Muller); key int64, the words of the counter int32."""
    zero = place * 0
    first, second, _, _ = tl.philox(key, place, zero + step, zero + member, zero + slice_number)
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(tl.uint_to_uniform_float(first), 1e-7)))
    return radius * tl.cos(6.283185307179586 * tl.uint_to_uniform_float(second))


def key_and_words(streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, slices and members of the rows as a kernel takes them: contiguous [N] int64, int32, int32."""
    words = streams.keys, streams.slices.to(torch.int32), streams.members.to(torch.int32)
    return tuple(word.reshape(-1).contiguous() for word in words)


def row_channel_pixel(x: Tensor) -> tuple[int, int, int]:
    """Strides of [N, C, H, W] with the pixels flattened. ValueError where they do not lie at one stride."""
    row, channel, line, pixel = x.stride()
    if x.shape[2] > 1 and line != x.shape[3] * pixel:
        raise ValueError(f"strides {x.stride()} of shape {tuple(x.shape)}: the pixels do not lie at one stride")
    return row, channel, pixel


def signed_word(word: int) -> int:
    """An unsigned 32-bit counter word as the int32 of the same bits."""
    return word - 2**32 if word >= 2**31 else word
