"""What `segment` is worth on scans with an expert's labels: `python -m pdlib.study.labelled_scans FOLDER RESULTS`.

Every case of the folder, in the challenge's layout, is segmented into RESULTS as `pdlib segment --folder` does it. Its
mask is scored beside the pre-segmentation that its chain started from, and beside the FLAIR's best threshold, chosen
with the reference in hand. Scores go into results/PROFILE/labelled.csv, a picture of each case into figures/PROFILE.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from pdlib.data import wmh
from pdlib.data.nifti import CaseError, read_array
from pdlib.evaluation import metrics, records
from pdlib.inference.batch import segment_folder
from pdlib.inference.segment import FILES, Ready, presegment
from pdlib.inference.volumes import Subject
from pdlib.inference.working import to_training_voxels
from pdlib.methods import CHAIN
from pdlib.paths import ROOT, Layout, output_root, replacing
from pdlib.report.scan import LABELLED, SCORES, START, THRESHOLD, picture_name
from pdlib.report.slices import overlay_figure
from pdlib.study.preparation import best_threshold, is_phantom

COLUMNS, DPI = 6, 100  # of a picture


def scored(ready: Ready, case: wmh.Case, volume: wmh.Volume, result: Path) -> list[dict]:
    """A row for each method: its scores and volumes; of PD-DDPM also what `segment` reported of itself.

    volume: the case as it was read; result: where `segment_folder` has put its mask.
    """
    labels = volume.mask + 2 * volume.ignore.astype(np.uint8)
    raw = replace(volume, image=read_array(case.flair, "FLAIR")[0][None])  # the networks' is clipped
    masks = {THRESHOLD: best_threshold(raw), START: _start(ready, volume), CHAIN: _written(result, "mask")}
    told = {CHAIN: _told(json.loads((result / FILES["report"]).read_text(encoding="utf-8")))}
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    rows = []
    for method, mask in masks.items():
        found = metrics.score_volume(labels, mask, volume.spacing_mm)
        about = {"subject": case.subject, "method": method, "reference_ml": volume.lesion_ml}
        about |= {"lesion_ml": np.count_nonzero(mask) * voxel_ml, **told.get(method, {})}
        rows.append(about | {name: found[name] for name in (*SCORES, "hd95_mm")})
    return rows


def _start(ready: Ready, volume: wmh.Volume) -> np.ndarray:
    trained = ready.trained
    working = to_training_voxels(volume, trained.data, trained.sampling["voxel_tolerance"])
    subject = Subject(working.volume, "", ready.sampling.seed, trained.data["multiple"])
    return working.back(presegment(ready, subject)[None].astype(np.float32))[0] > 0.5


def _written(result: Path, name: str) -> np.ndarray:
    return read_array(result / FILES[name], name)[0]


def _told(report: Mapping) -> dict:
    score, cost = report["quality"], report["cost"]
    told = {name: score[name] for name in ("predicted_dice", "do_not_trust")}
    return told | {"seconds": cost["seconds"], "peak_memory_mb": cost["peak_memory_mb"]}


def draw(volume: wmh.Volume, result: Path, path: Path) -> None:
    """A case's picture (PNG): FLAIR, the mask beside the reference, the members' variance."""
    mask, variance = _written(result, "mask"), _written(result, "uncertainty")
    figure = overlay_figure(
        volume.image, volume.mask, mask, variance, spacing_mm=volume.spacing_mm, columns=COLUMNS, note=""
    )
    with replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=DPI)


def write(ready: Ready, root: Path, results: Path, out: Path) -> pd.DataFrame:
    """Segment, score and draw every labelled case below root; see the module for where things go.

    ValueError or OSError, naming the file, for what cannot be used.
    """
    cases = [case for case in wmh.find_cases(root) if case.wmh.exists()]
    if not cases:
        raise CaseError.of(root, "no labelled case (no folder here or below holds wmh.nii.gz)")
    failed = [one for one in segment_folder(ready, root, results) if one.status == "failed"]
    if failed:
        raise CaseError.of(failed[0].case, failed[0].about)
    trained, rows = ready.trained, []
    place = Layout(out, trained.of_profile or trained.folder.name)
    fingerprint = records.data_fingerprint(path for one in cases for path in (one.flair, one.t1, one.wmh))
    about = {"seed": ready.sampling.seed, "data_fingerprint": fingerprint, "phantom": is_phantom(root)}
    stamp = records.stamp(root=ROOT, device=str(ready.device), profile=place.profile, **about)
    for case in cases:
        volume = wmh.read_case(case, clip_percentiles=tuple(trained.data["clip_percentiles"]))
        rows += scored(ready, case, volume, results / case.subject)
        draw(volume, results / case.subject, place.figures / picture_name(case.subject))
    return records.write_table(place.results / LABELLED, pd.DataFrame(rows), stamp | {"networks": trained.digests})


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment, score, draw, and print the scores; what cannot be done is told on stderr, and code 2."""
    parser = argparse.ArgumentParser(prog="python -m pdlib.study.labelled_scans", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="cases in the challenge's layout")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="for the masks")
    parser.add_argument("--weights", help="a profile's name or a folder (default: as `pdlib segment`)")
    given = parser.parse_args(arguments)
    try:
        rows = write(Ready.of(given.weights), given.folder, given.results, output_root())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(rows.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
