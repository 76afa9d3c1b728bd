"""The Probabilistic U-Net: a row of Table 1, and the generator of ES-DDPM (Kohl et al. 2018, arXiv 1806.05034).

The ES-DDPM paper does not tell how it adapted its generator to segmentation. At test a draw depends on its row's random
stream alone; in training the noise is an argument.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.networks.blocks import pad_to_multiple, plain_unet, require_streams


def _he_normal(network: nn.Module) -> nn.Module:
    """He's initial weights, as the authors use: with torch's own the code would hardly depend on the reference."""
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
        return Normal(mu, log_sigma.clamp(*self.log_sigma_range).exp(), validate_args=False)


class ProbabilisticUNet(nn.Module):
    """Probabilistic U-Net (Kohl et al. 2018, arXiv 1806.05034): one latent code per image, one segmentation per code.

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
    code_gain: float,
) -> ProbabilisticUNet:
    """Build a Probabilistic U-Net; trunk and encoders have the same `channels`, features are as wide as the first.

    `combination_layers` 1x1 convolutions with ReLU, as wide, come before the one to the logits (three by the authors).
    The code's first weights are `code_gain` times He's: with 1 a code that means nothing yet disturbs the trunk.
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
    prior = _he_normal(GaussianEncoder(in_channels, *gaussian))
    posterior = _he_normal(GaussianEncoder(in_channels + out_channels, *gaussian))
    combination = _he_normal(nn.Sequential(*hidden, nn.Conv2d(features, out_channels, 1)))
    with torch.no_grad():
        combination[0].weight[:, features:] *= code_gain
    return ProbabilisticUNet(trunk, prior, posterior, combination, latent=latent, factor=math.prod(strides))
