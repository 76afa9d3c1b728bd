"""Training slices in memory, and the batches cut from them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pdlib.training.fit import Fit


@dataclass(frozen=True)
class Batch:
    """What an update sees: image [B, 2, h, w], mask [B, C, h, w] in {0, 1}, its number and its own generator."""

    image: Tensor
    mask: Tensor
    step: int
    generator: torch.Generator


class SliceBank:
    """Training slices in memory; the batch of an update depends on (seed, step, rank) alone, so a resume is exact.

    Args:
        images: slices [2, H, W] float32, of any sizes; any number of channels, the same for all.
        masks: slices [C, H, W] in {0, 1}, one channel a class.
    """

    def __init__(self, images: list[Tensor], masks: list[Tensor]):
        if not images:
            raise ValueError("there are no training slices")
        self.images, self.masks = images, masks

    def to(self, device: torch.device) -> "SliceBank":
        """The same slices in the memory of a device, where they are then cropped and stacked."""
        return SliceBank([one.to(device) for one in self.images], [one.to(device) for one in self.masks])

    def draw(self, step: int, rank: int, fit: "Fit") -> Batch:
        """Random crops of random slices, and the generator for whatever else the update draws."""
        seed = np.random.SeedSequence((fit.seed, step, rank)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        rows = torch.randint(len(self.images), (fit.batch_size,), generator=generator).tolist()
        pairs = [self._crop(torch.cat([self.images[i], self.masks[i]]), fit, generator) for i in rows]
        image, mask = torch.stack(pairs).tensor_split([len(self.images[0])], dim=1)
        return Batch(image, mask, step, generator)

    @staticmethod
    def _crop(pair: Tensor, fit: "Fit", generator: torch.Generator) -> Tensor:
        height, width = fit.crop
        missing = [max(0, size - have) for size, have in zip(fit.crop, pair.shape[1:], strict=True)]
        pair = nn.functional.pad(pair, (0, missing[1], 0, missing[0]))
        top = int(torch.randint(pair.shape[1] - height + 1, (1,), generator=generator))
        left = int(torch.randint(pair.shape[2] - width + 1, (1,), generator=generator))
        pair = pair[:, top : top + height, left : left + width]
        flip = bool(torch.rand(1, generator=generator) < fit.flip_probability)
        return pair.flip(-1) if flip else pair
