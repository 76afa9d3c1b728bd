"""`make weights`: the networks that a clone comes with, and their Dice on three phantom subjects drawn for them."""

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pdlib.data import folds, wmh
from pdlib.evaluation import records
from pdlib.methods import CHAIN, refine_name, seeded_name
from pdlib.paths import COMMITTED, REFERENCE, Layout, committed_scores, weights_folder, write_whole
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
SUMS = COMMITTED / "SHA256SUMS"  # as sha256sum writes it
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
    """The trainings that are committed, of repeats the first: those of the rows that a profile compares, of segmenters
    the pre-segmenter and the other SEGMENTERS; and the network that reads noise levels.
    """
    rows, compared = {*profile.comparison.methods, *profile.fewer_calls.starts}, profile.comparison
    seed, name = profile.repeats.seeds[0], compared.presegmenter
    seeds = dict.fromkeys([seed, *(compared.deep_ensemble_seeds if "deep_ensemble" in rows else [])])
    found = [f"{name}_{one}" for one in seeds]
    found += [f"{other}_0" for other in SEGMENTERS if other != name and other in rows]
    found.append(seeded_name("denoiser", seed))
    further = {"addpm": refine_name(profile.chain.t_stop, False), "start_matched": seeded_name("start_matched", seed)}
    further |= {"refiner": "refiner", "noise_level": "noise_level"}
    return found + [training for row, training in further.items() if row in rows]


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
    wanted = [*SEGMENTERS, "deep_ensemble", CHAIN, "addpm", "start_matched", "refiner"]
    rows = [Row.of(run, name, size=1) for name in wanted if name in run.profile.comparison.methods]
    parts = [row.scores(split) for row in rows for split in ("train", "validation", "test")]
    found = pd.concat(parts).query("metric == 'dice'").rename(columns={"value": "dice"})
    return found.sort_values(["method", "subject"])[["method", "subject", "dice"]].reset_index(drop=True)


def commit(profile: str, source: Path, out: Path, table: Path) -> pd.DataFrame:
    """Export a profile's networks, and write what they score beside what they scored in full precision.

    ValueError where half precision changes a printed digit of a Dice, or the files are larger than LARGEST.
    """
    with tempfile.TemporaryDirectory() as made:
        run = drawn(profile, Path(made), source)
        full, stamp = scores(run), run.stamp()  # before anything is written: then the code is still the commit's
        size = export_weights(source, names(run.profile), out, profile)
        half = scores(drawn(profile, Path(made), out))
    both = half.assign(dice=half.dice.round(DIGITS), full_precision=full.dice.round(DIGITS))
    records.write_table(table, both, stamp)
    print(both.to_string(index=False), f"{size / 1e6:.2f} MB", sep="\n")
    if (changed := both[(both.dice - both.full_precision).abs() > 1.5 * 10**-DIGITS]).size:
        raise ValueError(f"half precision changes the Dice of {', '.join(changed.method.unique())}")
    if size > LARGEST:
        raise ValueError(f"{out}: {size} bytes, more than {LARGEST}")
    return both


def digests() -> str:
    """The SHA-256 of each weights file that comes along, a line each, as `sha256sum` writes and checks it."""
    found = sorted(path.relative_to(COMMITTED).as_posix() for path in COMMITTED.rglob("*.safetensors"))
    return "".join(f"{hashlib.sha256((COMMITTED / name).read_bytes()).hexdigest()}  {name}\n" for name in found)


if __name__ == "__main__":
    chosen = os.environ.get("PDLIB_PROFILE") or REFERENCE
    kept_as = "" if chosen == REFERENCE else chosen
    try:
        commit(chosen, weights_folder(chosen), COMMITTED / kept_as, committed_scores(kept_as))
        write_whole(SUMS, digests())
    except (ValueError, OSError) as error:
        sys.exit(f"make weights: {error}")
