"""What the phantom is made of: its parameters, and one subject's brain from the MNI152 templates, on a 1 mm canvas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array

from pdlib.data.recipe import from_mapping

TOUCHING = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Site:
    """One scanner: where its cases go, its grid (x, y, z), how its header is turned, and how its images look."""

    folder: str
    first_id: int
    matrix: Sequence[int]
    spacing_mm: Sequence[float]
    orientation: str  # towards which side each stored axis grows, e.g. "LPS"
    tilt_degrees: float
    flair_white: float
    t1_white: float
    noise: float
    bias: float
    gm_flair_shift: float


@dataclass(frozen=True)
class Rater:
    """One simulated observer: where their files go, how much larger they draw, and how much they scatter."""

    folder: str
    log_size_bias: float
    log_size_jitter: float
    boundary_noise: float
    missed_size_mm3: float


@dataclass(frozen=True)
class PhantomParameters:
    """All that shapes the phantom. Ranges are [low, high] of a uniform draw per subject unless said otherwise."""

    sites: Sequence[Mapping[str, Any]]
    raters: Sequence[Mapping[str, Any]]
    # anatomy
    scale: Sequence[float]
    rotation_degrees: float
    warp_mm: float
    warp_knots_mm: float
    ventricle_growth_mm: Sequence[float]
    tissue_sharpness: float
    # contrast, in units of white matter
    flair_gm: Sequence[float]
    flair_csf: Sequence[float]
    flair_lesion_quantiles: Sequence[float]
    t1_gm: Sequence[float]
    t1_csf: Sequence[float]
    t1_lesion: Sequence[float]
    white_matter_texture: float
    texture_knots_mm: float
    # lesions
    case_volume_quantiles_ml: Sequence[float]
    case_count_quantiles: Sequence[float]
    count_scatter: float
    large_weight: float
    small_log_mm3: Sequence[float]
    large_log_mm3: Sequence[float]
    near_ventricle_small: float
    near_ventricle_large: float
    deep_decay_mm: float
    cortex_margin_mm: float
    boundary_noise: float
    boundary_knots_mm: float
    image_log_size_jitter: float
    lesion_contrast_scatter: float
    edge_mm: float
    # distractors
    halo_gain: float
    halo_mm: float
    rim_gain: Sequence[float]
    rim_mm: Sequence[float]
    dirty_gain: Sequence[float]
    dirty_t1_loss: float
    cortex_gain: Sequence[float]
    flow_gain: Sequence[float]
    patch_knots_mm: float
    patch_threshold: float
    # other pathology
    stroke_ml: Sequence[float]
    stroke_flair: Sequence[float]
    stroke_t1: Sequence[float]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> PhantomParameters:
        """Check every key, also inside `sites` and `raters`. Raises ValueError."""
        parameters = from_mapping(cls, mapping, "phantom parameters")
        nested = {
            "sites": tuple(from_mapping(Site, site, "phantom parameters: sites") for site in parameters.sites),
            "raters": tuple(from_mapping(Rater, rater, "phantom parameters: raters") for rater in parameters.raters),
        }
        return cls(**{**mapping, **nested})


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
