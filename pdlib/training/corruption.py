"""Pre-segmentations to train on: a segmenter's, mixed with corrupted references and with empty masks.

A network that only ever sees good pre-segmentations learns to copy them. From corrupted ones it learns what may be
wrong with them, from empty ones to find lesions by itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

TOUCHING = np.ones((3, 3))  # of a lesion's pixels in a slice, those that meet at a corner too
RESHAPE = (lambda mask: mask, ndimage.binary_dilation, ndimage.binary_erosion)  # by a pixel


@dataclass(frozen=True)
class Mixture:
    """What stands in for a segmenter's pre-segmentation, and how often.

    Args:
        corrupted: share of the images that get a corrupted reference.
        empty: share of the images that get an empty mask.
        dropped: chance that a corrupted reference loses a lesion, for each of its own.
        added: chance that it gains a lesion, for each of those of the image before in the batch.
    """

    corrupted: float
    empty: float
    dropped: float
    added: float


def mixed_presegs(mask: Tensor, preseg: Tensor, mixture: Mixture, generator: torch.Generator) -> Tensor:
    """Pre-segmentations for a batch: some of those given, corrupted references and empty masks for the others.

    mask, preseg: [B, C, h, w] in {0, 1}; the result is the same for the same state of the generator.
    """
    drawn = torch.rand(len(mask), generator=generator)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    mixed = preseg.clone()
    mixed[drawn < mixture.empty] = 0
    spoilt = (drawn >= mixture.empty) & (drawn < mixture.empty + mixture.corrupted)
    references = mask.cpu().numpy() > 0
    for i in spoilt.nonzero().flatten().tolist():
        channels = [corrupted(*pair, mixture, rng) for pair in zip(references[i], references[i - 1], strict=True)]
        mixed[i] = torch.from_numpy(np.stack(channels)).to(mixed)
    return mixed


def corrupted(mask: np.ndarray, other: np.ndarray, mixture: Mixture, rng: np.random.Generator) -> np.ndarray:
    """A reference without some of its lesions and with some of another's, as it is or grown or shrunk; [h, w] bool."""
    kept = _some_lesions(mask, 1 - mixture.dropped, rng) | _some_lesions(other, mixture.added, rng)
    return RESHAPE[rng.integers(len(RESHAPE))](kept)


def _some_lesions(mask: np.ndarray, chance: float, rng: np.random.Generator) -> np.ndarray:
    labels, count = ndimage.label(mask, TOUCHING)
    return np.append(False, rng.random(count) < chance)[labels]
