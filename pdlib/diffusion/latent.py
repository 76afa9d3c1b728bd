"""Latent diffusion: the chain's states are the codes of an auto-encoder of masks (Rombach et al. 2022)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from pdlib.diffusion.sampler import Diffusion
from pdlib.diffusion.schedule import build_schedule
from pdlib.networks.autoencoder import MaskAutoencoder
from pdlib.networks.blocks import pad_to_multiple


@dataclass(frozen=True)
class LatentCodec:
    """Masks are codes in the chain; the image comes to their grid without a loss, as more channels.

    Args:
        factor: between the grids of mask and code.
        scale: of a code in the chain to the encoder's; it gives the codes of the training masks their deviation.
        clamp: the range of a predicted code, that of the training masks.
        encoder: masks in 0..1 [N, C, H, W] -> [N, c, H / factor, W / factor].
        decoder: from there back, to logits of a mask [N, C, H, W]. Two codecs that differ in their networks alone are
            equal: tables of steps, which are kept by what they depend on, do not depend on the networks.
    """

    factor: int
    scale: float
    clamp: tuple[float, float]
    encoder: Callable[[Tensor], Tensor] = field(compare=False)
    decoder: Callable[[Tensor], Tensor] = field(compare=False)

    def encode(self, mask: Tensor) -> Tensor:
        """Masks in 0..1 [N, C, H, W] -> codes [N, c, h, w]; ValueError unless H and W are multiples of `factor`."""
        self._check(mask)
        return self.scale * self.encoder(mask)

    def decode(self, x: Tensor) -> Tensor:
        """Codes [N, c, h, w] -> masks in 0..1 [N, C, H, W]."""
        return self.decoder(x / self.scale).sigmoid()

    def image(self, image: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, in * factor^2, h, w], a place's pixels one after the other; ValueError as `encode`."""
        self._check(image)
        return pixel_unshuffle(image, self.factor)

    def _check(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"image of {height} x {width} pixels: pad it to a multiple of {self.factor}")


def latent_codec(autoencoder: MaskAutoencoder, scale: float, clamp: Sequence[float]) -> LatentCodec:
    """The codec of an auto-encoder; see `LatentCodec`."""
    return LatentCodec(autoencoder.factor, scale, tuple(clamp), autoencoder.encoder, autoencoder.decoder)


def latent_diffusion(about: Mapping, autoencoder: MaskAutoencoder) -> Diffusion:
    """What a denoiser of codes was trained with: "diffusion" in its card, and the network of the auto-encoder."""
    codec = latent_codec(autoencoder, about["scale"], about["clamp"])
    return Diffusion(build_schedule(**about["schedule"]), codec, about["prediction"])


@torch.inference_mode()
def measure_codes(autoencoder: MaskAutoencoder, masks: Iterable[Tensor], deviation: float) -> dict:
    """The scale that gives the codes of masks [C, H, W] a deviation over all places and channels, and their range then.

    Returned as `LatentCodec` takes them: scale, clamp.
    """
    factor, codes = autoencoder.factor, []
    for mask in masks:
        codes.append(autoencoder.encoder(pad_to_multiple(mask[None], factor)).flatten().double())
    every = torch.cat(codes)
    scale = deviation / float(every.std())
    return {"scale": scale, "clamp": [scale * float(every.min()), scale * float(every.max())]}
