"""What several networks are built from. MONAI takes seconds to import, so only the functions that build import it."""

from collections.abc import Sequence

from torch import Tensor, nn

from pdlib.kernels import noise
from pdlib.kernels.noise import Streams


def pad_to_multiple(image: Tensor, factor: int) -> Tensor:
    """Append zeros (background) below and to the right. [N, C, H, W] -> the next multiples of `factor`."""
    height, width = image.shape[-2:]
    return nn.functional.pad(image, (0, -width % factor, 0, -height % factor))


def require_streams(streams: Streams | None) -> Streams:
    """The streams; ValueError where there are none."""
    if streams is None:
        raise ValueError("this network draws at random: pass it streams, one for each image")
    return streams


def plain_unet(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[int],
    num_res_units: int,
    norm: str | None,
    dropout: float,
) -> nn.Module:
    """MONAI's U-Net with `num_res_units` residual convolutions a level (0: one plain convolution); linear output."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=channels,
        strides=strides,
        num_res_units=num_res_units,
        norm=norm,
        dropout=dropout,
    )


class StreamDropout(nn.Module):
    """Dropout that stays on at test, where each row's random stream decides which units the row drops.

    Set `streams` before a call in eval mode. `layer` is the layer's number: each layer draws its own numbers.
    """

    def __init__(self, p: float, layer: int):
        super().__init__()
        self.p, self.layer = p, layer
        self.streams: Streams | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> the same; kept units are divided by 1 - p."""
        if self.training:
            return nn.functional.dropout(x, self.p)
        keep = noise.uniform(require_streams(self.streams), noise.DROPOUT + self.layer, *x.shape[1:]) >= self.p
        return x * keep / (1 - self.p)
