"""A synthetic WMH data set: MNI152 anatomy, three site styles, lesions, distractors and two extra raters.

Everything is simulated on a 1 mm canvas [Z, Y, X] in RAS order, then averaged over the voxels of the site's grid and
written as NIfTI in the layout of the WMH challenge. Each subject owns one random stream, so that neither the order nor
the number of workers changes a byte. No number that shapes the data has a default here: `parameters` holds them all.
The brain comes from `phantom_anatomy`, lesions and contrasts from `phantom_lesions`; `scanner` writes and measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from pdlib.data.phantom_anatomy import TOUCHING, PhantomParameters, subject_anatomy
from pdlib.data.phantom_lesions import lesion_sizes, paint, place_lesions, place_stroke, quantile_draw
from pdlib.data.scanner import STATISTICS_FILE, Canvas, write_canvas
from pdlib.paths import write_whole

TABLE_FILE = "phantom.csv"
SETTINGS_FILE = "phantom_settings.json"
CHALLENGE_PART = "training"


def ranks(seed: int, site_index: int, case_index: int) -> np.ndarray:
    """Ranks in [0, 1) of a case's lesion volume, lesion contrast and other pathology.

    A golden-ratio sequence spreads any number of cases evenly over the law, whatever the order they are made in.
    """
    offsets = np.random.default_rng(np.random.SeedSequence((seed, site_index))).random(3)
    return (offsets + (case_index + 1) * np.array([0.6180339887, 0.7548776662, 0.5698402910])) % 1


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
    level, lesion_level, stroke_level = ranks(seed, site_index, case_index)

    anatomy = subject_anatomy(rng, p)
    brain = anatomy.gm + anatomy.wm + anatomy.csf > 0.5
    stroke = place_stroke(rng, anatomy, p) if stroke_level < label2_fraction else np.zeros(brain.shape, bool)
    blocked = ndimage.binary_dilation(stroke, TOUCHING) if stroke.any() else stroke
    lesions = place_lesions(rng, anatomy, lesion_sizes(rng, level, p), blocked, p)
    flair, t1 = paint(
        rng, anatomy, lesions, stroke, site.gm_flair_shift, quantile_draw(lesion_level, p.flair_lesion_quantiles), p
    )

    write_canvas(rng, Path(root), subject, Canvas(flair, t1, brain, anatomy, lesions, stroke), site, grid_scale, p)
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
    settings = {
        "seed": seed,
        "grid_scale": list(grid_scale),
        "label2_fraction": label2_fraction,
        "parameters": parameters,
    }
    jobs = [(site, case) for case in range(cases_per_site) for site in range(len(p.sites))]
    write_all(root, jobs, partial(write_case, **settings), settings, workers, progress)


def write_all(
    root: str | Path,
    jobs: Sequence[tuple[int, int]],
    write: Callable[[Path, int, int], str],
    settings: Mapping[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write cases, (site, case) each, below root, and what they measure into a table; see `write_phantom`.

    ValueError for a root that was made with other settings.
    """
    root, payload = Path(root), json.dumps(settings, indent=1).encode()
    made_with = root / SETTINGS_FILE
    if made_with.exists() and made_with.read_bytes() != payload:
        raise ValueError(f"{made_with}: this phantom was made with other settings; remove it or choose another folder")
    write_whole(made_with, payload)
    if workers == 1:
        for done, job in enumerate(jobs, 1):
            write(root, *job)
            if progress:
                progress(done, len(jobs))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(write, root, *job) for job in jobs]
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
