"""The ledger's own sample: `make confirm`, after the profile's run.

A run's test subjects tell how far its rows spread, and so how many subjects a verdict takes. The verdicts are read from
others, drawn by a seed of their own and tested once by the networks of the run: nothing was chosen on them, and no row
was tested until it was decided. They serve the ledger alone; tables and other figures are the run's.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from multiprocessing import get_context

import pandas as pd
import torch

from pdlib.data import folds, phantom, wmh
from pdlib.evaluation import records
from pdlib.graph import place_of
from pdlib.methods import CHAIN
from pdlib.paths import Layout, write_whole
from pdlib.profiles import Profile, load_profile
from pdlib.progress import tqdm
from pdlib.study import fewer, preparation
from pdlib.study.checkpoints import checkpoint_weights
from pdlib.study.claims import TABLES
from pdlib.study.committed import Stored
from pdlib.study.comparison import Row, scores_of
from pdlib.study.redraw import Kept, ledger
from pdlib.study.rows import agreement_rows, ensemble_draws
from pdlib.study.run import Run

FOLDER = "confirmation"  # below a profile's runs, and the first part of the subjects' names
STREAM = 2  # of the profile's seed: 1 are the run's own further subjects
TOGETHER = 6  # subjects that a process takes at a time


@dataclass(frozen=True)
class Sample(Stored):
    """A run on the subjects of a confirmation, or on some of them, with the networks of the profile's own run.

    Args:
        own: where that run lies.
        only: the subjects; None: all.
    """

    own: Layout
    only: frozenset[str] | None = None

    def subjects(self, split: str) -> list[str]:
        """As `Run.subjects`, of those that belong here."""
        return [name for name in super().subjects(split) if self.only is None or name in self.only]


def prepare(profile: Profile, own: Layout) -> None:
    """Write the subjects of a profile's confirmation, where they are missing, and deal them to its trainings.

    own: where its run lies. ValueError: the profile has no confirmation; FileNotFoundError: that run is not here.
    """
    if profile.confirmation is None:
        raise ValueError(f"confirmation: profile {profile.name} has none")
    data = json.loads(own.cases.read_text(encoding="utf-8"))
    place, root = _place(own), own.runs / FOLDER / "phantom"
    preparation.write_drawn(root, FOLDER, profile, profile.confirmation.per_site, STREAM)
    made = pd.read_csv(root / FOLDER / phantom.TABLE_FILE)
    fresh = made.assign(subject=f"{FOLDER}/" + made.subject)[folds.COLUMNS]
    dealt = folds.with_further(
        _of_folds(records.read_table(own.folds)),
        fresh,
        seeds=profile.repeats.seeds,
        others_per_site=profile.confirmation.few_per_site,
        seed=profile.seed,
    )
    cases = wmh.find_cases(root)
    fingerprint = records.data_fingerprint(path for one in cases for path in (one.flair, one.t1, one.wmh))
    records.write_table(place.folds, dealt, preparation.data_stamp(profile, fingerprint, phantom=True))
    write_whole(place.cases, json.dumps(data | {"root": str(root), "fingerprint": fingerprint}, indent=1))


def sample(profile: Profile, own: Layout) -> Sample:
    """The run on the subjects that `prepare` has written."""
    run = Run.at(_place(own), profile)
    return Sample(run.profile, run.place, run.data, run.compute, own.weights("denoiser_0").parent, own)


def _place(own: Layout) -> Layout:
    return Layout(own.runs / FOLDER, own.profile)


def scores(run: Sample) -> dict[str, pd.DataFrame]:
    """Score rows of the test subjects of a sample, those that the ledger reads, by the name of their table."""
    members, pair = run.profile.members, (CHAIN, "deep_ensemble")
    pool = Row.of(run, CHAIN, members.pool)
    rated = [Row.of(run, name) for name in pair if name in members.agreement_methods]
    whole = {"size": run.profile.truncation.ensemble_size, "stride": run.profile.truncation.stride, "calls": None}
    made = {
        "table1_scores": [
            Row.of(run, name).scores(split)
            for name in _of_ledger(run.profile)
            if run.subjects(split := "test" if name in run.profile.confirmation.few else "key")
        ],
        "t_prime_scores": [scores_of(_sweep(run), "key")],
        "ensemble_scores": [_draws(pool, subject) for subject in run.subjects("test")],
        "preseg_scores": [scores_of(_starting(run), "key")],
        "agreement_scores": [_agreement(row, subject) for row in rated for subject in run.subjects("key")],
        "fewer_calls_scores": [fewer.fewer_scores(_few_calls(run), "key")],
        "truncation_scores": [Row.of(run, name, **whole).scores("key") for name in (CHAIN, "addpm")],
    }
    return {name: pd.concat(parts).assign(split="test") for name, parts in made.items() if parts}


def _of_ledger(profile: Profile) -> list[str]:
    """The rows of Table 1 that a claim compares."""
    read = ("ddpm", "wolleb2021", "tdpm", "es_ddpm", CHAIN, "addpm", "x0_jump", "deep_ensemble")
    return [name for name in profile.comparison.methods if name in (*read, profile.comparison.presegmenter)]


def _sweep(run: Sample) -> list[Row]:
    size, steps = run.profile.sweep.ensemble_size, run.profile.denoiser.diffusion.schedule.steps
    rows = [Row.of(run, CHAIN, size, t_prime=t_prime) for t_prime in run.profile.sweep.t_primes]
    whole = replace(Row.of(run, "ddpm", size), name=CHAIN)  # at T' = T nothing of the start is left
    return [whole if row.chain.t_prime == steps else row for row in rows]


def _draws(row: Row, subject: str) -> pd.DataFrame:
    settings, pool = row.run.profile.members, row.members(subject).values
    return ensemble_draws(row.run, pool, subject, settings.sizes, settings.draws, split="test", **row.about)


def _starting(run: Sample) -> list[Row]:
    chain, picked = Row.of(run, CHAIN), records.read_table(run.own.results / "preseg_checkpoints.csv")
    return [chain.starting_from(source, start) for start, source in checkpoint_weights(run, picked).items()]


def _agreement(row: Row, subject: str) -> pd.DataFrame:
    bins = row.run.profile.members.calibration_bins
    return agreement_rows(row.run, row.members(subject).values, subject, bins, split="test", **row.about)


def _few_calls(run: Sample) -> list[Row]:
    """The rows of notebook 10 that a claim compares."""
    settings = run.profile.fewer_calls
    few = {"calls": settings.few_calls}
    every = fewer.EVERY_STEP | fewer.ANCESTRAL
    wanted = [(CHAIN, every), (CHAIN, few | {"rule": "dpm_solver", "eta": 0.0})]
    wanted += [("start_matched", few), ("unmatched", few), ("refiner", {})]
    return [Row.of(run, name, settings.ensemble_size, **changes) for name, changes in wanted if name in settings.starts]


def _of_folds(table: pd.DataFrame) -> pd.DataFrame:
    dealt = table[table.part == folds.FOLD] if "part" in table else table
    return dealt[[*folds.COLUMNS, "fold"]].astype({"fold": int})


@lru_cache(maxsize=1)
def _here(name: str, out: str) -> Sample:
    profile = load_profile(name)
    torch.set_num_threads(profile.machine.threads)
    return sample(profile, place_of(profile, out))


def _part(name: str, out: str, subjects: Sequence[str]) -> dict[str, pd.DataFrame]:
    return scores(replace(_here(name, out), only=frozenset(subjects)))


def confirm(name: str, cores: int, out: str = "") -> dict[str, pd.DataFrame]:
    """Test the subjects of a profile's confirmation, on so many cores; write what the ledger reads, and the ledger.

    It can be stopped at any time: members that are sampled stay. The T' of C4 is the one that the run has chosen on its
    validation subjects, so their scores stand in the table as well.
    """
    profile = load_profile(name)
    prepare(profile, place_of(profile, out))
    run = sample(profile, place_of(profile, out))
    subjects = run.subjects("key")
    parts = [subjects[first : first + TOGETHER] for first in range(0, len(subjects), TOGETHER)]
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        told = tqdm(pool.map(partial(_part, name, out), parts), total=len(parts), unit="part", desc="ledger's rows")
        found = [*told]
    tables = {name: pd.concat([one[name] for one in found if name in one], ignore_index=True) for name in TABLES}
    chosen_on = records.read_table(run.own.results / "t_prime_scores.csv").query("split == 'validation'")
    tables["t_prime_scores"] = pd.concat([tables["t_prime_scores"], chosen_on], ignore_index=True)
    made_by = records.read_stamp(run.own.results / "table1_scores.csv")["git"]
    for table, rows in tables.items():
        records.write_table(run.own.confirmation / f"{table}.csv", rows, run.stamp() | {"networks": made_by})
    ledger(Kept.of(run.own, run.own.figures))
    return tables


if __name__ == "__main__":
    try:
        if given := [name for name in ("CHANGES", "FOLDS") if os.environ.get(f"PDLIB_{name}")]:
            raise ValueError(f"{' and '.join(given)}: a confirmation has the settings of its profile, and no others")
        cores = int(os.environ.get("PDLIB_CORES") or os.cpu_count() or 1)
        confirm(os.environ["PDLIB_PROFILE"], cores, os.environ.get("PDLIB_OUT_FOLDER", ""))
    except (ValueError, OSError) as error:
        sys.exit(f"confirm: {error}")
