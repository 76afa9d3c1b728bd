"""An image brought onto another image's grid through their affines: no registration, both lie in one scanner's space.

Arrays are canonical [Z, Y, X].
"""

import numpy as np
from scipy import ndimage

from pdlib.data.nifti import Grid

BOX = 1 / np.sqrt(12)  # deviation of a box of width 1


def onto_grid(values: np.ndarray, own: Grid, onto: Grid) -> tuple[np.ndarray, np.ndarray]:
    """An image, trilinear, and which voxels of the grid `onto` lie in its field of view: [Z, Y, X] float64 and bool.

    Along an axis where the new voxels are larger, the image is first blurred as much as averaging over them does.
    Zero outside the field of view.
    """
    matrix = _between(own, onto)
    larger = np.linalg.norm(matrix[:3, :3], axis=1)  # of the new voxels, in old ones, along the old axes
    deviation = BOX * np.sqrt(np.maximum(larger**2 - 1, 0))
    blurred = ndimage.gaussian_filter(values, deviation, mode="nearest") if deviation.any() else values
    covered = _sampled(np.ones(values.shape, np.uint8), matrix, onto, order=0, mode="grid-constant").astype(bool)
    return _sampled(blurred, matrix, onto, order=1, mode="nearest") * covered, covered


def mask_onto_grid(mask: np.ndarray, own: Grid, onto: Grid) -> np.ndarray:
    """A mask [Z, Y, X] bool by nearest neighbours; false outside its field of view."""
    return _sampled(mask.astype(np.uint8), _between(own, onto), onto, order=0, mode="grid-constant").astype(bool)


def _between(own: Grid, onto: Grid) -> np.ndarray:
    """[4, 4] voxel (z, y, x) of the grid `onto` -> voxel (z, y, x) of `own`."""
    matrix = np.linalg.inv(own.canonical_affine) @ onto.canonical_affine
    flip = [2, 1, 0, 3]
    return matrix[np.ix_(flip, flip)]


def _sampled(values: np.ndarray, matrix: np.ndarray, onto: Grid, *, order: int, mode: str) -> np.ndarray:
    return ndimage.affine_transform(values, matrix, output_shape=onto.canonical_shape[::-1], order=order, mode=mode)
