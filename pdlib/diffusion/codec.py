"""How a {0, 1} mask is written into the chain, and to which range a predicted one is clamped."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """What a chain's states stand for: masks of some range, or an auto-encoder's codes."""

    clamp: tuple[float, float]  # of a predicted x_start

    def encode(self, mask: Tensor) -> Tensor:
        """Masks in 0..1 [N, C, H, W] -> x_start."""

    def decode(self, x: Tensor) -> Tensor:
        """x_start -> masks in 0..1, [N, C, H, W]."""

    def image(self, image: Tensor) -> Tensor:
        """[N, in, H, W] -> what the network sees beside the state, of the state's height and width."""


@dataclass(frozen=True)
class MaskCodec:
    """Masks run from low (background) to high (lesion) in the chain; predicted x_start is clamped to clamp.

    T' only means what it means together with this range: at T'/T = 0.3 {0, 1} loses a sixth of isolated pixels,
    {-1, 1} hardly any. The authors' ADDPM code uses {0, 1} masks and clamps to [-1, 1].
    """

    low: float
    high: float
    clamp: tuple[float, float]

    def encode(self, mask: Tensor) -> Tensor:
        """[...] in 0..1 -> the chain's range."""
        return self.low + (self.high - self.low) * mask

    def decode(self, x: Tensor) -> Tensor:
        """[...] in the chain's range -> 0..1, clamped."""
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1)

    def image(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image


CODECS = {
    "zero_one": MaskCodec(0.0, 1.0, (0.0, 1.0)),
    "minus_one_one": MaskCodec(-1.0, 1.0, (-1.0, 1.0)),
    "official": MaskCodec(0.0, 1.0, (-1.0, 1.0)),
}


def build_codec(name: str) -> MaskCodec:
    """The codec called name; ValueError for a name that is not in CODECS."""
    if name not in CODECS:
        raise ValueError(f"unknown codec {name!r}: choose one of {sorted(CODECS)}")
    return CODECS[name]
