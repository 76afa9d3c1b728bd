"""Photographs instead of volumes: the same networks and chains on single slices, with any number of classes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdlib.noise import Streams
from pdlib.sampler import Chain, Diffusion, sample


@torch.inference_mode()
def predict_slices(
    networks: Mapping[str, nn.Module],
    image: Tensor,
    *,
    classes: int,
    chain: Chain | None,
    diffusion: Diffusion,
    streams: Streams,
    threshold: float,
) -> Tensor:
    """One member of a chain for each image, or without a chain the segmenter's own answer. [N, in, H, W] -> 0..1
    [N, classes, H, W].

    networks: "segmenter", unless the chain starts from pure noise, "denoiser" and, for a chain that stops before the
    end, "one_step".
    """
    begun = torch.zeros(len(image), classes, *image.shape[2:], device=image.device)
    if chain is None or chain.start == "preseg":
        begun = torch.sigmoid(networks["segmenter"](image))
    if chain is None:
        return begun
    return sample(
        networks["denoiser"],
        image,
        (begun >= threshold).float(),
        chain=chain,
        diffusion=diffusion,
        streams=streams,
        refine=lambda x: torch.sigmoid(networks["one_step"](x)),
    )


def class_dice(mask: Tensor, reference: Tensor) -> Tensor:
    """Dice of every image and class, of its pixels. Two bool masks [N, C, H, W] -> [N, C], NaN where both are empty."""
    return 2 * (mask & reference).sum((2, 3)) / (mask.sum((2, 3)) + reference.sum((2, 3)))
