"""The computed parts of README and docs/, from figures/ and results/: `python -m pdlib.report.readme` rewrites them.

A page holds each part between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->`; the rest is written by hand.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pdlib.evaluation import records
from pdlib.paths import (
    BENCHMARKS,
    DOCS,
    FAULTS,
    PAPER_NUMBERS,
    REFERENCE,
    ROOT,
    SCALE,
    Layout,
    measured_devices,
    output_root,
    write_whole,
)
from pdlib.report import asides, faults, front, scale, scan, tables

AIMS = {"cpu": (1.6, 1.5), "cuda": (3.0, 1.5)}  # times as fast as the reference mode, and as the quicker library
TABLES = {  # of figures/: their headings; the paper's own numbers follow the first and the third
    "table1": "Table 1",
    "table1_by_site": "Table 1 by site",
    "table2": "Table 2: better and worse starts",
    "truncation": "Both ends truncated",
    "fundus": "Photographs",
    "fewer_calls": "Fewer calls",
    "agreement": "Members and raters",
}
PICTURES = {  # of figures/: what they show
    "fig1": "Fig. 1: from noise (DDPM) and from a cheap mask (PD-DDPM), on one axis of diffusion time",
    "fig2": "Fig. 2: masks and uncertainty of test subjects",
    "fig3": "Fig. 3: Dice and uncertainty against T'",
    "fig4": "Fig. 4: Dice against the number of members",
    "scores": "Table 1 as a picture",
    "starts": "Table 2 as a picture",
    "truncation": "ADDPM beside its neighbours",
    "fewer_calls": "Fewer calls",
    "agreement": "Uncertainty against errors and raters",
}
QUOTED = (REFERENCE, "cpu")  # the reference study where its run is complete, and else its hour-long version
THREADS = BENCHMARKS / "bench_threads_cpu.csv"


def quoted(out: Path) -> Layout:
    """The place below an output root whose results README quotes: the first of QUOTED that has its ledger, which a run
    writes from all its score tables; the last where none has."""
    places = [Layout(out, profile) for profile in QUOTED]
    complete = (place for place in places if (place.results / "table1_scores.csv").exists())
    return next((place for place in complete if (place.figures / "claims.csv").exists()), places[-1])


def parts(place: Layout) -> dict[Path, dict[str, str]]:
    """The computed parts of every page, by their names."""
    return {
        ROOT / "README.md": {
            "picture": front.picture(place),
            "found": front.found(place),
            "rows": front.rows(place),
            "notebooks": front.notebooks(place),
        },
        DOCS / "results.md": {"results": numbers(place), "pictures": pictures(place)},
        DOCS / "teaching.md": {"times": front.times()},
        DOCS / "scale.md": scale.parts(SCALE),
        DOCS / "scan.md": scan.parts(Layout(place.out, "scan")),
        DOCS / "security.md": faults.parts(FAULTS),
        DOCS / "speed.md": {"steps": "\n\n".join(speeds(place)), "threads": threads()},
    }


def update(page: Path, texts: Mapping[str, str]) -> None:
    """Put texts between their marks on a page.

    ValueError where a mark is missing; OSError names the file that cannot be written.
    """
    written = page.read_text(encoding="utf-8")
    for name, text in texts.items():
        begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
        before, begun, rest = written.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise ValueError(f"{page}: has no block between {begin} and {end}")
        written = f"{before}{begin}\n{text}\n{end}{after}"
    write_whole(page, written)


def numbers(place: Layout) -> str:
    """What was found, provenance, the claims, our tables in brief, the paper's in tables of their own."""
    found = (place.figures / "findings.md").read_text(encoding="utf-8")
    claims = (place.figures / "claims.md").read_text(encoding="utf-8").strip()
    sections = ["## What was found", found, _provenance(place), "## The ledger", claims, _verdicts(place)]
    for name, title in TABLES.items():
        if (place.figures / f"{name}.md").exists():
            sections += [f"## {title}", _brief(place, name), asides.aside(place, name), _printed(name)]
    if training := asides.trained(place):
        sections += ["## What was trained", training]
    return "\n\n".join(section.strip() for section in sections if section)


def pictures(place: Layout) -> str:
    """The figures that the profile has drawn, each with its vector form."""
    drawn = {stem: said for stem, said in PICTURES.items() if (place.figures / f"{stem}.png").exists()}
    shown = [(said, f"../figures/{place.profile}/{stem}") for stem, said in drawn.items()]
    return "\n\n".join(f"![{said}, phantom]({path}.png)\n\n{said} ([PDF]({path}.pdf))" for said, path in shown)


