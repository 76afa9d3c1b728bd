"""A run's tables and figures, made again from what it keeps in results/: nothing is sampled, nothing is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from pdlib.diffusion.sampler import Chain
from pdlib.evaluation import records
from pdlib.inference.chains import chain_of
from pdlib.inference.precision import Compute
from pdlib.methods import CHAIN, METHODS, preseg_starts, seeded_name, tdpm_name
from pdlib.paths import BENCHMARKS, Layout, measured_devices, write_whole
from pdlib.profiles import load_profile
from pdlib.report import curves, tables
from pdlib.report.agreement import agreement_figure
from pdlib.report.fewer import fewer_figure
from pdlib.report.findings import findings, findings_markdown
from pdlib.report.printed import printed_dice
from pdlib.report.spread import spread_figure
from pdlib.report.style import PaperFigure, save_figure
from pdlib.report.sweeps import ensemble_figure, starts_figure, t_prime_figure
from pdlib.report.titles import Row as Named
from pdlib.report.values import missed_starts
from pdlib.report.verdicts import verdicts_figure
from pdlib.study import claims, fewer, latent
from pdlib.study.comparison import Networks, Row
from pdlib.study.remarks import remarks
from pdlib.study.run import Run

METRICS = ("dice", "hd95_voxel", "hd95_mm", "jaccard", "lesion_f1", "uncertainty")  # of Table 1
START_METRICS = ("dice", "hd95_voxel", "jaccard", "lesion_f1")  # of Table 2
AGREEMENT = ("energy_distance", "rater_dice", "risk_area", "calibration_error")
BOTH_ENDS = ("dice", "lesion_f1")
UNDRAWN = ("one_step_*", "student_*")  # trainings whose curves are not drawn
IMAGES = {  # figures that no table holds, as patterns of their names: what they show
    "fig1": "a subject's slices",
    "fig2": "subjects' slices",
    "tdpm_states": "a subject's slices",
    "noise_level": "levels read off a subject's slices",
    "labelled_*": "a patient's slices",
    "training/*_masks": "a subject's slices",
    "training/*_mismatch": "a subject's slices",
    "training/*_states": "a subject's slices",
}


@dataclass(frozen=True)
class Kept:
    """A run of which nothing but results/ is needed, and where its tables and figures are made again.

    Args:
        run: its settings, folds and score tables.
        folder: for the new files, laid out as figures/PROFILE.
    """

    run: Run
    folder: Path

    @classmethod
    def of(cls, place: Layout, folder: Path) -> "Kept":
        """What lies at a place. ValueError where the folds, which say whose data these are, are missing or changed."""
        stamp = records.read_stamp(place.folds)
        data = {"phantom": stamp["phantom"], "fingerprint": stamp["data_fingerprint"]}
        return cls(Run(load_profile(place.profile), place, data, Compute(torch.device("cpu"), "32-true", 1)), folder)

    def has(self, name: str) -> bool:
        """Whether there is a table of this name in results/."""
        return (self.run.place.results / f"{name}.csv").exists()

    def read(self, name: str) -> pd.DataFrame:
        """A table of results/."""
        return records.read_table(self.run.place.results / f"{name}.csv")

    def table(self, name: str, frame: pd.DataFrame, caption: str) -> None:
        """Make a table of figures/."""
        tables.save_table(frame, caption, self.folder / name)

    def figure(self, name: str, figure: PaperFigure) -> None:
        """Make a figure of figures/."""
        save_figure(figure, self.folder / name)


@dataclass(frozen=True)
class Planned:
    """A chain whose networks are not there."""

    chain: Chain


def planned(run: Run, name: str, **changes) -> Row:
    """`Row.of` by the settings alone: it names a row's columns in the tables, and draws nothing."""
    method, own = METHODS[name], run.profile.wolleb2021
    schedule = (own if METHODS[name].denoiser == "wolleb2021" else run.profile.denoiser).diffusion.schedule
    chain = chain_of(method, run.profile.chain, schedule.steps, **changes)
    start = "noise" if method.start == "gaussian" else "best"
    return Row(run, name, 1, lambda seed: Networks((), Planned(chain)), start)


