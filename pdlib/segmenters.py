"""The segmenters of Table 1 behind one call: a row's name -> a network from images to one logit.

MONAI takes seconds to import, so only the builders import it.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

IMAGE_CHANNELS = 2  # FLAIR, T1


class Segmenter(nn.Module):
    """A network from images to one logit a pixel, and `factor`, the multiple that H and W must be padded to."""

    def __init__(self, network: nn.Module, factor: int):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, image: Tensor) -> Tensor:
        """Segment images. [N, 2, H, W] -> [N, 1, H, W]; ValueError unless H and W are multiples of `factor`."""
        if image.shape[-2] % self.factor or image.shape[-1] % self.factor:
            height, width = image.shape[-2:]
            raise ValueError(f"image of {height} x {width} pixels: pad it to a multiple of {self.factor}")
        return self.network(image)


def _unet(
    *, channels: Sequence[int], strides: Sequence[int], num_res_units: int, norm: str, dropout: float
) -> Segmenter:
    """U-Net (Ronneberger et al. 2015) with `num_res_units` residual convolutions a level (0: one plain convolution)."""
    from monai.networks.nets import UNet

    network = UNet(
        spatial_dims=2,
        in_channels=IMAGE_CHANNELS,
        out_channels=1,
        channels=channels,
        strides=strides,
        num_res_units=num_res_units,
        norm=norm,
        dropout=dropout,
    )
    return Segmenter(network, math.prod(strides))


def _attention_unet(*, channels: Sequence[int], strides: Sequence[int], dropout: float) -> Segmenter:
    """Attention U-Net (Oktay et al. 2018), the paper's pre-segmenter; batch normalisation."""
    from monai.networks.nets import AttentionUnet

    network = AttentionUnet(
        spatial_dims=2,
        in_channels=IMAGE_CHANNELS,
        out_channels=1,
        channels=channels,
        strides=strides,
        dropout=dropout,
    )
    return Segmenter(network, math.prod(strides))


def _cross_entropy(**options) -> nn.Module:
    return nn.BCEWithLogitsLoss(**options)


def _dice_cross_entropy(**options) -> nn.Module:
    from monai.losses import DiceCELoss

    return DiceCELoss(sigmoid=True, **options)


SEGMENTERS: dict[str, Callable[..., Segmenter]] = {"unet": _unet, "attention_unet": _attention_unet}
LOSSES: dict[str, Callable[..., nn.Module]] = {"ce": _cross_entropy, "dice_ce": _dice_cross_entropy}


def _choose(table: dict[str, Callable], name: str, what: str) -> Callable:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def build_segmenter(name: str, **hyperparameters) -> Segmenter:
    """Build a row of Table 1 (a key of `SEGMENTERS`). Each builder names its hyperparameters: `channels` of each level,
    `strides` between levels (one fewer), `dropout` and, for "unet", `num_res_units` and `norm`. ValueError if unknown.
    """
    return _choose(SEGMENTERS, name, "segmenter")(**hyperparameters)


def segmentation_loss(name: str, **options) -> nn.Module:
    """Loss of (logit, target), both [N, 1, H, W] float, the target in {0, 1} -> scalar. ValueError if unknown.

    "ce": binary cross-entropy, mean over pixels (the paper's authors); `options` go to torch's BCEWithLogitsLoss.
    "dice_ce": the same plus the soft Dice loss, mean over images; `options` go to MONAI's DiceCELoss (`batch=True`
    pools the batch before the ratio, so that slices without a lesion do not cost a whole Dice).
    """
    return _choose(LOSSES, name, "loss")(**options)
