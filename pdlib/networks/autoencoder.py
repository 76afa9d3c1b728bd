"""The auto-encoder of masks that latent diffusion works in (Rombach et al. 2022, arXiv 2112.10752).

The papers that segment so take Stable Diffusion's (SDSeg, Lin et al. 2024, arXiv 2406.18361) or train their own (LDSeg,
Zaman et al. 2024, arXiv 2407.12952). Ours is small and deterministic, and without biases before the code: a place that
is empty for as far as the encoder sees has the code zero.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MaskAutoencoder(nn.Module):
    """`encoder`: masks to codes on a grid that is `factor` times coarser; `decoder`: codes to logits of masks.

    A square of `factor` x `factor` pixels is one place of the code; 3x3 convolutions with SiLU see its neighbours too.

    Args:
        classes: channels of a mask.
        factor: between the two grids.
        latent_channels: of a code.
        channels: widths of the hidden layers, from the mask to the code.
    """

    def __init__(self, *, classes: int, factor: int, latent_channels: int, channels: Sequence[int]):
        super().__init__()
        self.factor = factor
        inside, outside = [classes * factor**2, *channels], [latent_channels, *reversed(channels)]
        to_code = nn.Conv2d(inside[-1], latent_channels, 1, bias=False)
        self.encoder = nn.Sequential(nn.PixelUnshuffle(factor), *_convolutions(inside, bias=False), to_code)
        to_logits = nn.Conv2d(outside[-1], inside[0], 1)
        self.decoder = nn.Sequential(*_convolutions(outside, bias=True), to_logits, nn.PixelShuffle(factor))

    def forward(self, mask: Tensor) -> Tensor:
        """Logits of the reconstruction of masks in 0..1, [N, C, H, W] both; H and W are multiples of `factor`."""
        return self.decoder(self.encoder(mask))


def _convolutions(widths: Sequence[int], bias: bool) -> list[nn.Module]:
    layers = [(nn.Conv2d(*pair, 3, padding=1, bias=bias), nn.SiLU()) for pair in pairwise(widths)]
    return [layer for pair in layers for layer in pair]
