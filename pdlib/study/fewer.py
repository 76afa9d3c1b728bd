"""The table of fewer calls: with which chains each of its methods is scored, and the scores."""

from collections.abc import Iterable

import pandas as pd

from pdlib.inference.slices import OnBatch, silent
from pdlib.methods import METHODS, RULES
from pdlib.profiles import Profile
from pdlib.study.comparison import Row
from pdlib.study.rows import agreement_rows
from pdlib.study.run import Run

METRICS = ("dice", "lesion_f1", "uncertainty", "energy_distance")
EVERY_STEP = {"stride": 1, "calls": None}
ANCESTRAL = {"rule": "ddpm", "eta": 1.0}


def tries_rules(name: str) -> bool:
    """Whether a method's chain may be stepped down by any rule: it has neither a denoiser nor a rule of its own."""
    method = METHODS[name]
    return method.denoiser in ("denoiser", "wolleb2021") and method.start != "mask" and "rule" not in method.settings


def chain_changes(profile: Profile, name: str) -> list[dict]:
    """The settings of each chain that a method is scored with, in place of its usual ones; a single call comes first.

    A method that tries rules makes a single ancestral call (a jump to x_start), every step where the profile asks for
    it, and each rule's numbers of calls. Another keeps its rule: for 1 call, for each number of calls and for every
    step. A student makes the calls that it was distilled for, and a refiner has no chain.
    """
    few, method = profile.fewer_calls, METHODS[name]
    if method.start == "mask":
        return [{}]
    if method.denoiser == "student":
        return [{"calls": calls} for calls in sorted(profile.distillation.students)]
    whole = [EVERY_STEP] if name in few.every_step else []
    if not tries_rules(name):
        return [{"calls": calls} for calls in sorted({1, *few.calls})] + whole
    counts = few.calls if method.source else few.noise_calls
    steps = [{"rule": RULES[rule].step, "eta": RULES[rule].eta} for rule in few.rules]
    ancestral = [ANCESTRAL | one for one in ({"calls": 1}, *whole)]
    return ancestral + [step | {"calls": calls} for step in steps for calls in counts]


def fewer_rows(run: Run, name: str) -> list[Row]:
    """The rows of a method in the table of fewer calls."""
    size = run.profile.fewer_calls.ensemble_size
    rows = [Row.of(run, name, size, **changes) for changes in chain_changes(run.profile, name)]
    return [rows[0].jump(), *rows[1:]] if tries_rules(name) else rows


def fewer_scores(rows: Iterable[Row], split: str, on_batch: OnBatch = silent) -> pd.DataFrame:
    """Scores of rows for the subjects of a split, METRICS of them; the distance to the raters where there are any."""
    parts = []
    for row in rows:
        scores = row.scores(split, on_batch)
        parts.append(scores)
        for subject, mine in scores.groupby("subject", sort=False):
            about = {"split": split, "nfe": mine.nfe.iloc[0], "seconds": mine.seconds.iloc[0], **row.about}
            bins = row.run.profile.members.calibration_bins
            parts.append(agreement_rows(row.run, row.members(subject).values, subject, bins, **about))
    scores = pd.concat(parts, ignore_index=True)
    wanted = scores.metric.isin(METRICS) & (scores.value.notna() | (scores.metric != "energy_distance"))
    return scores[wanted].reset_index(drop=True)