def _table1(kept: Kept) -> None:
    run, scores = kept.run, kept.read("table1_scores")
    methods, interval = list(run.profile.comparison.methods), run.profile.interval
    shown = [{"method": name} for name in methods]
    missed = missed_starts(scores, run.profile.comparison.presegmenter)
    how = {"baseline": {"method": CHAIN}, "metrics": list(METRICS), "interval": interval, "missed": missed}
    table = tables.table1(scores, rows=shown, **how)
    table["remark"] = table.method.map(remarks(run, scores))
    kept.table("table1", table, f"Table 1, ours ({run.whose}): Δ to PD-DDPM")
    kept.table("table1_by_site", tables.site_table(scores, rows=shown), f"Mean Dice by site ({run.whose})")
    paper = printed_dice("1", note=run.note)
    kept.figure("scores", curves.scores_figure(scores, methods=methods, interval=interval, paper=paper, note=run.note))


def _t_prime(kept: Kept) -> None:
    run, scores = kept.run, kept.read("t_prime_scores")
    how = {"preseg": run.profile.comparison.presegmenter, "steps": run.profile.denoiser.diffusion.schedule.steps}
    how |= {"chosen": claims.chosen_t_primes(scores), "interval": run.profile.interval, "note": run.note}
    kept.figure("fig3", t_prime_figure(scores, method=CHAIN, **how, paper=printed_dice("fig3", note=run.note)))


def _ensembles(kept: Kept) -> None:
    run, scores = kept.run, kept.read("ensemble_scores")
    seeds = {subject: run.seed_of(subject) for subject in scores.subject.unique()}
    how = {"method": CHAIN, "seeds": seeds, "interval": run.profile.interval}
    kept.figure("fig4", ensemble_figure(scores, **how, paper=printed_dice("fig4", note=run.note), note=run.note))


def _agreement(kept: Kept) -> None:
    run, scores = kept.run, kept.read("agreement_scores")
    known = {*scores[scores.value.notna()].metric}
    how = {"baseline": {"method": CHAIN}, "interval": run.profile.interval}
    how["metrics"] = [metric for metric in AGREEMENT if metric in known]
    rows = [{"method": name} for name in run.profile.members.agreement_methods]
    table = tables.table1(scores, rows=rows, **how)
    kept.table("agreement", table, f"Agreement ({run.whose_in(scores)}): Δ to PD-DDPM")


def _risks(kept: Kept) -> None:
    run, scores = kept.run, kept.read("agreement_scores")
    how = {"interval": run.profile.interval, "note": run.note}
    kept.figure("agreement", agreement_figure(kept.read("risk_curves"), scores, **how))


def _starts(kept: Kept) -> None:
    run, labels = kept.run, preseg_starts(len(kept.run.profile.preseg_accuracy.dice_gaps))
    how = {"presegmenter": run.profile.comparison.presegmenter, "metrics": list(START_METRICS)}
    scores = kept.read("preseg_scores")
    table = tables.table2(scores, starts=labels, **how, interval=run.profile.interval)
    kept.table("table2", table, f"Table 2, ours ({run.whose_in(scores)}): Δ to the row's own start")
    kept.figure("starts", starts_figure(table, method=CHAIN, presegmenter=how["presegmenter"], note=run.note))


def _both_ends(kept: Kept) -> None:
    run, scores = kept.run, kept.read("truncation_scores")
    shown = [row.selection("method", "t_prime", "t_stop") for row in _truncated_rows(kept)]
    how = {"rows": shown, "metrics": list(BOTH_ENDS), "interval": run.profile.interval}
    kept.figure("truncation", curves.calls_figure(scores, **how, note=run.note))
    table = tables.table1(scores, baseline=shown[0], **how)
    kept.table("truncation", table, f"Truncating both ends ({run.whose_in(scores)}): Δ to PD-DDPM")


