"""What a scanner makes of a simulated head: the site's grid, bias and noise; and a case's files and measures.

Volumes are simulated on a 1 mm canvas [Z, Y, X] in RAS order and averaged over the voxels of the site's grid.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array

from pdlib.data.phantom_anatomy import TOUCHING, Anatomy, PhantomParameters, Site, along, smooth_field
from pdlib.data.phantom_lesions import Lesions
from pdlib.paths import write_whole

STATISTICS_FILE = "phantom.json"
ANATOMY = "anatomy"  # in a case's statistics: the label map that its head was made from, where it was


class Canvas(NamedTuple):
    """A simulated head at 1 mm: images with white matter about 1, brain, tissues, lesions, and other pathology."""

    flair: np.ndarray
    t1: np.ndarray
    brain: np.ndarray
    anatomy: Anatomy
    lesions: Lesions
    other: np.ndarray


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


def _write_nifti(path: Path, volume: np.ndarray, dtype: type, spacing_mm: Sequence[float], site: Site) -> None:
    array, affine = stored(volume, spacing_mm, site)
    image = nib.Nifti1Image(np.ascontiguousarray(array.astype(dtype)), affine)
    image.header.set_xyzt_units("mm")
    write_whole(path, gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


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


def place_statistics(reference: np.ndarray, brain: np.ndarray, gm: np.ndarray) -> dict:
    """Where the lesions of a case lie, from [Z, Y, X] at 1 mm: % in the cortex, slices with any and % of their area."""
    per_slice, in_brain = reference.sum((1, 2)), brain.sum((1, 2))
    return {
        "cortical_percent": float(100 * (gm[reference] > 0.5).mean()),
        "slices_percent": float(100 * (per_slice > 0).sum() / (in_brain > 0).sum()),
        "slice_areas_percent": (100 * per_slice / np.maximum(in_brain, 1))[per_slice > 0].tolist(),
    }


def scan(rng: np.random.Generator, volume: np.ndarray, edges: Sequence[np.ndarray], site: Site) -> np.ndarray:
    """What a site's scanner makes of a volume [Z, Y, X] at 1 mm: averaged over its voxels, bias field, Rician noise."""
    coarse = box_average(volume, edges)
    bias = np.exp(site.bias * box_average(smooth_field(rng, volume.shape, 60), edges))
    noise = site.noise * rng.standard_normal((2, *coarse.shape), dtype=np.float32)
    return np.hypot(bias * coarse + noise[0], noise[1])


def write_canvas(
    rng: np.random.Generator,
    root: Path,
    subject: str,
    canvas: Canvas,
    site: Site,
    grid_scale: Sequence[float],
    p: PhantomParameters,
    about: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Scan a canvas and write it as a case below root; wmh.nii.gz last, so that a case with one is complete.

    rng: of bias and noise. grid_scale (x, y, z) multiplies the site's voxels. about: joins what the case measures.
    """
    flair, t1, brain, anatomy, lesions, other = canvas
    folder = root / subject
    edges = site_grid(site, grid_scale, brain)
    spacing_mm = [float(edge[1] - edge[0]) for edge in edges]
    inside = box_average(brain, edges) >= 0.5
    images = [
        np.rint(white * scan(rng, volume, edges, site) * inside)
        for volume, white in ((flair, site.flair_white), (t1, site.t1_white))
    ]
    share = box_average(lesions.reference, edges)
    labels = np.where(share >= 0.5, 1, np.where(box_average(other, edges) >= 0.5, 2, 0))

    normal = images[0][(box_average(anatomy.wm, edges) > 0.9) & (share == 0) & (labels == 0)]
    statistics = {
        "subject": subject,
        "site": site.folder.rsplit("/", 1)[-1],
        **lesion_statistics(lesions.reference, (1, 1, 1), anatomy.ventricle_mm),
        "grid_lesion_ml": float((labels == 1).sum() * np.prod(spacing_mm) / 1000),
        **place_statistics(lesions.reference, brain, anatomy.gm),
        **intensity_statistics(flair, t1, anatomy, lesions),
        "flair_wm_variation": float(normal.std() / normal.mean()),
        "label2": bool((labels == 2).any()),
        **about,
    }

    _write_nifti(folder / "pre" / "FLAIR.nii.gz", images[0], np.int16, spacing_mm, site)
    _write_nifti(folder / "pre" / "T1.nii.gz", images[1], np.int16, spacing_mm, site)
    for rater, drawn in zip(p.raters, lesions.raters, strict=True):
        path = root / "additional_annotations" / rater.folder / subject / "result.nii.gz"
        _write_nifti(path, box_average(drawn, edges) >= 0.5, np.float32, spacing_mm, site)
    write_whole(folder / STATISTICS_FILE, json.dumps(statistics))
    _write_nifti(folder / "wmh.nii.gz", labels, np.float32, spacing_mm, site)
