"""Counter-based noise: every (subject, slice, member, step, pixel) has its own Gaussian number.

Philox4x32-10 (Salmon et al. 2011) with the key (seed, subject) and the counter (pixel, step, member, slice). It keeps
no state, so a sample never depends on batch size, order, devices or jobs, and the first k members of an ensemble are
the ensemble of k. Triton's `tl.philox` on the same key and counter gives the same bits.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Counter words for numbers drawn outside the chain; a step of the chain uses its index.
START = 0xFFFFFFFF  # the noise of the start state
LATENT = 0xFFFFFFFE  # the latent code of a generator
DROPOUT = 0xFFFF0000  # plus the number of the layer: the units that a pass keeps
_WORD = 0xFFFFFFFF
_ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_INT31_TO_UNIT = 4.6566127342e-10  # Triton's uint_to_uniform_float


@dataclass(frozen=True)
class Streams:
    """One random stream per row of a batch; any shape [...] in the place of [N] is a batch of its elements in order.

    Args:
        keys: [N] 64-bit keys as int64, from `stream_key`.
        slices: [N] slice numbers.
        members: [N] ensemble members.
    """

    keys: Tensor
    slices: Tensor
    members: Tensor

    def __getitem__(self, rows) -> "Streams":
        return Streams(self.keys[rows], self.slices[rows], self.members[rows])

    def to(self, device) -> "Streams":
        """The same streams on another device."""
        return Streams(self.keys.to(device), self.slices.to(device), self.members.to(device))


def stream_key(seed: int, subject: str) -> int:
    """A 64-bit key for a run's seed and a subject, as a signed integer."""
    digest = hashlib.blake2b(f"{seed}/{subject}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def subject_streams(seed: int, subject: str, slices: Tensor, members: Tensor) -> Streams:
    """Streams of one subject for paired [N] slices and members."""
    return Streams(torch.full_like(slices, stream_key(seed, subject), dtype=torch.int64), slices, members)


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: int64 tensors that hold 32-bit words in, the four output words out (broadcast together)."""
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = _ROUND_MULTIPLIERS[0] * c0, _ROUND_MULTIPLIERS[1] * c2
        c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _WORD, ((p0 >> 32) ^ c3 ^ k1) & _WORD
        c1, c3 = p1, p0  # of which the low word counts
        k0, k1 = k0 + _KEY_INCREMENTS[0], k1 + _KEY_INCREMENTS[1]
    return c0, c1 & _WORD, c2, c3 & _WORD


def _uniform(word: Tensor) -> Tensor:
    return torch.minimum(word, _WORD - word).to(torch.float32) * _INT31_TO_UNIT


def _words(streams: Streams, step: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
    device = streams.keys.device
    place = torch.arange(count, device=device)
    rows = [value.reshape(-1, 1) for value in (streams.keys, streams.members, streams.slices)]
    step_word = torch.as_tensor(step, dtype=torch.int64, device=device).reshape(-1, 1)
    first, second, _, _ = philox(rows[0], (place, step_word, rows[1], rows[2]))
    return first, second


def uniform(streams: Streams, step: int, *shape: int) -> Tensor:
    """Numbers in [0, 1), one for each place of [N, *shape], float32 on the streams' device."""
    first, _ = _words(streams, step, math.prod(shape))
    return _uniform(first).reshape(-1, *shape)


def normal(streams: Streams, step: int | Tensor, *shape: int) -> Tensor:
    """Standard Gaussian noise of a step (one for all rows, or [N]), [N, *shape] float32 on the streams' device
    (Box-Muller)."""
    first, second = _words(streams, step, math.prod(shape))
    radius = torch.sqrt(-2.0 * torch.log(_uniform(first).clamp_min(1e-7)))
    return (radius * torch.cos(2 * math.pi * _uniform(second))).reshape(-1, *shape)
