"""A synthetic WMH data set: MNI152 anatomy, three site styles, lesions, distractors and two extra raters.

Everything is simulated on a 1 mm canvas [Z, Y, X] in RAS order, then averaged over the voxels of the site's grid and
written as NIfTI in the layout of the WMH challenge. Each subject owns one random stream, so that neither the order nor
the number of workers changes a byte. No number that shapes the data has a default here: `parameters` holds them all.
The brain comes from `phantom_anatomy`, lesions and contrasts from `phantom_lesions`; here they are written, measured.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.sparse import csr_array

from pdlib.data.phantom_anatomy import TOUCHING, Anatomy, PhantomParameters, Site, along, smooth_field, subject_anatomy
from pdlib.data.phantom_lesions import Lesions, lesion_sizes, paint, place_lesions, place_stroke, quantile_draw
from pdlib.paths import write_whole

STATISTICS_FILE = "phantom.json"
TABLE_FILE = "phantom.csv"
SETTINGS_FILE = "phantom_settings.json"
CHALLENGE_PART = "training"


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
    inside = box_average(brain, edges) >= 0.5
    images = [
        np.rint(white * scan(rng, volume, edges, site) * inside)
        for volume, white in ((flair, site.flair_white), (t1, site.t1_white))
    ]
    share = box_average(lesions.reference, edges)
    labels = np.where(share >= 0.5, 1, np.where(box_average(stroke, edges) >= 0.5, 2, 0))

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
    }

    _write_nifti(folder / "pre" / "FLAIR.nii.gz", images[0], np.int16, spacing_mm, site)
    _write_nifti(folder / "pre" / "T1.nii.gz", images[1], np.int16, spacing_mm, site)
    for rater, drawn in zip(p.raters, lesions.raters, strict=True):
        path = Path(root) / "additional_annotations" / rater.folder / subject / "result.nii.gz"
        _write_nifti(path, box_average(drawn, edges) >= 0.5, np.float32, spacing_mm, site)
    write_whole(folder / STATISTICS_FILE, json.dumps(statistics))
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
    write_whole(made_with, payload)
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
    write_whole(root / TABLE_FILE, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))


def read_statistics(root: str | Path) -> list[dict]:
    """What was measured while each subject was made: one dict per subject, in the order of their folders."""
    files = sorted(Path(root).rglob(STATISTICS_FILE))
    if not files:
        raise ValueError(f"{root}: no {STATISTICS_FILE} below this folder")
    return [json.loads(file.read_text()) for file in files]


def two_part_lognormal(sizes: np.ndarray) -> dict[str, Any]:
    """Fit a mixture of two log-normals to sizes [N]: the weight of the larger part, mu and sigma of both.

    From a start at the bulk and at the tail, so that the parts do not change places.
    """
    from sklearn.mixture import GaussianMixture  # a second to import, which only the calibration needs

    x = np.log(sizes)[:, None]
    start = {
        "weights_init": [0.9, 0.1],
        "means_init": np.percentile(x, [40, 99])[:, None],
        "precisions_init": np.full((2, 1, 1), 1 / x.var()),
    }
    fit = GaussianMixture(2, tol=1e-13, max_iter=2000, reg_covar=1e-12, **start).fit(x)
    return {"weight": fit.weights_[1], "mu": fit.means_[:, 0], "sigma": np.sqrt(fit.covariances_[:, 0, 0])}


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
