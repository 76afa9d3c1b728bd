"""What a run will be able to show, written down before it: `python -m pdlib.study.plan PROFILE [CHANGES]`.

The spreads are those of the finished run of SOURCE; a row that it lacks is stood in for by the nearest that it has.
Once the profile's own run has ended, `confirmation` in place of CHANGES plans its ledger's, by the run's own spreads.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping

import pandas as pd

from pdlib.evaluation import records
from pdlib.evaluation.stats import design_effect, detectable_difference
from pdlib.graph import place_of
from pdlib.methods import CHAIN
from pdlib.paths import ROOT, Layout
from pdlib.profiles import Profile, asked_changes, load_profile
from pdlib.report.titles import display_name, row_title
from pdlib.report.values import select
from pdlib.study.claims import EVERY_STEP, TABLES, Claim, Scores, registered

SOURCE = "cpu"
CONFIRMATION = "confirmation"  # asked for in place of changes


def plan(profile: Profile, tables: Scores, source: Profile) -> pd.DataFrame:
    """A row for each claim of a profile, from the score tables of an earlier run of another, the source.

    Of the profile's own run it is the plan of its confirmation. Columns: number, claim, metric, bound, beats (the gain
    whose exclusion refutes it), rows (compared), subjects, seeds, spread (standard deviation of the paired
    difference) and spread_from, detectable_subjects (the smallest difference to the bound that so many subjects show at
    `statistics.power`, in one two-sided test, by the normal approximation), detectable (the same where the part
    seed_share of the variance lies between trainings: an assumption, for the earlier run had one), taken_out (of the
    profile as it stands in configs/).
    """
    few = source.fewer_calls.few_calls
    tables, nearest = _with_stand_ins(tables, profile, few)
    how = {"presegmenter": profile.comparison.presegmenter, "margin": profile.statistics.margin, "few_calls": few}
    sites = tables["table1_scores"].site.nunique()
    confirmed = profile.confirmation is not None and source.name == profile.name
    taken = json.dumps(profile.changes, sort_keys=True) if profile.changes else "nothing"
    found = []
    for claim in registered(tables, **how):
        stood_in = [f"{display_name(name)}: {row}" for name, row in nearest(claim).items()]
        known = f"{source.name}, {claim.difference.count()} subjects"
        about = {"number": claim.number, "claim": claim.planned or claim.text, "metric": claim.metric}
        about |= {"bound": claim.bound, "rows": " against ".join(map(display_name, claim.methods))}
        about["spread_from"] = "; in place of ".join([known, *stood_in])
        about["beats"] = profile.statistics.gain if claim.beats else math.nan
        found.append(about | _shown(profile, claim, sites, confirmed) | {"taken_out": taken})
    return pd.DataFrame(found)


def _shown(profile: Profile, claim: Claim, sites: int, confirmed: bool) -> dict:
    """What the design of a profile shows of a claim."""
    settings, seeds = profile.statistics, len(profile.repeats.seeds)
    subjects = _subjects(profile, claim, sites, confirmed)
    how = {"power": settings.power, "confidence": settings.confidence}
    spread = float(claim.difference.std())
    alone = subjects / design_effect(subjects, seeds, settings.seed_share)
    return {
        "subjects": subjects,
        "seeds": seeds,
        "spread": spread,
        "detectable_subjects": detectable_difference(spread, subjects, **how),
        "seed_share": settings.seed_share,
        "detectable": detectable_difference(spread, alone, **how),
    }


def _subjects(profile: Profile, claim: Claim, sites: int, confirmed: bool) -> int:
    """How many subjects both rows of a claim are tested on: in the tables of whole rows the key ones have more."""
    repeats, own = profile.repeats, profile.confirmation
    if confirmed:
        few = claim.shown == "Fig. 4" or {*claim.methods} & {*own.few}
        return sites * (own.few_per_site if few else own.per_site)
    if not repeats.further_per_site:
        return profile.data.cases_per_site * sites // profile.data.folds
    key = claim.shown in ("Table 1", "Both ends") and {*claim.methods} <= {*repeats.key_methods}
    return sites * (repeats.further_per_site if key else repeats.others_per_site or repeats.further_per_site)


def _with_stand_ins(
    tables: Scores, profile: Profile, few_calls: int
) -> tuple[Scores, Callable[[Claim], Mapping[str, str]]]:
    """The tables with the rows that the profile's claims read, and which of a claim's rows are another's scores."""
    table1, fewer, agreed = (tables[name] for name in ("table1_scores", "fewer_calls_scores", "agreement_scores"))
    table1 = table1[table1.method.isin(profile.comparison.methods)]
    near = {}
    if "wolleb2021" in profile.comparison.methods and "wolleb2021" not in {*table1.method}:
        table1 = pd.concat([table1, select(table1, {"method": "ddpm"}).assign(method="wolleb2021")])
        near["wolleb2021", "dice"] = display_name("ddpm")
    wanted = {"start_matched": "deep_ensemble", "refiner": profile.comparison.presegmenter}  # and whose distance
    wanted["unmatched"] = "deep_ensemble"
    rows = {"start_matched": {"rule": "dpm_solver", "calls": few_calls}}
    rows |= {name: {"rule": "x0_jump"} for name in ("refiner", "unmatched")}
    if "start_matched" in profile.rows and "start_matched" not in {*fewer.method}:
        every, parts = select(fewer, EVERY_STEP), [fewer]
        if "energy_distance" not in {*every.metric}:
            about = {"method": CHAIN, "rule": every["rule"].iloc[0], "calls": every.calls.iloc[0]}
            parts.append(_as(agreed, {"method": CHAIN}, **about))
        for name, other in wanted.items():
            row = {"method": CHAIN} | rows[name]
            about = {"method": name, "rule": "start_matched", "calls": few_calls}
            near_by = select(fewer[fewer.metric != "energy_distance"], row)
            parts += [near_by.assign(**about), _as(agreed, {"method": other}, **about)]
            near |= dict.fromkeys([(name, "dice"), (name, "lesion_f1")], row_title(row))
            near[name, "energy_distance"] = display_name(other)
        fewer = pd.concat(parts)

    def nearest(claim: Claim) -> Mapping[str, str]:
        return {name: near[name, claim.metric] for name in claim.methods if (name, claim.metric) in near}

    return {**tables, "table1_scores": table1, "fewer_calls_scores": fewer}, nearest


