"""What a run's networks are worth on heads that they were not trained on, and the quality score fitted to that.

`python -m pdlib.study.held_out_heads`, once notebooks 01 to 03 of a run have ended, scores pre-segmenter and PD-DDPM on
the heads of validation and test beside the best threshold on FLAIR, into results/PROFILE/heads.csv, and writes
quality.json beside the networks. The validation heads chose the checkpoints: what is quoted is of the split "test".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pdlib.evaluation import metrics, quality, records
from pdlib.graph import place_of
from pdlib.methods import CHAIN
from pdlib.profiles import load_profile
from pdlib.report.scan import THRESHOLD
from pdlib.study.committed import Stored
from pdlib.study.comparison import Row
from pdlib.study.preparation import best_threshold
from pdlib.study.rows import ensemble_of
from pdlib.study.run import Run

SPLITS = ("validation", "test")
FOLDS = 5  # of the quality's cross-validation


def scores(run: Run) -> pd.DataFrame:
    """Result rows of the pre-segmenter, PD-DDPM and the best threshold, for each subject of SPLITS."""
    rows = [Row.of(run, name) for name in (run.profile.comparison.presegmenter, CHAIN)]
    parts = [row.scores(split) for row in rows for split in SPLITS]
    for split in SPLITS:
        for subject in run.subjects(split):
            volume = run.volume(subject)
            found = metrics.score_volume(run.labels(subject), best_threshold(volume), volume.spacing_mm)
            where = {"fold": run.fold, "seed": run.seed_of(subject), "site": run.site(subject), "split": split}
            parts.append(records.score_rows(found, method=THRESHOLD, subject=subject, **where))
    return pd.concat(parts, ignore_index=True)


def agreements(run: Run) -> pd.DataFrame:
    """What `quality.fit` reads: each subject of SPLITS with PD-DDPM's Dice and features, as `segment` computes them."""
    row, rows, threshold = Row.of(run, CHAIN), [], run.profile.ensemble.threshold
    for subject in (one for split in SPLITS for one in run.subjects(split)):
        volume, members = run.volume(subject), row.members(subject).values * run.volume(subject).brain
        mask, voxel_ml = ensemble_of(run, members).mask, float(np.prod(volume.spacing_mm)) / 1000
        dice = metrics.score_volume(run.labels(subject), mask, volume.spacing_mm)["dice"]
        agreed = quality.agreement(members, mask, threshold=threshold, voxel_ml=voxel_ml)
        image = quality.image_statistics(volume.image[0], volume.brain, volume.spacing_mm)
        rows.append({"subject": subject, "dice": dice, **agreed, **image})
    return pd.DataFrame(rows)


def origin(run: Run) -> quality.Origin:
    """The kind of ensemble that PD-DDPM is in a run."""
    row, name = Row.of(run, CHAIN), f"{run.profile.comparison.presegmenter}_{run.profile.repeats.seeds[0]}"
    return quality.Origin(
        networks={"denoiser_0": row.first.trained.denoiser.digest, name: row.first.source.digest},
        phantom=run.data["phantom"],
        members=row.size,
        calls=len(row.chain.indices),
        threshold=run.profile.ensemble.threshold,
    )


def summary(rows: pd.DataFrame) -> str:
    """Mean Dice, lesion F1 and AVD of each method over the test heads, as text."""
    chosen = rows[rows.metric.isin(["dice", "lesion_f1", "avd_percent"]) & (rows.split == "test")]
    return chosen.pivot_table(index="method", columns="metric", values="value").round(3).to_string()


def write(run: Run, folder: Path, folds: int = FOLDS) -> quality.Quality:
    """Write heads.csv with its stamp, and quality.json into the folder of the networks; the quality.

    ValueError, naming what is missing, for networks that are not there and for too few heads.
    """
    rows = run.write("heads", scores(run))
    print(summary(rows))
    statistics = run.profile.statistics
    how = {"resamples": statistics.resamples, "confidence": statistics.confidence, "seed": run.seed}
    fitted = quality.fit(agreements(run), origin(run), folds=folds, **how)
    fitted.save(folder / quality.FILE)
    return fitted


def main(arguments: Sequence[str] | None = None) -> int:
    """Score and fit; what cannot be done is told on stderr, and code 2."""
    parser = argparse.ArgumentParser(prog="python -m pdlib.study.held_out_heads", description=__doc__)
    parser.add_argument("--profile", default="scan", help="default: %(default)s")
    parser.add_argument("--out", default="", help="where its run lies, as OUT of `make reproduce`")
    parser.add_argument("--weights", type=Path, help="a folder with copies of its networks, as `make weights` exports")
    parser.add_argument("--folds", type=int, default=FOLDS, help="of the quality's fit (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        profile = load_profile(given.profile)
        run = Run.at(place_of(profile, given.out), profile)
        folder = given.weights or run.place.weights("denoiser_0").parent
        if given.weights:
            run = Stored(run.profile, run.place, run.data, run.compute, folder)
        held_out = write(run, folder, given.folds).held_out
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"predicted Dice: off by {held_out.mean_error:.3f} on average, the mean Dice by {held_out.constant_error:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
