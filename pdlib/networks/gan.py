"""TDPM's conditional GAN, which draws the state that the chain starts from (Zheng et al. 2022, arXiv 2202.09671).

The PD-DDPM paper does not tell how it adapted TDPM to segmentation. Ours draws x at index T' - 1 in two parts: what is
to be learnt, a soft mask, and what is known, the Gaussian noise of q(x_T'), which is added in closed form. The mask is
learnt in the game alone. At test a draw depends on its row's random stream alone; in training the noise is an argument.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.networks.blocks import pad_to_multiple, plain_unet, require_streams


class Scores(NamedTuple):
    """What the discriminator makes of a batch, a logit a pixel [N, 1, H, W]: positive for "real".

    fooled: of the draws, with gradient for the generator alone. The others have one for the discriminator alone: of the
    `drawn`, of the `real`, and of the `mismatched`, each of which is real but another image's.
    """

    fooled: Tensor
    drawn: Tensor
    real: Tensor
    mismatched: Tensor


class ConditionalGan(nn.Module):
    """TDPM's start (Zheng et al. 2022, arXiv 2202.09671): a draw of x at index T' - 1 given an image.

    Args:
        generator: from [image, Gaussian maps] to logits of a soft mask.
        discriminator: from [image, x] to a logit a pixel: real or drawn.
        noise_scales: how many pixels wide each number of a Gaussian map is, one map each.
        background, lesion: the mean of x at index T' - 1 where the mask is 0 and where it is 1.
        deviation: that of the noise there.
        factor: H and W are padded to a multiple of it for both networks.
    """

    stochastic = True

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        noise_scales: Sequence[int],
        background: float,
        lesion: float,
        deviation: float,
        factor: int,
    ):
        super().__init__()
        self.generator, self.discriminator, self.factor = generator, discriminator, factor
        self.noise_scales, self.background, self.lesion = tuple(noise_scales), background, lesion
        self.deviation = deviation

    def forward(
        self,
        image: Tensor,
        streams: Streams | None = None,
        *,
        real: Tensor | None = None,
        mismatched: Tensor | None = None,
        fresh: Tensor | None = None,
        diffuse: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor | Scores:
        """A draw of x by each row's stream. [N, in, H, W] -> [N, out, H, W] float32. ValueError without streams.

        With what training needs, the discriminator's scores: each image's `real` state at that index [N, out, H, W]
        and another's, `mismatched`, Gaussian numbers `fresh` [N, scales, H, W] for the generator, and `diffuse` from
        masks in 0..1 to states.
        """
        if real is None:
            streams, size = require_streams(streams), image.shape[-2:]
            mask = self.draw_mask(image, noise.normal(streams, noise.LATENT, len(self.noise_scales), *size))
            eps = noise.normal(streams, noise.START, *mask.shape[1:])
            return self.background + (self.lesion - self.background) * mask + self.deviation * eps
        drawn = diffuse(self.draw_mask(image, fresh))
        drawn, real, mismatched = (torch.cat([image, one], dim=1) for one in (drawn, real, mismatched))
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = self._judge(lambda seen: functional_call(self.discriminator, frozen, seen), drawn)
        judged = self._judge(self.discriminator, torch.cat([drawn.detach(), real, mismatched]))
        return Scores(fooled, *judged.chunk(3))

    def draw_mask(self, image: Tensor, fresh: Tensor) -> Tensor:
        """The soft mask in 0..1 of Gaussian numbers [N, scales, H, W]. [N, in, H, W] -> [N, out, H, W] float32."""
        height, width = image.shape[-2:]
        maps = [_coarse(fresh[:, i : i + 1], scale) for i, scale in enumerate(self.noise_scales)]
        logit = self.generator(pad_to_multiple(torch.cat([image, *maps], dim=1), self.factor))
        return torch.sigmoid(logit[..., :height, :width].float())

    def _judge(self, discriminator: Callable[[Tensor], Tensor], seen: Tensor) -> Tensor:
        height, width = seen.shape[-2:]
        return discriminator(pad_to_multiple(seen, self.factor))[..., :height, :width]


def _coarse(fresh: Tensor, scale: int) -> Tensor:
    """Every scale-th number of maps [..., H, W], each over scale x scale pixels."""
    height, width = fresh.shape[-2:]
    spread = fresh[..., ::scale, ::scale].repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
    return spread[..., :height, :width]


def build_generator(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int],
    strides: Sequence[int],
    num_res_units: int,
    norm: str,
    noise_scales: Sequence[int],
    discriminator_channels: Sequence[int],
    discriminator_strides: Sequence[int],
    background: float,
    lesion: float,
    deviation: float,
) -> ConditionalGan:
    """Build a U-Net generator and a U-Net discriminator (Schoenfeld et al. 2020, arXiv 2002.12655) that judges pixels.

    `out_channels` are the mask's. The discriminator has no normalisation, which would mix real and drawn states.
    """
    generator = plain_unet(
        in_channels=in_channels + len(noise_scales),
        out_channels=out_channels,
        channels=channels,
        strides=strides,
        num_res_units=num_res_units,
        norm=norm,
        dropout=0.0,
    )
    discriminator = plain_unet(
        in_channels=in_channels + out_channels,
        out_channels=1,
        channels=discriminator_channels,
        strides=discriminator_strides,
        num_res_units=0,
        norm=None,
        dropout=0.0,
    )
    return ConditionalGan(
        generator,
        discriminator,
        noise_scales=noise_scales,
        background=background,
        lesion=lesion,
        deviation=deviation,
        factor=math.lcm(math.prod(strides), math.prod(discriminator_strides)),
    )
