"""The noise streams of `noise` inside a kernel: the same Philox key and counter, hence the same bits."""

import triton
import triton.language as tl


@triton.jit
def stream_normal(key, place, step, member, slice_number):
    """Standard Gaussian noise of `noise.normal` (Box-Muller); key int64, the words of the counter int32."""
    zero = place * 0
    first, second, _, _ = tl.philox(key, place, zero + step, zero + member, zero + slice_number)
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(tl.uint_to_uniform_float(first), 1e-7)))
    return radius * tl.cos(6.283185307179586 * tl.uint_to_uniform_float(second))
