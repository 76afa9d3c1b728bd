"""Mean, variance, entropy and both votes over members in one read (twin: reference.ensemble_moments)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # places of a program


@triton.jit
def _ensemble_stats_kernel(
    members_ptr, mean_ptr, variance_ptr, entropy_ptr, votes_ptr, size, places, threshold, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    mean, squares, votes = (
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.float32),
        tl.zeros((BLOCK,), tl.int32),
    )
    for member in range(size):
        value = tl.load(members_ptr + place, mask=inside, other=0.0).to(tl.float32)
        members_ptr += places
        away = value - mean
        mean += away / (member + 1)
        squares += away * (value - mean)
        votes += (value >= threshold).to(tl.int32)
    rest = 1.0 - mean
    entropy = tl.where(mean > 0.0, -mean * tl.log(tl.maximum(mean, 1e-37)), 0.0)
    entropy += tl.where(rest > 0.0, -rest * tl.log(tl.maximum(rest, 1e-37)), 0.0)
    entropy = tl.where(mean == mean, entropy, mean)  # NaN stays NaN
    tl.store(mean_ptr + place, mean, mask=inside)
    tl.store(variance_ptr + place, squares / size, mask=inside)
    tl.store(entropy_ptr + place, entropy, mask=inside)
    tl.store(votes_ptr + place, votes, mask=inside)


def ensemble_moments(members: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, entropy (nat, float32) and the number of members >= threshold (int32): [E, ...] -> four of [...].

    members: contiguous, fp32 or bf16, in 0..1.
    """
    mean, variance, entropy = (torch.empty(members.shape[1:], device=members.device) for _ in range(3))
    votes = torch.empty(members.shape[1:], dtype=torch.int32, device=members.device)
    places = mean.numel()
    _ensemble_stats_kernel[(triton.cdiv(places, BLOCK),)](
        members, mean, variance, entropy, votes, len(members), places, threshold, BLOCK=BLOCK
    )
    return mean, variance, entropy, votes
