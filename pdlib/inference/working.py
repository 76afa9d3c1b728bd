"""The grid that networks work on: axial slices with voxels like those of the training, and the way back.

Arrays are [Z, Y, X] on the canonical axes, so that sagittal and coronal acquisitions are axial already, with long
voxels in the slices; spacing_mm is (z, y, x).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import interpolate

from pdlib.data.nifti import MAX_VOXELS
from pdlib.data.wmh import Volume

SLICE_MM = {
    "low": 3.0,
    "median": 3.0,
    "high": 3.0,
}  # of networks whose card says nothing: the challenge's and phantom's
LONG = 1.5  # times the other voxel sizes: then an axis is the one that slices were acquired along
_PLANES = ("axial", "coronal", "sagittal")  # by the axis (z, y, x) across


@dataclass(frozen=True)
class Working:
    """A volume as networks see it. notes: what was done to bring it there."""

    volume: Volume
    shape: tuple[int, int, int]  # of the volume it was made of
    notes: tuple[str, ...]

    def back(self, members: np.ndarray) -> np.ndarray:
        """Members [E, Z', Y', X'] -> [E, Z, Y, X] on its own grid, trilinear; unchanged where it is the same."""
        if members.shape[1:] == self.shape:
            return members
        out = np.empty((len(members), *self.shape), np.float32)
        for own, member in zip(out, members, strict=True):
            thick = in_plane(member[None], self.shape[1:], antialias=False)[0]
            flat = thick.reshape(1, len(thick), -1)  # [1, Z', Y X]
            own[:] = in_plane(flat[None], (self.shape[0], flat.shape[2]), antialias=False).reshape(self.shape)
        return out


def to_training_voxels(volume: Volume, data: Mapping, tolerance: float) -> Working | None:
    """The volume with voxels like those of the training; itself where they are within tolerance of them.

    Thinner slices are averaged to the training's thickness; thicker ones stay, for the networks see one at a time.
    data: of the networks' card: `in_plane_mm` and, where it has it, `slice_mm`, each with low, median and high. None
    where no brain is left, or more voxels than a case may have.
    """
    along_z, plane = data.get("slice_mm", SLICE_MM), data["in_plane_mm"]
    have = np.array(volume.spacing_mm)
    shape, notes = np.array(volume.brain.shape), _plane_note(have)
    if have[0] < along_z["low"] * (1 - tolerance):
        shape[0] = max(1, round(shape[0] * have[0] / along_z["median"]))
    elif have[0] > along_z["high"] * (1 + tolerance):
        notes += (f"slices of {have[0]:.3g} mm: the networks were trained on {along_z['median']:.3g} mm",)
    low, high = np.array(plane["low"]), np.array(plane["high"])
    if not ((have[1:] >= low * (1 - tolerance)).all() and (have[1:] <= high * (1 + tolerance)).all()):
        shape[1:] = np.maximum(1, np.round(shape[1:] * have[1:] / plane["median"]))
    if tuple(shape) == volume.brain.shape:
        return Working(volume, volume.brain.shape, notes)
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        return None
    image = _brought(volume.image, shape)
    brain = _brought(volume.brain[None].astype(np.float32), shape)[0] >= 0.5
    if not brain.any():
        return None
    spacing = have * volume.brain.shape / shape
    if shape[0] < volume.brain.shape[0]:
        notes += (f"slices of {have[0]:.3g} mm were averaged to {spacing[0]:.3g} mm for the networks",)
    if tuple(shape[1:]) != volume.brain.shape[1:]:
        was, now = (f"{size[1]:.3g} x {size[2]:.3g} mm" for size in (have, spacing))
        notes += (f"pixels of {was} were resampled to {now} for the networks, and the results back",)
    working = replace(volume, image=image * brain, brain=brain, spacing_mm=tuple(spacing.tolist()))
    return Working(working, volume.brain.shape, notes)


def in_plane(stack: np.ndarray, shape: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """Bilinear in-plane resampling, [C, Z, Y, X] -> [C, Z, *shape]; the same array where the shape is the same."""
    if tuple(shape) == stack.shape[2:]:
        return stack
    size = [int(length) for length in shape]
    return interpolate(torch.from_numpy(stack), size=size, mode="bilinear", antialias=antialias).numpy()


def _brought(stack: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """[C, Z, Y, X] -> [C, *shape]: bilinear in-plane, and the mean of thin slices over the thick one."""
    if shape[0] != stack.shape[1]:
        edges = np.linspace(0, stack.shape[1], shape[0] + 1)
        thin = np.arange(stack.shape[1])
        shared = np.minimum(edges[1:, None], thin + 1) - np.maximum(edges[:-1, None], thin)  # [Z', Z]
        shares = np.maximum(shared, 0) / np.diff(edges)[:, None]
        stack = np.stack([np.tensordot(shares.astype(np.float32), one, axes=1) for one in stack])
    return in_plane(np.ascontiguousarray(stack), tuple(shape[1:]), antialias=True)


def _plane_note(spacing_mm: np.ndarray) -> tuple[str, ...]:
    """A note where slices were acquired along another axis than z."""
    across = int(spacing_mm.argmax())
    if across == 0 or spacing_mm[across] < LONG * np.delete(spacing_mm, across).max():
        return ()
    return (f"the scan is {_PLANES[across]}, {spacing_mm[across]:.3g} mm thick: the networks see it cut axially",)
