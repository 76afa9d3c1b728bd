"""How many pixels two masks share and hold, for many (member, slice) pairs at once (twin: reference.overlap_counts)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # pixels of a program's stride


@triton.jit
def _overlap_counts_kernel(masks_ptr, references_ptr, counts_ptr, slices, pixels, BLOCK: tl.constexpr):
    member, number = tl.program_id(0), tl.program_id(1)
    shared, mine, theirs = (tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32))
    pair = member.to(tl.int64) * slices + number
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        inside = pixel < pixels
        mask = tl.load(masks_ptr + pair * pixels + pixel, mask=inside, other=0).to(tl.int32)
        reference = tl.load(references_ptr + number.to(tl.int64) * pixels + pixel, mask=inside, other=0).to(tl.int32)
        shared += mask & reference
        mine += mask
        theirs += reference
    tl.store(counts_ptr + pair * 3, tl.sum(shared, axis=0))
    tl.store(counts_ptr + pair * 3 + 1, tl.sum(mine, axis=0))
    tl.store(counts_ptr + pair * 3 + 2, tl.sum(theirs, axis=0))


def overlap_counts(masks: Tensor, references: Tensor) -> Tensor:
    """Pixels shared, of the mask and of the reference: contiguous bool [E, N, H, W], [N, H, W] -> int32 [E, N, 3]."""
    members, slices, height, width = masks.shape
    counts = torch.empty(members, slices, 3, dtype=torch.int32, device=masks.device)
    grid = (members, slices)
    views = masks.view(torch.uint8), references.view(torch.uint8)
    _overlap_counts_kernel[grid](*views, counts, slices, height * width, BLOCK=BLOCK)
    return counts