def speeds(place: Layout) -> list[str]:
    """What a step costs on each kind of device that `make bench` has run on, and the figure where there is one."""
    found = []
    for device in measured_devices():
        path = BENCHMARKS / f"bench_step_{device}.csv"
        stamp, steps = records.read_stamp(path), records.read_table(path)
        height, width = int(steps.height[0]), int(steps.width[0])
        caption = (
            f"One slice of {height} x {width} pixels in one step, {steps.batch[0]} side by side, the "
            f"`{stamp['profile']}` profile's network ({stamp['device']}, torch {stamp['packages']['torch']}): "
            f"milliseconds with quartiles, how many times as fast as the best setting of our reference mode, and the "
            f"error of the network's answer beside float32"
        )
        found.append(tables.table_markdown(tables.speed_table(steps), caption) + "\n" + _aimed_at(device, steps))
        if (place.figures / f"speed_{device}.png").exists():
            found.append(f"![Speed, {device}](../figures/{place.profile}/speed_{device}.png)")
    return found


def threads() -> str:
    """What threads cost: milliseconds a slice of a network call, on an idle machine and beside a busy core."""
    rows = records.read_table(THREADS)
    wide = rows.pivot(index=["precision", "threads", "wait_policy"], columns="beside", values="median_s")
    wide = wide.map(lambda seconds: f"{1e3 * seconds:.1f}").reset_index()
    idle = wide.wait_policy.map({"PASSIVE": "sleep", "ACTIVE": "spin"})
    told = wide.assign(wait_policy=idle.where(wide.threads > 1, "–"), threads=wide.threads.astype(str))
    heads = {"precision": "Precision", "threads": "Threads", "wait_policy": "Idle ones"}
    heads |= {name: f"Beside {name}" for name in rows.beside.unique()}
    caption = f"A network call: milliseconds a slice, median ({records.read_stamp(THREADS)['device']})"
    return tables.table_markdown(told[[*heads]].rename(columns=heads), caption).strip()


def _provenance(place: Layout) -> str:
    """What made the scores: one sentence, since one run has to have made them all. ValueError where several did."""
    stamps = {path: records.read_stamp(path) for path in sorted(place.results.glob("*_scores.csv"))}
    stamp = stamps[place.results / "table1_scores.csv"]
    for path, other in stamps.items():
        if other["git"] != stamp["git"]:
            raise ValueError(f"{path}: made by other code than table1_scores.csv; run the graph again")
    code = (stamp["git"]["sha"] or "unknown")[:10] + (" with changes" if stamp["git"].get("dirty") else "")
    settings = f" with {json.dumps(stamp['changes'], sort_keys=True)}" if stamp.get("changes") else ""
    return (
        f"Scores of profile `{place.profile}`{settings} from code {code}, device {stamp['device']}, "
        f"torch {stamp['packages']['torch']}, seed {stamp['seed']}, data {stamp['data_fingerprint'][:10]}."
    )


def _aimed_at(device: str, steps: pd.DataFrame) -> str:
    """How fast a step is beside what was aimed at, and the operator that takes most of a network call."""
    quickest = steps.groupby("system").median_s.min()
    beside_reference = quickest["reference"] / quickest["pdlib"]
    beside_libraries = quickest[["diffusers", "MONAI"]].min() / quickest["pdlib"]
    aims = AIMS[device]
    first = records.read_table(BENCHMARKS / f"bench_operators_{device}.csv").iloc[0]
    return (
        f"A step of pdlib is {beside_reference:.2f} times as fast as the reference mode's (aimed at: {aims[0]}) and "
        f"{beside_libraries:.2f} times as fast as the quicker library's (aimed at: {aims[1]}). "
        f"{first.share:.0%} of a network call is `{first.operator}`."
    )


def _verdicts(place: Layout) -> str:
    """The ledger in a sentence."""
    rows = pd.read_csv(place.figures / "claims.csv")
    of = rows.groupby("verdict").number.agg(lambda numbers: f"{len(numbers)} ({', '.join(dict.fromkeys(numbers))})")
    said = [f"{verdict} {of.get(verdict, 0)}" for verdict in ("holds", "does not hold", "undecided")]
    return f"Verdicts of {len(rows)} rows: {'; '.join(said)}. The undecided speak neither for a claim nor against it."


def _printed(name: str) -> str:
    """What the paper prints where one of our tables stands for one of its; else nothing."""
    number = {"table1": "1", "table2": "2"}.get(name)
    if not number:
        return ""
    paper = tables.paper_table(pd.read_csv(PAPER_NUMBERS), number)
    return tables.table_markdown(paper, f"Table {number} as the paper prints it (patients)")


def _brief(place: Layout, name: str) -> str:
    """A table of figures/ as narrow as a page: of the scores beside Dice the means alone."""
    caption = (place.figures / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
    table = pd.read_csv(place.figures / f"{name}.csv")
    intervals = table.filter(regex="^(?!dice).*_(low|high)$")
    wide = table.filter(regex="^hd95_mm|_difference_(median|missed|rest)")
    same = table.filter(regex="^n$|_difference_n$") if "n" in table and table.n.nunique() == 1 else []  # the caption's
    return tables.table_markdown(table.drop(columns=[*intervals, *wide, *same]), caption)


if __name__ == "__main__":
    for page, texts in parts(quoted(output_root())).items():
        update(page, texts)
