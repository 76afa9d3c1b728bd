"""A synthetic WMH data set: MNI152 anatomy, three site styles, lesions, distractors and two extra raters.

Everything is simulated on a 1 mm canvas [Z, Y, X] in RAS order, then averaged over the voxels of the site's grid and
written as NIfTI in the layout of the WMH challenge. Each subject owns one random stream, so that neither the order nor
the number of workers changes a byte. No number that shapes the data has a default here: `parameters` holds them all.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import csr_array

from pdlib.data.recipe import from_mapping

STATISTICS_FILE = "phantom.json"
TABLE_FILE = "phantom.csv"
SETTINGS_FILE = "phantom_settings.json"
TOUCHING = np.ones((3, 3, 3), bool)
CHALLENGE_PART = "training"


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


class Lesions(NamedTuple):
    """Lesion maps [Z, Y, X] at 1 mm: the reference, what the image shows (contrast), and each extra rater's."""

    reference: np.ndarray
    shown: np.ndarray
    raters: tuple[np.ndarray, ...]


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


def quantile_draw(u: float, quantiles: Sequence[float]) -> float:
    """The value at level u in [0, 1] of a law given by equally spaced quantiles, interpolated in the logarithm."""
    return float(np.exp(np.interp(u, np.linspace(0, 1, len(quantiles)), np.log(quantiles))))


def lesion_sizes(rng: np.random.Generator, level: float, p: PhantomParameters) -> np.ndarray:
    """Sizes in mm3, largest first, of the lesions of a case whose volume has the rank `level` in [0, 1].

    Two-part log-normal. The small part is scaled down where it exceeds its expected share of the volume; the large part
    is scaled to make up the rest.
    """
    volume = 1000 * quantile_draw(level, p.case_volume_quantiles_ml)
    count = quantile_draw(np.clip(level + p.count_scatter * rng.standard_normal(), 0, 1), p.case_count_quantiles)
    n_large = max(1, round(p.large_weight * count))
    small = rng.lognormal(*p.small_log_mm3, max(1, round(count)) - n_large)
    large = rng.lognormal(*p.large_log_mm3, n_large)
    means = (mu + sigma**2 / 2 for mu, sigma in (p.small_log_mm3, p.large_log_mm3))
    part = np.array([1 - p.large_weight, p.large_weight]) * np.exp(list(means))
    small *= min(1, part[0] / part.sum() * volume / small.sum())
    large *= (volume - small.sum()) / large.sum()
    return np.sort(np.maximum(np.concatenate([small, large]).round(), 1).astype(int))[::-1]


def _best_voxels(score: np.ndarray, count: float) -> np.ndarray:
    """The `count` voxels of lowest finite score, as a mask of the score's shape; at least one."""
    count = min(max(round(count), 1), int(np.isfinite(score).sum()))
    chosen = np.zeros(score.size, bool)
    chosen[np.argpartition(score.ravel(), count - 1)[:count]] = True
    return chosen.reshape(score.shape)


