"""The segmenters of Table 1, each built by name: networks from images to one logit per pixel and class.

MONAI takes seconds to import, so only the builders import it.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pdlib.kernels.noise import Streams
from pdlib.networks.blocks import StreamDropout, pad_to_multiple, plain_unet
from pdlib.networks.probabilistic_unet import build_probabilistic_unet


class Segmenter(nn.Module):
    """A network from images to one logit per pixel and class.

    `factor`: H and W are padded to a multiple of it. `stochastic`: whether a segmentation is a random draw.
    """

    def __init__(self, network: nn.Module, factor: int):
        super().__init__()
        self.network, self.factor = network, factor
        self.stochastic = any(isinstance(layer, StreamDropout) for layer in network.modules())

    def forward(self, image: Tensor, streams: Streams | None = None) -> Tensor:
        """Segment images. [N, in, H, W] -> [N, out, H, W].

        In eval mode a stochastic segmenter draws from streams, one for each image; ValueError without them.
        """
        for layer in self.modules():
            if isinstance(layer, StreamDropout):
                layer.streams = streams
        height, width = image.shape[-2:]
        return self.network(pad_to_multiple(image, self.factor))[..., :height, :width]


def _unet(*, strides: Sequence[int], **hyperparameters) -> Segmenter:
    """U-Net (Ronneberger et al. 2015)."""
    return Segmenter(plain_unet(strides=strides, **hyperparameters), math.prod(strides))


def _attention_unet(
    *, in_channels: int, out_channels: int, channels: Sequence[int], strides: Sequence[int], dropout: float
) -> Segmenter:
    """Attention U-Net (Oktay et al. 2018), the paper's pre-segmenter; batch normalisation."""
    from monai.networks.nets import AttentionUnet

    network = AttentionUnet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=channels,
        strides=strides,
        dropout=dropout,
    )
    return Segmenter(network, math.prod(strides))


class _Single(nn.Module):
    def forward(self, outputs: list[Tensor]) -> Tensor:
        (only,) = outputs
        return only


def _unet_plus_plus(
    *, in_channels: int, out_channels: int, channels: Sequence[int], norm: str, dropout: float
) -> Segmenter:
    """U-Net++ (Zhou et al. 2018) of five levels without deep supervision; the sixth of `channels` feeds the output."""
    from monai.networks.nets import BasicUNetPlusPlus

    network = BasicUNetPlusPlus(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        features=channels,
        norm=norm,
        dropout=dropout,
    )
    for depth in (1, 2, 3):  # the outputs that only deep supervision trains
        network.set_submodule(f"final_conv_0_{depth}", nn.Identity())
    return Segmenter(nn.Sequential(network, _Single()), 16)


def _bayesian_unet(*, strides: Sequence[int], dropout: float, dropout_from: int, **hyperparameters) -> Segmenter:
    """U-Net with dropout, at test too (Gal & Ghahramani 2016), in its levels from `dropout_from` (0 is the first)."""
    network = plain_unet(strides=strides, dropout=dropout, **hyperparameters)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    deep = [name for name in layers if name.split(".").count("submodule") >= dropout_from]  # MONAI nests its levels
    if not deep:
        raise ValueError(f"dropout_from {dropout_from}: the network has no dropout in a level so deep")
    for name in layers:
        network.set_submodule(name, StreamDropout(dropout, deep.index(name)) if name in deep else nn.Identity())
    return Segmenter(network, math.prod(strides))


Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(**options) -> Loss:
    return nn.BCEWithLogitsLoss(**options)


def _dice_cross_entropy(*, lambda_ce: float, **options) -> Loss:
    from monai.losses import DiceLoss

    cross_entropy, dice = nn.BCEWithLogitsLoss(), DiceLoss(sigmoid=True, **options)
    return lambda logit, target: dice(logit, target) + lambda_ce * cross_entropy(logit, target)


SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "unet": _unet,
    "attention_unet": _attention_unet,
    "unet_plus_plus": _unet_plus_plus,
    "bayesian_unet": _bayesian_unet,
    "probabilistic_unet": build_probabilistic_unet,
}
LOSSES: dict[str, Callable[..., Loss]] = {"ce": _cross_entropy, "dice_ce": _dice_cross_entropy}


def _choose(table: dict[str, Callable], name: str, what: str) -> Callable:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def build_segmenter(name: str, **hyperparameters) -> nn.Module:
    """Build a row of Table 1 (a key of `SEGMENTERS`): called as a `Segmenter`, with its `factor` and `stochastic`.

    Each builder names its hyperparameters: `in_channels`, `out_channels` (classes), `channels` of each level and, most,
    `strides` between levels (one fewer), `norm` and `dropout`. ValueError if unknown.
    """
    return _choose(SEGMENTERS, name, "segmenter")(**hyperparameters)


def segmentation_loss(name: str, **options) -> Loss:
    """Loss of (logit, target), both [N, C, H, W] float, the target in {0, 1} -> scalar. ValueError if unknown.

    "ce": binary cross-entropy, mean over pixels and classes (the paper's authors), which may overlap; `options` go to
    torch's BCEWithLogitsLoss. "dice_ce": `lambda_ce` times the same plus the soft Dice loss, mean over images and
    classes; the other `options` go to MONAI's DiceLoss (`batch=True` pools the batch before the ratio, so that slices
    without a lesion do not cost a whole Dice).
    """
    return _choose(LOSSES, name, "loss")(**options)
