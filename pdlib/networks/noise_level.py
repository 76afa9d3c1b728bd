"""The network that reads off a state how much noise it holds (San-Roman et al. 2021, arXiv 2104.02600)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NoiseLevel(nn.Module):
    """Strided convolutions, a mean over the image and two linear layers.

    Args:
        in_channels: of [image, x_t].
        channels: of each convolution; every one halves height and width.
    """

    def __init__(self, *, in_channels: int, channels: Sequence[int]):
        super().__init__()
        pairs = zip([in_channels, *channels], channels, strict=False)
        layers = [layer for pair in pairs for layer in (nn.Conv2d(*pair, 3, stride=2, padding=1), nn.SiLU())]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(channels[-1], channels[-1]), nn.SiLU(), nn.Linear(channels[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """[image, x_t] [N, in, H, W] -> alphas_cumprod as the network estimates it, [N] float32 in 0..1."""
        return torch.sigmoid(self.head(self.features(x).mean(dim=(2, 3)))[:, 0].float())