def place_lesions(
    rng: np.random.Generator, anatomy: Anatomy, sizes: np.ndarray, blocked: np.ndarray, p: PhantomParameters
) -> Lesions:
    """Draw each lesion as the `size` best voxels of a blob score; the image shows a slightly larger or smaller
    version of it, each rater draws another one.

    Lesions beside the ventricles hug the wall (bands and caps), deep ones are ellipsoids. Reference lesions never touch
    each other. `blocked` [Z, Y, X] bool is closed to them.
    """
    shape = anatomy.wm.shape
    allowed = (anatomy.wm > 0.5) & (anatomy.cortex_mm > p.cortex_margin_mm) & (anatomy.ventricle_mm > 0) & ~blocked
    beside = np.flatnonzero(allowed & (anatomy.ventricle_mm < 1.5))
    deep = np.flatnonzero(allowed & (anatomy.ventricle_mm > 3.5))
    deep_weight = np.exp(-anatomy.ventricle_mm.ravel()[deep] / p.deep_decay_mm)
    deep_weight = np.cumsum(deep_weight, dtype=np.float64)
    noises = [smooth_field(rng, shape, p.boundary_knots_mm) for _ in range(1 + len(p.raters))]
    amounts = [p.boundary_noise, *(rater.boundary_noise for rater in p.raters)]
    reference = np.zeros(shape, bool)
    shown = np.zeros(shape, np.float32)
    drawn = tuple(np.zeros(shape, bool) for _ in p.raters)
    grown = np.zeros(shape, bool)
    large = np.exp(p.large_log_mm3[0])
    for size in sizes:
        chance = p.near_ventricle_large if size > large else p.near_ventricle_small
        near = rng.random() < chance
        radius = (3 * size / (4 * np.pi)) ** (1 / 3)
        for _ in range(30):
            if near:
                seed = beside[rng.integers(len(beside))]
            else:
                seed = deep[np.searchsorted(deep_weight, rng.random() * deep_weight[-1])]
            if not grown.flat[seed] and (near or anatomy.ventricle_mm.flat[seed] > radius + 2):
                break
        else:
            continue
        centre = np.unravel_index(seed, shape)
        half = int((2.6 if near else 1.9) * radius + 3)
        box = tuple(slice(max(c - half, 0), c + half + 1) for c in centre)
        offset = np.stack(
            np.meshgrid(
                *(np.arange(b.start, min(b.stop, n)) - c for b, n, c in zip(box, shape, centre, strict=True)),
                indexing="ij",
            )
        ).astype(np.float32)
        stretch = np.exp(rng.normal(0, 0.3, 3)).astype(np.float32)
        distance = np.sqrt(sum((offset[i] * stretch[i]) ** 2 for i in range(3))) / radius
        if near:
            distance = 0.55 * distance + np.abs(anatomy.ventricle_mm[box]) / (0.8 * radius + 0.5)
        distance[~allowed[box] | grown[box]] = np.inf

        scores = [distance + np.float32(a) * noise[box] for a, noise in zip(amounts, noises, strict=True)]
        mine = _best_voxels(scores[0], size)
        reference[box] |= mine
        contrast = max(1 + p.lesion_contrast_scatter * rng.standard_normal(), 0.3)
        seen = _best_voxels(scores[0], size * np.exp(p.image_log_size_jitter * rng.standard_normal()))
        np.maximum(shown[box], np.float32(contrast) * seen, out=shown[box])
        for rater, score, target in zip(p.raters, scores[1:], drawn, strict=True):
            factor = np.exp(rater.log_size_bias + rater.log_size_jitter * rng.standard_normal())
            theirs = _best_voxels(score, size * factor)
            if rng.random() > np.exp(-size / rater.missed_size_mm3):
                target[box] |= theirs
        grown[box] |= ndimage.binary_dilation(mine, TOUCHING)
    return Lesions(reference, shown, drawn)


def place_stroke(rng: np.random.Generator, anatomy: Anatomy, p: PhantomParameters) -> np.ndarray:
    """A stroke-like region [Z, Y, X] bool that crosses the cortex: the challenge's "other pathology", label 2."""
    tissue = anatomy.gm + anatomy.wm > 0.5
    seeds = np.flatnonzero((anatomy.gm > 0.5) & (anatomy.ventricle_mm > 12))
    centre = np.unravel_index(seeds[rng.integers(len(seeds))], tissue.shape)
    size = 1000 * rng.uniform(*p.stroke_ml)
    distance = 0.25 * smooth_field(rng, tissue.shape, p.patch_knots_mm)
    radius = (3 * size / (4 * np.pi)) ** (1 / 3)
    axes = np.ogrid[tuple(slice(n) for n in tissue.shape)]
    distance += np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))).astype(np.float32) / radius
    distance[~tissue] = np.inf
    return distance <= np.partition(distance.ravel(), int(size))[int(size)]


