"""What notebook 01 does with a profile: write the phantom, measure it, leave a summary for all later notebooks."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from pdlib.data import folds, phantom, scanner
from pdlib.data.wmh import Volume
from pdlib.evaluation import records
from pdlib.inference.precision import steady_precision
from pdlib.paths import CONFIGS, ROOT, Layout, write_whole
from pdlib.profiles import Profile
from pdlib.progress import tqdm

RECIPE = CONFIGS / "phantom.yaml"
FURTHER = "further"  # the folder of the subjects that no fold holds, and so the first part of their names


def phantom_folder(place: Layout, profile: Profile) -> Path:
    """Where a profile's phantom lies: another place for every other recipe."""
    described = [_recipe()["phantom"], _settings(profile), *([_further(profile)] if _has_further(profile) else [])]
    described = json.dumps(described, sort_keys=True)
    return place.trained.shared.runs / f"phantom-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def data_root(place: Layout, profile: Profile, data: str) -> str:
    """The folder of the cases, absolute, for other notebooks run elsewhere: data, or where it is "" the phantom.

    ProfileError for a folder of cases where the profile tests further subjects.
    """
    profile.repeats.require_phantom(data)
    return str(Path(data).resolve()) if data else str(phantom_folder(place, profile))


def write_phantom(root: Path | str, profile: Profile) -> None:
    """Write a profile's phantom, and its further subjects into a folder of their own; cases that are complete stay."""
    parts = {Path(root): _settings(profile)}
    if _has_further(profile):  # first, so that the table at the root tells of all
        parts = {Path(root) / FURTHER: _further(profile)} | parts
    _write(parts, profile.machine.workers)


def write_drawn(root: Path | str, part: str, profile: Profile, per_site: int, stream: int) -> None:
    """Write subjects like a profile's, so many a site, into a part of a phantom; cases that are complete stay.

    stream: of the profile's seed; 1 are the run's own further subjects.
    """
    drawn = _drawn(profile, per_site, stream)
    _write({Path(root) / part: drawn, Path(root): drawn | {"cases_per_site": 0}}, profile.machine.workers)


def _write(parts: Mapping[Path, dict], workers: int) -> None:
    """Phantoms by their folders, with one bar."""
    recipe = _recipe()["phantom"]
    total = sum(settings["cases_per_site"] for settings in parts.values()) * len(recipe["sites"])
    with tqdm(total=total, unit="case") as bar:
        for folder, settings in parts.items():
            before, how = bar.n, {"parameters": recipe, "workers": workers}
            phantom.write_phantom(
                folder, **settings, **how, progress=lambda done, of, before=before: bar.update(before + done - bar.n)
            )


def subject_table(cases: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Who is trained on, validated and tested: DataFrame[subject, site, lesion_ml] -> the table that `Run` reads.

    Heads that were made from one anatomy share a fold: with `anatomy` among the columns it tells which those are.
    """
    if scanner.ANATOMY in cases:
        cases = cases.rename(columns={scanner.ANATOMY: folds.GROUP})
    if not _has_further(profile):
        return folds.make_folds(cases, folds=profile.data.folds, seed=profile.seed)
    repeats, further = profile.repeats, cases["subject"].str.startswith(f"{FURTHER}/")
    table = folds.make_folds(cases[~further], folds=profile.data.folds, seed=profile.seed)
    how = {"seeds": repeats.seeds, "others_per_site": repeats.others_per_site, "seed": profile.seed}
    return folds.with_further(table, cases[further], **how)


def is_phantom(root: Path | str) -> bool:
    """Whether a folder of cases is one of ours, and so no patients."""
    return (Path(root) / phantom.SETTINGS_FILE).exists()


def anatomies(root: Path | str) -> pd.Series | None:
    """The label map that each subject of a phantom was made from, by subject; None where they share a template."""
    table = pd.read_csv(Path(root) / phantom.TABLE_FILE) if is_phantom(root) else pd.DataFrame()
    return table.set_index("subject")[scanner.ANATOMY] if scanner.ANATOMY in table else None


@cache
def sites() -> int:
    """How many sites the phantom has."""
    return len(_recipe()["phantom"]["sites"])


def calibration(root: Path | str) -> pd.DataFrame:
    """What a phantom measures beside the targets of real lesions."""
    return phantom.phantom_calibration(root, _recipe()["targets"])


def best_threshold(volume: Volume) -> np.ndarray:
    """The mask [Z, Y, X] bool of the FLAIR threshold with the highest Dice of all on a case; label 2 is left out."""
    inside, reference = volume.brain & ~volume.ignore, volume.mask == 1
    flair = volume.image[0]
    levels, where, voxels = np.unique(flair[inside], return_inverse=True, return_counts=True)
    lesion = np.bincount(where, weights=reference[inside], minlength=len(levels))
    marked, hit = (np.cumsum(counts[::-1])[::-1] for counts in (voxels, lesion))  # at a level or above
    return (flair >= levels[np.argmax(2 * hit / (marked + reference.sum()))]) & inside


def best_threshold_dice(volume: Volume) -> float:
    """The Dice of the best FLAIR threshold of a case, chosen with the reference in hand."""
    return _dice(best_threshold(volume), volume.mask == 1)


def _dice(mask: np.ndarray, reference: np.ndarray) -> float:
    return 2 * (mask & reference).sum() / (mask.sum() + reference.sum())


def data_stamp(profile: Profile, fingerprint: str, phantom: bool) -> dict:
    """The provenance of a table that tells of the data alone."""
    about = {"seed": profile.seed, "data_fingerprint": fingerprint, "phantom": phantom}
    return records.stamp(root=ROOT, device="cpu", profile=profile.name, changes=profile.changes, **about)


def write_summary(
    place: Layout, profile: Profile, root: str, fingerprint: str, given: bool, threshold_dice: float
) -> None:
    """Leave what every later notebook of this run reads (see `run.Run`). given: whether the user named the root."""
    summary = {
        "root": str(root),
        "fingerprint": fingerprint,
        "clip_percentiles": list(profile.data.clip_percentiles),
        "phantom": is_phantom(root),
        "given": given,
        "cpu_precision": steady_precision(torch.device("cpu")),
        "threshold_dice": float(threshold_dice),
    }
    write_whole(place.cases, json.dumps(summary, indent=1))


def _recipe() -> dict:
    return yaml.safe_load(RECIPE.read_text(encoding="utf-8"))


def _settings(profile: Profile) -> dict:
    data = profile.data
    return {
        "cases_per_site": data.cases_per_site,
        "seed": profile.seed,
        "grid_scale": list(data.grid_scale),
        "label2_fraction": data.label2_fraction,
    }


def _has_further(profile: Profile) -> bool:
    return profile.repeats.further_per_site > 0


def _further(profile: Profile) -> dict:
    """The settings of the further subjects: as the others', with random streams of their own."""
    return _drawn(profile, profile.repeats.further_per_site, 1)


def _drawn(profile: Profile, per_site: int, stream: int) -> dict:
    seed = int(np.random.SeedSequence(profile.seed, spawn_key=(stream,)).generate_state(1)[0])
    return _settings(profile) | {"cases_per_site": per_site, "seed": seed}