def _truncated_rows(kept: Kept) -> list[Row]:
    """The profile's rows, and ADDPM at the ends that its validation subjects chose, where these are others."""
    run, grid = kept.run, kept.read("truncation_grid")
    settings, own = run.profile.truncation, (run.profile.chain.t_prime, run.profile.chain.t_stop)
    how = {"stride": settings.stride, "calls": None}
    dice = grid[grid.metric == "dice"].groupby(["t_prime", "t_stop"]).value.mean()
    tried = [(start, stop) for start in settings.t_primes for stop in settings.t_stops if stop < start]
    rows = {pair: planned(run, "addpm", t_prime=pair[0], t_stop=pair[1], **how) for pair in tried}
    best = max(tried, key=lambda pair: dice[rows[pair].chain.t_prime, rows[pair].chain.t_stop])
    found = [planned(run, name, **how) for name in settings.methods]
    return found if best == own else [*found, rows[best]]


def _fewer(kept: Kept) -> None:
    run, scores = kept.run, kept.read("fewer_calls_scores")
    how = {"metrics": [name for name in fewer.METRICS if (scores.metric == name).any()]}
    how["interval"] = run.profile.interval
    kept.figure("fewer_calls", fewer_figure(scores, **how, note=run.note))
    rows = _fewer_rows(run)
    table = tables.table1(scores, rows=rows, baseline=rows[0], **how)
    kept.table("fewer_calls", table, f"Fewer calls ({run.whose_in(scores)}): Δ to every step")


def _fewer_rows(run: Run) -> list[Named]:
    """Of the table: every step, the solver, the jump, and each other start with about as few calls."""
    few = run.profile.fewer_calls.few_calls
    every = planned(run, CHAIN, **fewer.EVERY_STEP, **fewer.ANCESTRAL)
    rows = [every, planned(run, CHAIN, calls=few, rule="dpm_solver"), every.jump()]
    for name in (name for name in run.profile.fewer_calls.starts if not fewer.tries_rules(name)):
        tried = [planned(run, name, **changes) for changes in fewer.chain_changes(run.profile, name)]
        rows.append(min(tried, key=lambda row: abs(len(row.chain.indices) - few)))
    telling = {True: ("rule", "calls", "t_prime"), False: ("calls",)}
    return [row.selection("method", *telling[fewer.tries_rules(row.name)] * bool(row.chain.indices)) for row in rows]


def _photographs(kept: Kept) -> None:
    run, scores = kept.run, kept.read("fundus_scores")
    rows = [{"method": name} for name in ("attention_unet", "ddpm", CHAIN, "addpm", "rater")]
    how = {"baseline": {"method": CHAIN}, "metrics": ["dice_disc", "dice_cup"], "interval": run.profile.interval}
    about = f"phantom, profile {run.profile.name}, {run.profile.fundus.held_out} test photographs"
    kept.table("fundus", tables.table1(scores, rows=rows, **how), f"Optic disc and cup ({about}): Δ to PD-DDPM")


def ledger(kept: Kept) -> None:
    """The ledger as table and figure, and what was found in words."""
    scored = kept.run.scored
    scores = claims.read_scores(scored.place)
    profile, statistics, interval = scored.profile, scored.profile.statistics, scored.profile.interval
    how = {"presegmenter": profile.comparison.presegmenter, "few_calls": profile.fewer_calls.few_calls}
    judged = claims.ledger(scores, **how, statistics=statistics, interval=interval)
    on = claims.judged_on(scored, scores)
    kept.table("claims", judged, claims.caption(on, statistics))
    listed = claims.registered(scores, **how, margin=statistics.margin)
    bounds, gains = claims.held_against(listed, statistics)
    kept.figure("claims", verdicts_figure(judged, bounds, gains, note=scored.note))
    tested = (records.read_table(scored.place.results / f"{name}_scores.csv") for name in ("table1", "agreement"))
    said = findings(judged, *tested, margin=statistics.margin, interval=interval)
    write_whole(kept.folder / "findings.md", findings_markdown(said, scored.whose, on))


def _distillation(kept: Kept) -> None:
    run, settings = kept.run, kept.run.profile.distillation
    step = {"rule": "ddim", "eta": 0.0, "spacing": "trailing"}
    rows = [planned(run, CHAIN, calls=calls, **step) for calls in (settings.calls, *settings.students)]
    rows += [planned(run, "distilled", calls=calls) for calls in settings.students]
    _by_calls(kept, "distillation", rows, ("dice", "lesion_f1", "uncertainty"), every=2)


