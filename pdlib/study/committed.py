"""`make weights`: the networks that a clone comes with, and their Dice on three phantom subjects drawn for them."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pdlib.data import folds, wmh
from pdlib.evaluation import records
from pdlib.methods import CHAIN, refine_name, seeded_name
from pdlib.paths import COMMITTED, COMMITTED_SCORES, Layout, layout
from pdlib.profiles import Profile, load_profile
from pdlib.study import preparation
from pdlib.study.comparison import Row
from pdlib.study.run import Run
from pdlib.training.weights import Weights, export_weights, load_weights

DRAWN_FOR = {  # a phantom of its own, on which every machine computes alike
    "seed": 2023,  # the three have neither few lesions nor many
    "data": {"folds": 3, "cases_per_site": 1},
    "repeats": {"seeds": [0], "further_per_site": 0, "others_per_site": None},
    "machine": {"device": "cpu", "precision": "32-true", "workers": 1},
}
SEGMENTERS = ("unet", "attention_unet", "unet_plus_plus", "bayesian_unet")  # small ones: the largest stay out
LARGEST = 8_000_000  # bytes of all files together
DIGITS = 3  # of a Dice in the table: what half precision and another machine must not change


@dataclass(frozen=True)
class Stored(Run):
    """A run whose networks lie in one folder, whatever they were trained on.

    Args:
        folder: of the trainings, each with its best.safetensors.
    """

    folder: Path

    def weights(self, training: str, checkpoint: str = "best") -> Weights:
        """A training's weights; ValueError, naming the file, for the best of a training that has not ended."""
        weights = load_weights(self.folder / training / f"{checkpoint}.safetensors")
        return weights.require_finished() if checkpoint == "best" else weights


def names(profile: Profile) -> list[str]:
    """The trainings that are committed, of repeats the first: the pre-segmenters of all seeds and the other SEGMENTERS,
    the denoiser and ADDPM's last network; where the profile has them, the start-matched denoiser, the refiner and the
    network that reads noise levels.
    """
    seed, name = profile.repeats.seeds[0], profile.comparison.presegmenter
    found = [f"{name}_{one}" for one in dict.fromkeys([seed, *profile.comparison.deep_ensemble_seeds])]
    found += [f"{other}_0" for other in SEGMENTERS if other != name]
    found += [seeded_name("denoiser", seed), refine_name(profile.chain.t_stop, False)]
    found += [] if profile.start_matched is None else [seeded_name("start_matched", seed), "refiner"]
    return found if profile.noise_level is None else [*found, "noise_level"]


def drawn(profile: str, root: Path, folder: Path) -> Stored:
    """A run on three phantom subjects, one a site, written below root, with the networks of a folder."""
    settings = load_profile(profile, DRAWN_FOR)
    place, cases = Layout(root / "out", profile), root / "cases"
    preparation.write_phantom(cases, settings)
    found = wmh.find_cases(cases)
    table = pd.DataFrame([{"subject": one.subject, "site": one.site, "lesion_ml": 1.0} for one in found])
    fingerprint = records.data_fingerprint(path for one in found for path in (one.flair, one.t1, one.wmh))
    stamp = preparation.data_stamp(settings, fingerprint, phantom=True)
    records.write_table(place.folds, folds.make_folds(table, folds=3, seed=settings.seed), stamp)
    preparation.write_summary(place, settings, str(cases), fingerprint, given=False, threshold_dice=0.0)
    run = Run.at(place, settings)
    return Stored(run.profile, run.place, run.data, run.compute, folder)


def scores(run: Stored) -> pd.DataFrame:
    """Dice of one member of each row that the networks of a run are for: method, subject, dice."""
    wanted = [*SEGMENTERS, "deep_ensemble", CHAIN, "addpm"]
    wanted += [] if run.profile.start_matched is None else ["start_matched", "refiner"]
    rows = [Row.of(run, name, size=1) for name in wanted]
    parts = [row.scores(split) for row in rows for split in ("train", "validation", "test")]
    found = pd.concat(parts).query("metric == 'dice'").rename(columns={"value": "dice"})
    return found.sort_values(["method", "subject"])[["method", "subject", "dice"]].reset_index(drop=True)


def commit(profile: str, source: Path, out: Path, table: Path) -> pd.DataFrame:
    """Export a profile's networks, and write what they score beside what they scored in full precision.

    ValueError where half precision changes a printed digit of a Dice, or the files are larger than LARGEST.
    """
    size = export_weights(source, names(load_profile(profile)), out, profile)
    with tempfile.TemporaryDirectory() as made:
        full, half = (scores(drawn(profile, Path(made), folder)) for folder in (source, out))
        stamp = drawn(profile, Path(made), out).stamp()
    both = half.assign(dice=half.dice.round(DIGITS), full_precision=full.dice.round(DIGITS))
    records.write_table(table, both, stamp)
    print(both.to_string(index=False), f"{size / 1e6:.2f} MB", sep="\n")
    if (changed := both[(both.dice - both.full_precision).abs() > 1.5 * 10**-DIGITS]).size:
        raise ValueError(f"half precision changes the Dice of {', '.join(changed.method.unique())}")
    if size > LARGEST:
        raise ValueError(f"{out}: {size} bytes, more than {LARGEST}")
    return both


if __name__ == "__main__":
    chosen = os.environ.get("PDLIB_PROFILE") or "night"
    try:
        commit(chosen, layout(chosen).weights("denoiser_0").parent, COMMITTED, COMMITTED_SCORES)
    except (ValueError, OSError) as error:
        sys.exit(f"make weights: {error}")
