"""Networks that draw: the Probabilistic U-Net (a row of Table 1, and ES-DDPM's generator) and TDPM's conditional GAN.

The paper does not tell how it adapted either to segmentation. At test a draw depends on its row's random stream alone;
in training the noise is an argument. MONAI takes seconds to import, so only the builders import it.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

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
    norm: str,
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


def _he_normal(network: nn.Module) -> nn.Module:
    """Start from He's weights, as the authors: from torch's the code would hardly depend on the reference."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


class GaussianEncoder(nn.Module):
    """An axis-aligned Gaussian over latent codes, computed from an image.

    Blocks of `block_convolutions` 3x3 convolutions with ReLU, average pooling between them; then the mean over all
    pixels, and a 1x1 convolution to mu and log sigma, which is clamped to `log_sigma_range`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        block_convolutions: int,
        latent: int,
        log_sigma_range: tuple[float, float],
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for level, width in enumerate(channels):
            layers += [nn.AvgPool2d(2, ceil_mode=True)] if level else []
            for _ in range(block_convolutions):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
                in_channels = width
        self.blocks = nn.Sequential(*layers)
        self.moments = nn.Conv2d(in_channels, 2 * latent, 1)
        self.log_sigma_range = tuple(log_sigma_range)

    def forward(self, image: Tensor) -> Normal:
        """[N, in, H, W] -> a Gaussian of [N, latent] float32."""
        pooled = self.blocks(image).mean(dim=(2, 3), keepdim=True)
        mu, log_sigma = self.moments(pooled)[:, :, 0, 0].float().chunk(2, dim=1)
        return Normal(mu, log_sigma.clamp(*self.log_sigma_range).exp())


class ProbabilisticUNet(nn.Module):
    """Probabilistic U-Net (Kohl et al. 2018, arXiv 1806.05034): one latent code an image, one segmentation a code.

    Args:
        trunk: a U-Net from images to features.
        prior, posterior: Gaussians over the code given the image; given the image and the reference.
        combination: 1x1 convolutions from [features, code] to the logits.
        factor: H and W are padded to a multiple of it.
    """

    stochastic = True

    def __init__(
        self,
        trunk: nn.Module,
        prior: GaussianEncoder,
        posterior: GaussianEncoder,
        combination: nn.Module,
        *,
        latent: int,
        factor: int,
    ):
        super().__init__()
        self.trunk, self.prior, self.posterior, self.combination = trunk, prior, posterior, combination
        self.latent, self.factor = latent, factor

    def forward(
        self,
        image: Tensor,
        streams: Streams | None = None,
        *,
        mask: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of one draw from the prior, by each row's stream. [N, in, H, W] -> [N, out, H, W].

        With a reference `mask` [N, out, H, W] in {0, 1} and Gaussian numbers `fresh` [N, latent], what training needs:
        logits of a draw from the posterior, and KL(posterior || prior) [N] in nats. ValueError without either.
        """
        height, width = image.shape[-2:]
        image = pad_to_multiple(image, self.factor)
        prior = self.prior(image)
        if mask is None:
            fresh = noise.normal(require_streams(streams), noise.LATENT, self.latent)
            return self._decode(image, prior.loc + prior.scale * fresh)[..., :height, :width]
        posterior = self.posterior(torch.cat([image, pad_to_multiple(mask, self.factor)], dim=1))
        logit = self._decode(image, posterior.loc + posterior.scale * fresh)[..., :height, :width]
        return logit, kl_divergence(posterior, prior).sum(dim=1)

    def _decode(self, image: Tensor, code: Tensor) -> Tensor:
        features = self.trunk(image)
        everywhere = code[:, :, None, None].expand(-1, -1, *features.shape[-2:])
        return self.combination(torch.cat([features, everywhere.to(features.dtype)], dim=1))


def build_probabilistic_unet(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[int],
    num_res_units: int,
    norm: str,
    block_convolutions: int,
    latent: int,
    log_sigma_range: tuple[float, float],
    combination_layers: int,
) -> ProbabilisticUNet:
    """Build a Probabilistic U-Net; trunk and encoders have the same `channels`, features are as wide as the first.

    `combination_layers` 1x1 convolutions with ReLU, as wide, come before the one to the logits (three by the authors).
    """
    features = channels[0]
    trunk = plain_unet(
        in_channels=in_channels,
        out_channels=features,
        channels=channels,
        strides=strides,
        num_res_units=num_res_units,
        norm=norm,
        dropout=0.0,
    )
    gaussian = (channels, block_convolutions, latent, log_sigma_range)
    widths = [features + latent, *[features] * combination_layers]
    hidden = [layer for pair in pairwise(widths) for layer in (nn.Conv2d(*pair, 1), nn.ReLU())]
    return ProbabilisticUNet(
        trunk,
        _he_normal(GaussianEncoder(in_channels, *gaussian)),
        _he_normal(GaussianEncoder(in_channels + out_channels, *gaussian)),
        _he_normal(nn.Sequential(*hidden, nn.Conv2d(features, out_channels, 1))),
        latent=latent,
        factor=math.prod(strides),
    )


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
