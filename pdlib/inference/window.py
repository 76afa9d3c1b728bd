"""The part of a volume that networks see: the slices that hold brain, cut to the brain and padded."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdlib.data.wmh import Volume


@dataclass(frozen=True)
class Window:
    """The slices that hold brain, and a rectangle around it, the same in all of them; it may reach beyond the image."""

    slices: np.ndarray  # [N] indices along Z
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, brain: np.ndarray, multiple: int) -> "Window":
        """The smallest window around a brain mask [Z, Y, X] whose height and width are divisible by multiple."""
        slices, rows, columns = (np.flatnonzero(brain.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        top, height = _padded_range(rows, multiple)
        left, width = _padded_range(columns, multiple)
        return cls(slices, top, left, height, width)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """[Z, Y, X] -> [N, height, width], zero where the window reaches beyond the image."""
        out = np.zeros((len(self.slices), self.height, self.width), dtype=array.dtype)
        inside, source = self._overlap(array.shape)
        out[(slice(None), *inside)] = array[(self.slices, *source)]
        return out

    def put_back(self, values: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """[..., N, height, width] -> [..., Z, Y, X], zero outside the window."""
        out = np.zeros((*values.shape[:-3], *shape), dtype=values.dtype)
        inside, source = self._overlap(shape)
        out[(..., self.slices, *source)] = values[(..., *inside)]
        return out

    def _overlap(self, shape: tuple[int, int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        inside, source = [], []
        for start, length, size in ((self.top, self.height, shape[1]), (self.left, self.width, shape[2])):
            low, high = max(start, 0), min(start + length, size)
            inside.append(slice(low - start, high - start))
            source.append(slice(low, high))
        return tuple(inside), tuple(source)


def _padded_range(indices: np.ndarray, multiple: int) -> tuple[int, int]:
    length = int(indices[-1] - indices[0] + 1)
    padded = -(-length // multiple) * multiple
    return int(indices[0]) - (padded - length) // 2, padded


def brain_slices(volume: Volume, multiple: int) -> tuple[Tensor, Window]:
    """The images that networks see of a volume, [N, 2, H, W] float32, and the window that they were cut with."""
    window = Window.around(volume.brain, multiple)
    return torch.from_numpy(np.stack([window.cut(channel) for channel in volume.image], axis=1)), window
