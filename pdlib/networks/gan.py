"""TDPM's conditional GAN, which draws the state that the chain starts from (Zheng et al. 2022, arXiv 2202.09671).

The PD-DDPM paper does not tell how it adapted TDPM to segmentation. At test a draw depends on its row's random stream
alone; in training the noise is an argument.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.networks.blocks import pad_to_multiple, plain_unet, require_streams


class ConditionalGan(nn.Module):
    """TDPM's start (Zheng et al. 2022, arXiv 2202.09671): a generator that draws x at index T' - 1 given an image.

    Args:
        generator: from [image, Gaussian map] to x, unbounded.
        discriminator: from [image, x] to a list of maps, of which the last tells a real x from a drawn one.
        factor: H and W are padded to a multiple of it for the generator.
    """

    stochastic = True

    def __init__(self, generator: nn.Module, discriminator: nn.Module, *, factor: int):
        super().__init__()
        self.generator, self.discriminator, self.factor = generator, discriminator, factor

    def forward(
        self,
        image: Tensor,
        streams: Streams | None = None,
        *,
        real: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """A draw of x by each row's stream. [N, in, H, W] -> [N, out, H, W].

        With a `real` x [N, out, H, W] and Gaussian numbers `fresh` [N, 1, H, W], what training needs, three maps
        [N, 1, h, w] of the discriminator: of the draw, with gradient for the generator alone; of the draw and of the
        real x, with gradient for the discriminator alone. ValueError without either.
        """
        if real is None:
            return self._draw(image, noise.normal(require_streams(streams), noise.LATENT, 1, *image.shape[-2:]))
        drawn = torch.cat([image, self._draw(image, fresh)], dim=1)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        judged = functional_call(self.discriminator, frozen, drawn)
        return judged[-1], self.discriminator(drawn.detach())[-1], self.discriminator(torch.cat([image, real], 1))[-1]

    def _draw(self, image: Tensor, fresh: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return self.generator(pad_to_multiple(torch.cat([image, fresh], dim=1), self.factor))[..., :height, :width]


def build_generator(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[int],
    num_res_units: int,
    norm: str,
    discriminator_channels: int,
    discriminator_layers: int,
    discriminator_norm: str,
) -> ConditionalGan:
    """Build a U-Net generator and its conditional PatchGAN (Isola et al. 2017); `out_channels` are the mask's.

    The generator must carry its noise to every pixel: let the first of its `strides` be 1. The discriminator has
    `discriminator_layers` convolutions between its first, `discriminator_channels` wide, and its last.
    """
    from monai.networks.nets import PatchDiscriminator

    generator = plain_unet(
        in_channels=in_channels + 1,
        out_channels=out_channels,
        channels=channels,
        strides=strides,
        num_res_units=num_res_units,
        norm=norm,
        dropout=0.0,
    )
    discriminator = PatchDiscriminator(
        spatial_dims=2,
        in_channels=in_channels + out_channels,
        channels=discriminator_channels,
        num_layers_d=discriminator_layers,
        norm=discriminator_norm,
    )
    return ConditionalGan(generator, discriminator, factor=math.prod(strides))