def paint(
    rng: np.random.Generator,
    anatomy: Anatomy,
    lesions: Lesions,
    stroke: np.ndarray,
    gm_flair_shift: float,
    flair_lesion: float,
    p: PhantomParameters,
) -> tuple[np.ndarray, np.ndarray]:
    """FLAIR and T1 [Z, Y, X] float32 at 1 mm without noise, white matter = 1: tissue, lesions, then distractors.

    The distractors are bright on FLAIR alone; a lesion is dark on T1 as well.
    """
    shape = anatomy.gm.shape
    gm, wm, csf, ventricle_mm, _ = anatomy
    texture = 1 + p.white_matter_texture * smooth_field(rng, shape, p.texture_knots_mm)
    flair = texture * (wm + (rng.uniform(*p.flair_gm) + gm_flair_shift) * gm) + rng.uniform(*p.flair_csf) * csf
    texture = 1 + 0.5 * p.white_matter_texture * smooth_field(rng, shape, p.texture_knots_mm)
    t1 = texture * (wm + rng.uniform(*p.t1_gm) * gm) + rng.uniform(*p.t1_csf) * csf

    def patches() -> np.ndarray:
        return np.clip(smooth_field(rng, shape, p.patch_knots_mm) - p.patch_threshold, 0, 1)

    alpha = ndimage.gaussian_filter(lesions.shown, p.edge_mm, truncate=3)
    halo = p.halo_gain * ndimage.gaussian_filter(lesions.shown, p.halo_mm, truncate=2)
    dirty = rng.uniform(*p.dirty_gain) * patches() * wm
    rim = np.exp(-np.maximum(ventricle_mm, 0) / rng.uniform(*p.rim_mm)) * np.clip(0.5 + patches() * 1.5, 0, 1)
    flair += (halo + dirty + rng.uniform(*p.rim_gain) * rim) * (wm + gm)
    flair += rng.uniform(*p.cortex_gain) * patches() * gm + rng.uniform(*p.flow_gain) * patches() * csf
    t1 -= p.dirty_t1_loss * (dirty + halo)
    flair += alpha * (flair_lesion - flair) * (wm + gm)
    t1 += alpha * (rng.uniform(*p.t1_lesion) - t1) * (wm + gm)
    if stroke.any():
        alpha = ndimage.gaussian_filter(stroke.astype(np.float32), p.edge_mm, truncate=3)
        flair += alpha * (rng.uniform(*p.stroke_flair) - flair)
        t1 += alpha * (rng.uniform(*p.stroke_t1) - t1)
    return flair, t1


