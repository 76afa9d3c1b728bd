"""What the phantom is made of: its parameters, and one subject's brain from the MNI152 templates, on a 1 mm canvas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from pydantic import StrictFloat, StrictInt
from scipy import ndimage
from scipy.sparse import csr_array

from pdlib.data.recipe import Numbers, Range, Recipe

TOUCHING = np.ones((3, 3, 3), bool)


class Site(Recipe):
    """One scanner: where its cases go, its grid (x, y, z), how its header is turned, and how its images look."""

    folder: str
    first_id: StrictInt
    matrix: tuple[StrictInt, StrictInt, StrictInt]
    spacing_mm: tuple[StrictFloat, StrictFloat, StrictFloat]
    orientation: str  # towards which side each stored axis grows, e.g. "LPS"
    tilt_degrees: StrictFloat
    flair_white: StrictFloat
    t1_white: StrictFloat
    noise: StrictFloat
    bias: StrictFloat
    gm_flair_shift: StrictFloat


class Rater(Recipe):
    """One simulated observer: where their files go, how much larger they draw, and how much they scatter."""

    folder: str
    log_size_bias: StrictFloat
    log_size_jitter: StrictFloat
    boundary_noise: StrictFloat
    missed_size_mm3: StrictFloat


class PhantomParameters(Recipe):
    """All that shapes the phantom. A Range is drawn from uniformly for each subject, but for *_log_mm3: mu, sigma."""

    sites: tuple[Site, ...]
    raters: tuple[Rater, ...]
    # anatomy
    scale: Range
    rotation_degrees: StrictFloat
    warp_mm: StrictFloat
    warp_knots_mm: StrictFloat
    ventricle_growth_mm: Range
    tissue_sharpness: StrictFloat
    # contrast, in units of white matter
    flair_gm: Range
    flair_csf: Range
    flair_lesion_quantiles: Numbers
    t1_gm: Range
    t1_csf: Range
    t1_lesion: Range
    white_matter_texture: StrictFloat
    texture_knots_mm: StrictFloat
    # lesions
    case_volume_quantiles_ml: Numbers
    case_count_quantiles: Numbers
    count_scatter: StrictFloat
    large_weight: StrictFloat
    small_log_mm3: Range
    large_log_mm3: Range
    near_ventricle_small: StrictFloat
    near_ventricle_large: StrictFloat
    deep_decay_mm: StrictFloat
    cortex_margin_mm: StrictFloat
    boundary_noise: StrictFloat
    boundary_knots_mm: StrictFloat
    image_log_size_jitter: StrictFloat
    lesion_contrast_scatter: StrictFloat
    edge_mm: StrictFloat
    # distractors
    halo_gain: StrictFloat
    halo_mm: StrictFloat
    rim_gain: Range
    rim_mm: Range
    dirty_gain: Range
    dirty_t1_loss: StrictFloat
    cortex_gain: Range
    flow_gain: Range
    patch_knots_mm: StrictFloat
    patch_threshold: StrictFloat
    # other pathology
    stroke_ml: Range
    stroke_flair: Range
    stroke_t1: Range


class Anatomy(NamedTuple):
    """Tissue fractions (their sum is 1 in the brain, 0 outside) and distances in mm, each [Z, Y, X] float32 at 1 mm."""

    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    ventricle_mm: np.ndarray  # distance to the lateral ventricles; -2 inside
    cortex_mm: np.ndarray  # distance to grey matter or CSF other than the ventricles'


@lru_cache(maxsize=1)
def template() -> Anatomy:
    """The MNI152 2009a templates shipped with nilearn, as an Anatomy on their 1 mm grid with a margin of 4 voxels."""
    folder = Path(find_spec("nilearn").origin).parent / "datasets" / "data"  # importing nilearn would cost seconds
    loaded = [nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") for name in ("t1", "gm", "wm")]
    t1, gm, wm = (np.asarray(image.dataobj).T.astype(np.float32) / 255 for image in loaded)
    origin = np.linalg.inv(loaded[0].affine)[:3, 3][::-1]
    brain = ndimage.binary_fill_holes(t1 > 0)
    low, high = np.argwhere(brain).min(0), np.argwhere(brain).max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    brain, gm, wm = (np.pad(volume[box], 4) for volume in (brain, gm, wm))
    mni_z, mni_y, mni_x = (
        (np.arange(n) + first - 4 - centre).reshape([-1 if axis == i else 1 for i in range(3)])
        for axis, (n, first, centre) in enumerate(zip(brain.shape, low, origin, strict=True))
    )
    total = np.maximum(gm + wm, 1)
    gm, wm = brain * gm / total, brain * wm / total
    csf = brain - gm - wm

    central = (abs(mni_x) <= 42) & (mni_y > -52) & (mni_y < 42) & (mni_z > -14) & (mni_z < 34)
    labels, _ = ndimage.label((csf > 0.5) & central)
    left, right = (labels[(mni_z == 22) & (mni_y == -10) & (abs(mni_x - side) <= 8)].max() for side in (-12, 12))
    ventricles = (labels == left) | (labels == right)
    ventricle_mm = np.where(ventricles, -2, ndimage.distance_transform_edt(~ventricles))

    # Beside the ventricles the grey-matter map mixes white matter and CSF; true nuclei exceed 0.6.
    kept = np.where(ventricle_mm < 4, np.clip((gm - 0.6) / 0.3, 0, 1), 1)
    gm, wm = gm * kept, wm + gm * (1 - kept)
    cortex_mm = ndimage.distance_transform_edt((gm < 0.5) & ((csf < 0.5) | (ventricle_mm < 4)) & brain)
    return Anatomy(*(volume.astype(np.float32) for volume in (gm, wm, csf, ventricle_mm, cortex_mm)))


def along(axis: int, matrix: csr_array, volume: np.ndarray) -> np.ndarray:
    """Multiply one axis of a volume by a sparse matrix [new, old length]; no BLAS, so always the same bits."""
    moved = np.moveaxis(volume, axis, 0)
    product = matrix @ moved.reshape(len(moved), -1)
    return np.ascontiguousarray(np.moveaxis(product.reshape(-1, *moved.shape[1:]), 0, axis))


def smooth_field(rng: np.random.Generator, shape: Sequence[int], knots_mm: float) -> np.ndarray:
    """A random field [Z, Y, X] float32 of about unit variance: a cubic B-spline with Gaussian knots, at 1 mm."""
    counts = [int(np.ceil(n / knots_mm)) + 3 for n in shape]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis in (2, 1, 0):
        distance = abs(np.arange(shape[axis])[:, None] / knots_mm + 1 - np.arange(counts[axis]))
        near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
        field = along(axis, csr_array(np.where(distance < 1, near, far).astype(np.float32)), field)
    return field / np.float32(0.479**1.5)


def subject_anatomy(rng: np.random.Generator, p: PhantomParameters) -> Anatomy:
    """One subject's brain: the template scaled, turned, smoothly deformed, with larger ventricles. Arrays at 1 mm."""
    source = template()
    shape = source.gm.shape
    angles = np.deg2rad(rng.uniform(-p.rotation_degrees, p.rotation_degrees, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ step
    matrix = (turn / rng.uniform(*p.scale, 3)).astype(np.float32)
    centre = (np.array(shape, np.float32) - 1) / 2
    grid = [
        np.arange(n, dtype=np.float32).reshape([-1 if a == i else 1 for i in range(3)]) for a, n in enumerate(shape)
    ]
    coordinates = np.empty((3, *shape), np.float32)
    for axis in range(3):
        coordinates[axis] = p.warp_mm * smooth_field(rng, shape, p.warp_knots_mm) + centre[axis]
        for other in range(3):
            coordinates[axis] += matrix[axis, other] * (grid[other] - centre[other])

    inside = ndimage.map_coordinates(
        (source.gm + source.wm + source.csf)[::4, ::4, ::4], coordinates[:, ::4, ::4, ::4] / 4, order=1
    )
    inside = ndimage.binary_dilation(inside > 0, TOUCHING)
    inside = inside.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(n) for n in shape)]
    points = coordinates[:, inside]

    def warp(volume: np.ndarray, outside: float) -> np.ndarray:
        result = np.full(shape, outside, np.float32)
        result[inside] = ndimage.map_coordinates(volume, points, order=1, cval=outside, output=np.float32)
        return result

    gm, wm, csf = (warp(volume, 0) for volume in source[:3])
    ventricle_mm = warp(source.ventricle_mm, 99) - np.float32(rng.uniform(*p.ventricle_growth_mm))
    cortex_mm = warp(source.cortex_mm, 0)
    brain = (gm + wm + csf) > 0.5
    opened = 1 / (1 + np.exp(np.clip(ventricle_mm / 0.5, -20, 20)))
    gm, wm, csf = gm * (1 - opened), wm * (1 - opened), np.maximum(csf, opened)
    gm, wm, csf = (volume**p.tissue_sharpness for volume in (gm, wm, csf))
    total = np.where(brain, gm + wm + csf, 1)
    return Anatomy(*(brain * volume / total for volume in (gm, wm, csf)), ventricle_mm, cortex_mm)