def _as(agreed: pd.DataFrame, row: Mapping, **about) -> pd.DataFrame:
    """A row's energy distances under another's name."""
    return select(agreed[agreed.metric == "energy_distance"], row).assign(**about)


def write_plan(name: str, changes: Mapping | None = None, of: str = SOURCE) -> pd.DataFrame:
    """Write plan.csv of a profile among its results, from the committed results of another, and return it.

    of: that other one; the profile itself for the plan of its confirmation.
    """
    profile, source = load_profile(name, changes), load_profile(of)
    paths = {table: Layout(ROOT, of).results / f"{table}.csv" for table in TABLES}
    stamps = {table: records.read_stamp(path) for table, path in paths.items()}
    made = stamps["table1_scores"]
    stamp = records.stamp(
        root=ROOT,
        device="cpu",
        seed=profile.seed,
        data_fingerprint=made["data_fingerprint"],
        phantom=made["phantom"],
        profile=name,
        changes=profile.changes,
    )
    found = plan(profile, {table: records.read_table(path) for table, path in paths.items()}, source)
    spreads = {"spreads": {table: one["sha256"] for table, one in stamps.items()}}
    place = place_of(profile, "", None)
    folder = place.confirmation if of == name else place.results
    return records.write_table(folder / "plan.csv", found, stamp | spreads)


def main(name: str, changes: str = "") -> int:
    """Write and print a plan; an input that cannot be used is one line on stderr and code 2."""
    own = changes == CONFIRMATION
    try:
        written = write_plan(name, None if own else asked_changes(changes), name if own else SOURCE)
    except (ValueError, OSError) as error:
        print(f"make plan: {error}", file=sys.stderr)
        return 2
    print(written[["number", "claim", "subjects", "detectable_subjects", "detectable"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