def _latent(kept: Kept) -> None:
    calls = kept.run.profile.latent.calls
    rows = [planned(kept.run, name, calls=count) for name in (CHAIN, "latent") for count in calls]
    _by_calls(kept, "latent_calls", rows, latent.SCORES)


def _by_calls(kept: Kept, name: str, rows: list[Row], metrics: tuple[str, ...], every: int = 1) -> None:
    run, scores = kept.run, kept.read(f"training/{name}")
    how = {"rows": [row.selection("method", "calls") for row in rows], "interval": run.profile.interval}
    how["metrics"] = [metric for metric in metrics if (scores.metric == metric).any()][::every]
    kept.figure(f"training/{name}", curves.calls_figure(scores, **how, note=run.note))


def _history(kept: Kept, name: str) -> None:
    """A training's curves."""
    run, repeats, how = kept.run, kept.run.profile.repeats.seeds, {"note": kept.run.note}
    if name in [seeded_name("denoiser", seed) for seed in repeats]:
        how |= {"steps": run.profile.denoiser.fit.steps, "min_gain": run.profile.denoiser.fit.min_gain}
    if name in [seeded_name("start_matched", seed) for seed in repeats]:
        how["note"] = f"start-matched {run.note}"
    for t_prime in (t_prime for t_prime in run.profile.tdpm.t_primes if name == tdpm_name(t_prime)):
        how["note"] = f"TDPM, T' = {t_prime} of {run.profile.chain.paper_steps} {run.note}"
    kept.figure(f"training/{name}", curves.training_figure(kept.read(f"training/{name}"), **how))


def _speed(kept: Kept, device: str) -> None:
    steps, ops = (records.read_table(BENCHMARKS / f"bench_{name}_{device}.csv") for name in ("step", "ops"))
    kept.figure(f"speed_{device}", curves.speed_figure(steps, ops))


def _plain(kept: Kept, name: str, draw: Callable[..., PaperFigure]) -> None:
    """A figure of the name of its table, with no settings of its own."""
    kept.figure(name, draw(kept.read(name), note=kept.run.note))


PIECES: dict[str, Callable[[Kept], None]] = {  # by the table that each is made of
    "phantom_calibration": partial(_plain, name="phantom_calibration", draw=curves.data_figure),
    "table1_scores": _table1,
    "t_prime_scores": _t_prime,
    "ensemble_scores": _ensembles,
    "agreement_scores": _agreement,
    "risk_curves": _risks,
    "spread": partial(_plain, name="spread", draw=spread_figure),
    "preseg_scores": _starts,
    "truncation_scores": _both_ends,
    "fewer_calls_scores": _fewer,
    "fundus_scores": _photographs,
    "training/distillation": _distillation,
    "training/latent_calls": _latent,
}


def redraw(kept: Kept) -> dict[str, str]:
    """Make every table and figure that results/ holds the numbers of; what could not be made, with the reason.

    The machine's speed is drawn where the run has drawn it.
    """
    pieces = {name: draw for name, draw in PIECES.items() if kept.has(name)}
    pieces |= {"the ledger": ledger} if all(map(kept.has, claims.TABLES)) or kept.run.profile.reference else {}
    pieces |= {f"training/{name}": partial(_history, name=name) for name in _histories(kept)}
    for device in measured_devices():
        if (kept.run.place.figures / f"speed_{device}.png").exists():
            pieces[f"the speed on {device}"] = partial(_speed, device=device)
    return {name: reason for name, draw in pieces.items() if (reason := _failed(draw, kept))}


def _histories(kept: Kept) -> list[str]:
    """The trainings whose curves are drawn."""
    names = sorted(path.stem for path in (kept.run.place.results / "training").glob("*.csv"))
    curves = [name for name in names if {*kept.read(f"training/{name}")} == {"step", "metric", "value"}]
    return [name for name in curves if not any(fnmatch(name, one) for one in UNDRAWN)]


def _failed(draw: Callable[[Kept], None], kept: Kept) -> str:
    """Why a piece could not be made from its tables; empty where it was."""
    try:
        draw(kept)
    except (ValueError, KeyError, AttributeError, IndexError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