def box_average(volume: np.ndarray, edges: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of a 1 mm volume over each voxel of a coarser grid; 0 outside. `edges` (z, y, x) are in canvas voxels.

    Canvas voxel i covers [i, i + 1]. Returns float32 of shape len(edges[axis]) - 1 along each axis.
    """
    result = volume.astype(np.float32)
    for axis, edge in enumerate(edges):
        first = np.arange(result.shape[axis])
        overlap = np.minimum(edge[1:, None], first + 1) - np.maximum(edge[:-1, None], first)
        matrix = csr_array((np.maximum(overlap, 0) / np.diff(edge)[:, None]).astype(np.float32))
        result = along(axis, matrix, result)
    return result


def site_grid(site: Site, grid_scale: Sequence[float], brain: np.ndarray) -> list[np.ndarray]:
    """Voxel edges (z, y, x), in canvas voxels, of the site's grid centred on the brain. grid_scale is (x, y, z)."""
    edges = []
    for axis, scale, n, spacing in zip((2, 1, 0), grid_scale, site.matrix, site.spacing_mm, strict=True):
        n, spacing = int(n / scale), spacing * scale
        extent = np.flatnonzero(brain.any(tuple(i for i in range(3) if i != axis)))
        edges.append((extent[0] + extent[-1] + 1) / 2 + (np.arange(n + 1) - n / 2) * spacing)
    return edges[::-1]


def stored(volume: np.ndarray, spacing_mm: Sequence[float], site: Site) -> tuple[np.ndarray, np.ndarray]:
    """Turn a RAS [Z, Y, X] volume into the site's stored order: (array [X, Y, Z], affine). spacing_mm is (z, y, x)."""
    array = volume.transpose(2, 1, 0)
    sign = np.array([1 if side in "RAS" else -1 for side in site.orientation])
    array = array[tuple(slice(None, None, s) for s in sign)]
    tilt = np.deg2rad(site.tilt_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(sign * np.asarray(spacing_mm)[::-1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(array.shape) - 1) / 2)
    return array, affine


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(payload)
    os.replace(partial, path)


def _write_nifti(path: Path, volume: np.ndarray, dtype: type, spacing_mm: Sequence[float], site: Site) -> None:
    array, affine = stored(volume, spacing_mm, site)
    image = nib.Nifti1Image(np.ascontiguousarray(array.astype(dtype)), affine)
    image.header.set_xyzt_units("mm")
    _write(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def lesion_statistics(mask: np.ndarray, spacing_mm: Sequence[float], ventricle_mm: np.ndarray | None = None) -> dict:
    """Volume (ml), count and sizes (mm3, 26-connected, 3D) of the lesions of mask [Z, Y, X]; spacing_mm is (z, y, x).

    With ventricle_mm [Z, Y, X], also the % of the volume in components that come within 2 mm of the ventricles.
    """
    labels, count = ndimage.label(mask, TOUCHING)
    voxel = float(np.prod(spacing_mm))
    sizes = np.bincount(labels[labels > 0], minlength=count + 1)[1:] * voxel
    result = {"lesion_ml": float(sizes.sum() / 1000), "lesions": int(count), "sizes_mm3": sizes.tolist()}
    if ventricle_mm is not None:
        nearest = np.asarray(ndimage.minimum(ventricle_mm, labels, range(1, count + 1)))
        share = 100 * sizes[nearest <= 2].sum() / sizes.sum() if count else float("nan")
        result["near_ventricle_percent"] = float(share)
    return result


def intensity_statistics(flair: np.ndarray, t1: np.ndarray, anatomy: Anatomy, lesions: Lesions) -> dict:
    """Median FLAIR and T1 of lesions, grey matter and CSF over that of normal-appearing white matter, at 1 mm."""
    where = {
        "lesion": lesions.reference,
        "gm": anatomy.gm > 0.9,
        "csf": anatomy.csf > 0.95,
    }
    white = (anatomy.wm > 0.95) & (lesions.shown == 0) & ~lesions.reference
    result = {}
    for name, image in (("flair", flair), ("t1", t1)):
        level = np.median(image[white])
        for region, chosen in where.items():
            result[f"{name}_{region}"] = float(np.median(image[chosen]) / level)
    return result


def write_case(
    root: Path,
    site_index: int,
    case_index: int,
    *,
    seed: int,
    grid_scale: Sequence[float],
    label2_fraction: float,
    parameters: Mapping[str, Any],
) -> str:
    """Simulate and write one subject, unless it is complete; returns its folder relative to root (POSIX).

    wmh.nii.gz is written last, so that a case that has one is complete.
    """
    p = PhantomParameters.from_mapping(parameters)
    site = p.sites[site_index]
    subject = f"{CHALLENGE_PART}/{site.folder}/{site.first_id + case_index}"
    folder = Path(root) / subject
    if (folder / "wmh.nii.gz").exists():
        return subject
    rng = np.random.default_rng(np.random.SeedSequence((seed, site_index, case_index)))
    # A golden-ratio sequence spreads any number of cases evenly over the law, whatever the order they are made in.
    shared = np.random.default_rng(np.random.SeedSequence((seed, site_index)))
    offsets = shared.random(3)
    level, lesion_level, stroke_level = (
        offsets + (case_index + 1) * np.array([0.6180339887, 0.7548776662, 0.5698402910])
    ) % 1

    anatomy = subject_anatomy(rng, p)
    brain = anatomy.gm + anatomy.wm + anatomy.csf > 0.5
    stroke = place_stroke(rng, anatomy, p) if stroke_level < label2_fraction else np.zeros(brain.shape, bool)
    blocked = ndimage.binary_dilation(stroke, TOUCHING) if stroke.any() else stroke
    lesions = place_lesions(rng, anatomy, lesion_sizes(rng, level, p), blocked, p)
    flair, t1 = paint(
        rng, anatomy, lesions, stroke, site.gm_flair_shift, quantile_draw(lesion_level, p.flair_lesion_quantiles), p
    )

    edges = site_grid(site, grid_scale, brain)
    spacing_mm = [float(edge[1] - edge[0]) for edge in edges]
    coarse_brain = box_average(brain, edges) >= 0.5
    images = []
    for volume, white in ((flair, site.flair_white), (t1, site.t1_white)):
        volume = box_average(volume, edges)
        bias = np.exp(site.bias * box_average(smooth_field(rng, brain.shape, 60), edges))
        noise = site.noise * rng.standard_normal((2, *volume.shape), dtype=np.float32)
        rician = np.hypot(bias * volume + noise[0], noise[1])
        images.append(np.rint(white * rician * coarse_brain))
    share = box_average(lesions.reference, edges)
    labels = np.where(share >= 0.5, 1, np.where(box_average(stroke, edges) >= 0.5, 2, 0))

    normal = images[0][(box_average(anatomy.wm, edges) > 0.9) & (share == 0) & (labels == 0)]
    per_slice = lesions.reference.sum((1, 2))
    in_brain = brain.sum((1, 2))
    statistics = {
        "subject": subject,
        "site": site.folder.rsplit("/", 1)[-1],
        **lesion_statistics(lesions.reference, (1, 1, 1), anatomy.ventricle_mm),
        "grid_lesion_ml": float((labels == 1).sum() * np.prod(spacing_mm) / 1000),
        "cortical_percent": float(100 * (anatomy.gm[lesions.reference] > 0.5).mean()),
        "slices_percent": float(100 * (per_slice > 0).sum() / (in_brain > 0).sum()),
        "slice_areas_percent": (100 * per_slice / np.maximum(in_brain, 1))[per_slice > 0].tolist(),
        **intensity_statistics(flair, t1, anatomy, lesions),
        "flair_wm_variation": float(normal.std() / normal.mean()),
        "label2": bool((labels == 2).any()),
    }

    _write_nifti(folder / "pre" / "FLAIR.nii.gz", images[0], np.int16, spacing_mm, site)
    _write_nifti(folder / "pre" / "T1.nii.gz", images[1], np.int16, spacing_mm, site)
    for rater, drawn in zip(p.raters, lesions.raters, strict=True):
        path = Path(root) / "additional_annotations" / rater.folder / subject / "result.nii.gz"
        _write_nifti(path, box_average(drawn, edges) >= 0.5, np.float32, spacing_mm, site)
    _write(folder / STATISTICS_FILE, json.dumps(statistics).encode())
    _write_nifti(folder / "wmh.nii.gz", labels, np.float32, spacing_mm, site)
    return subject


def write_phantom(
    root: str | Path,
    *,
    cases_per_site: int,
    seed: int,
    grid_scale: Sequence[float],
    label2_fraction: float,
    parameters: Mapping[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `cases_per_site` subjects for each site under root, and one row per subject in root/phantom.csv.

    grid_scale (x, y, z) multiplies the voxel size and divides the matrix of every site. Complete cases are kept.
    `workers` processes share the work without any effect on the files; progress(done, total) is called after each.
    Raises ValueError for unknown or missing parameters, and for a root made with other settings.
    """
    p = PhantomParameters.from_mapping(parameters)
    if len(grid_scale) != 3 or min(grid_scale) <= 0:
        raise ValueError(f"grid_scale: three positive factors (x, y, z) expected, got {grid_scale}")
    root = Path(root)
    settings = {
        "seed": seed,
        "grid_scale": list(grid_scale),
        "label2_fraction": label2_fraction,
        "parameters": parameters,
    }
    made_with = root / SETTINGS_FILE
    payload = json.dumps(settings, indent=1).encode()
    if made_with.exists() and made_with.read_bytes() != payload:
        raise ValueError(f"{made_with}: this phantom was made with other settings; remove it or choose another folder")
    _write(made_with, payload)
    jobs = [(site, case) for case in range(cases_per_site) for site in range(len(p.sites))]
    if workers == 1:
        for done, job in enumerate(jobs, 1):
            write_case(root, *job, **settings)
            if progress:
                progress(done, len(jobs))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(write_case, root, *job, **settings) for job in jobs]
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    progress(done, len(jobs))
    rows = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in read_statistics(root)]
    _write(root / TABLE_FILE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())


def read_statistics(root: str | Path) -> list[dict]:
    """What was measured while each subject was made: one dict per subject, in the order of their folders."""
    files = sorted(Path(root).rglob(STATISTICS_FILE))
    if not files:
        raise ValueError(f"{root}: no {STATISTICS_FILE} below this folder")
    return [json.loads(file.read_text()) for file in files]


def two_part_lognormal(sizes: np.ndarray, steps: int = 500) -> dict[str, float]:
    """Fit a mixture of two log-normals to sizes by expectation-maximisation: weight of the second, mu and sigma."""
    x = np.log(sizes)
    weight, mu, sigma = np.array([0.9, 0.1]), np.percentile(x, [40, 99]), np.array([x.std(), x.std()])
    for _ in range(steps):
        density = weight * np.exp(-0.5 * ((x[:, None] - mu) / sigma) ** 2) / sigma
        share = density / density.sum(1, keepdims=True)
        total = share.sum(0)
        weight, mu = total / len(x), (share * x[:, None]).sum(0) / total
        sigma = np.sqrt((share * (x[:, None] - mu) ** 2).sum(0) / total) + 1e-6
    return {"weight": weight[1], "mu": mu, "sigma": sigma}


def phantom_calibration(root: str | Path, targets: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What the phantom measures beside what real lesions measure. targets: quantity -> {value, unit}.

    Columns quantity, phantom, target, unit. Raises ValueError for a target that is no quantity of the phantom.
    """
    rows = read_statistics(root)
    table = pd.DataFrame(rows)
    areas = np.concatenate([row["slice_areas_percent"] for row in rows])
    fit = two_part_lognormal(np.concatenate([row["sizes_mm3"] for row in rows]))
    measured = {}
    for column, name in (
        ("lesion_ml", "case volume"),
        ("lesions", "lesions per case"),
        ("flair_lesion", "FLAIR lesion/WM"),
    ):
        values = table[column].dropna()
        for part, level in (
            ("minimum", 0),
            ("lower quartile", 25),
            ("median", 50),
            ("upper quartile", 75),
            ("maximum", 100),
        ):
            measured[f"{name}, {part}"] = np.percentile(values, level)
    measured |= {
        "lesion size, weight of the large part": fit["weight"],
        "lesion size, small part, mu": fit["mu"][0],
        "lesion size, small part, sigma": fit["sigma"][0],
        "lesion size, large part, mu": fit["mu"][1],
        "lesion size, large part, sigma": fit["sigma"][1],
        "FLAIR GM/WM, median": table.flair_gm.median(),
        "FLAIR CSF/WM, median": table.flair_csf.median(),
        "FLAIR WM variation, median": table.flair_wm_variation.median(),
        "T1 lesion/WM, median": table.t1_lesion.median(),
        "T1 GM/WM, median": table.t1_gm.median(),
        "T1 CSF/WM, median": table.t1_csf.median(),
        "slices with lesion": table.slices_percent.mean(),
        "lesion area in such slices, median": np.median(areas),
        "lesion area in such slices, 90th percentile": np.percentile(areas, 90),
        "volume in lesions within 2 mm of the ventricles": np.average(
            table.near_ventricle_percent, weights=table.lesion_ml
        ),
        "cortical lesion volume": np.average(table.cortical_percent, weights=table.lesion_ml),
    }
    unknown = sorted(set(targets) - set(measured))
    if unknown:
        raise ValueError(f"calibration targets: unknown quantities {unknown}; known: {sorted(measured)}")
    return pd.DataFrame(
        {"quantity": name, "phantom": float(measured[name]), "target": target["value"], "unit": target["unit"]}
        for name, target in targets.items()
    )
