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
    """What an update sees: image [B, 2, h, w], mask [B, C, h, w] in {0, 1}, its number and its own generator.

    Processes that share an update see every processes-th image of one whole batch, each from its rank on. What is
    random each of them draws for the whole batch, from a generator in the same state, and keeps its own images'
    numbers: so these do not depend on how many processes there are.
    """

    image: Tensor
    mask: Tensor
    step: int
    generator: torch.Generator
    rank: int = 0
    processes: int = 1
    shared: "Batch | None" = None

    def share(self, rank: int, processes: int) -> "Batch":
        """What one of several processes sees of this whole batch."""
        rows = slice(rank, None, processes)
        return Batch(self.image[rows], self.mask[rows], self.step, self.generator, rank, processes, self)

    @property
    def whole(self) -> "Batch":
        """The batch that this is a share of; one that nobody shares is whole itself."""
        return self if self.shared is None else self.shared

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows of what has one for each image of the whole batch."""
        return rows[self.rank :: self.processes]

    def integers(self, high: int) -> Tensor:
        """Random integers [B] below high, on the CPU."""
        return self.own(torch.randint(high, (len(self.whole.mask),), generator=self.generator))

    def uniform(self) -> Tensor:
        """Random numbers [B] in 0..1, on the CPU."""
        return self.own(torch.rand(len(self.whole.mask), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        """Gaussian numbers [B, *shape] on the batch's device; a GPU does not wait for them."""
        drawn = torch.randn((len(self.whole.mask), *shape), generator=self.generator)
        return self.own(drawn).to(self.mask.device, non_blocking=True)


class SliceBank:
    """Training slices in memory; the batch of an update depends on (seed, step) alone, so a resume is exact.

    Args:
        images: slices [2, H, W] float32, of any sizes; any number of channels, the same for all.
        masks: slices [C, H, W] in {0, 1}, one channel a class.
        dropped: share of the crops whose second channel, T1, is set to zero, its mean.
    """

    def __init__(self, images: list[Tensor], masks: list[Tensor], dropped: float = 0.0):
        if not images:
            raise ValueError("there are no training slices")
        self.images, self.masks, self.dropped = images, masks, dropped

    def to(self, device: torch.device) -> "SliceBank":
        """The same slices in the memory of a device, where they are then cropped and stacked."""
        return SliceBank([one.to(device) for one in self.images], [one.to(device) for one in self.masks], self.dropped)

    def draw(self, step: int, fit: "Fit") -> Batch:
        """Random crops of random slices, and the generator for whatever else the update draws."""
        seed = np.random.SeedSequence((fit.seed, step)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        pairs = [self._crop(*one, fit, generator) for one in self._slices(fit.batch_size, generator)]
        image, mask = torch.stack(pairs).tensor_split([len(self.images[0])], dim=1)
        if self.dropped:
            image[torch.rand(len(image), generator=generator) < self.dropped, 1] = 0.0
        return Batch(image, mask, step, generator)

    def _slices(self, count: int, generator: torch.Generator) -> list[tuple[int, tuple[int, int] | None]]:
        """The slices of a batch, and a pixel [y, x] that a crop has to hold; None: any crop will do."""
        return [(i, None) for i in torch.randint(len(self.images), (count,), generator=generator).tolist()]

    def _crop(self, i: int, holding: tuple[int, int] | None, fit: "Fit", generator: torch.Generator) -> Tensor:
        pair = torch.cat([self.images[i], self.masks[i]])
        missing = [max(0, size - have) for size, have in zip(fit.crop, pair.shape[1:], strict=True)]
        pair, corner = nn.functional.pad(pair, (0, missing[1], 0, missing[0])), []
        for axis, size in enumerate(fit.crop):
            low, high = 0, pair.shape[1 + axis] - size
            if holding is not None:
                low, high = max(low, holding[axis] - size + 1), min(high, holding[axis])
            corner.append(low + int(torch.randint(high - low + 1, (1,), generator=generator)))
        (top, left), (height, width) = corner, fit.crop
        pair = pair[:, top : top + height, left : left + width]
        flip = bool(torch.rand(1, generator=generator) < fit.flip_probability)
        return pair.flip(-1) if flip else pair


class LesionBank(SliceBank):
    """A bank whose batches hold crops around a lesion: as many of the images as share says, the first of a batch.

    Such a crop is any that holds a random pixel of a random slice's reference. ValueError where no slice has a lesion.
    """

    def __init__(self, images: list[Tensor], masks: list[Tensor], dropped: float, share: float):
        super().__init__(images, masks, dropped)
        self.share, self.lesions = share, {}
        for i, mask in enumerate(masks):
            if len(pixels := mask.amax(dim=0).nonzero()):  # [pixels, 2]
                self.lesions[i] = pixels.tolist()
        if not self.lesions:
            raise ValueError("there is no training slice with a lesion")

    def to(self, device: torch.device) -> "LesionBank":
        """As of a `SliceBank`."""
        images, masks = ([one.to(device) for one in part] for part in (self.images, self.masks))
        return LesionBank(images, masks, self.dropped, self.share)

    def _slices(self, count: int, generator: torch.Generator) -> list[tuple[int, tuple[int, int] | None]]:
        rich, found = round(self.share * count), [*self.lesions]
        rows = [found[i] for i in torch.randint(len(found), (rich,), generator=generator).tolist()]
        pixels = [int(torch.randint(len(self.lesions[i]), (1,), generator=generator)) for i in rows]
        around = [(i, tuple(self.lesions[i][pixel])) for i, pixel in zip(rows, pixels, strict=True)]
        return around + super()._slices(count - rich, generator)
