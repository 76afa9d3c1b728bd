"""README's numbers, from figures/ and results/: `python -m pdlib.report.readme README.md` rewrites the marked block."""

import json
import sys
from pathlib import Path

import pandas as pd

from pdlib.evaluation import records
from pdlib.paths import BENCHMARKS, PAPER_NUMBERS, Layout, measured_devices, output_root, write_whole
from pdlib.report import tables

AIMS = {"cpu": (1.6, 1.5), "cuda": (3.0, 1.5)}  # times as fast as the reference mode, and as the quicker library
OTHERS = ("truncation", "fundus", "fewer_calls", "agreement")  # shown where the profile makes them
QUOTED = ("night", "cpu")  # the reference study where its run is complete, and else its hour-long version
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def quoted(out: Path) -> Layout:
    """The place below an output root whose results README quotes: the first of QUOTED that has its ledger, which a run
    writes from all its score tables; the last where none has."""
    places = [Layout(out, profile) for profile in QUOTED]
    complete = (place for place in places if (place.results / "table1_scores.csv").exists())
    return next((place for place in complete if (place.figures / "claims.csv").exists()), places[-1])


def update(readme: Path, place: Layout) -> None:
    """Put the tables of a profile between the markers of a README.

    ValueError where it has no markers; OSError names the file that cannot be written.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme}: has no block between {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_whole(readme, f"{before}{BEGIN}\n{numbers(place)}\n{END}{after}")


def numbers(place: Layout) -> str:
    """The block: what was found, provenance, the claims, our tables in brief, the paper's in tables of their own."""
    paper = pd.read_csv(PAPER_NUMBERS)
    first, second = (
        tables.table_markdown(tables.paper_table(paper, number), f"Table {number} as the paper prints it (patients)")
        for number in ("1", "2")
    )
    claims = (place.figures / "claims.md").read_text(encoding="utf-8").strip() + "\n\n" + _verdicts(place)
    one, sites, two = (_brief(place, name) for name in ("table1", "table1_by_site", "table2"))
    others = (_brief(place, name) for name in OTHERS if (place.figures / f"{name}.md").exists())
    found = (place.figures / "findings.md").read_text(encoding="utf-8")
    parts = (found, _provenance(place), claims, one, first, sites, two, second, *others, *speeds())
    return "\n\n".join(part.strip() for part in parts)


def speeds() -> list[str]:
    """What a step costs on each kind of device that `make bench` has run on."""
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
    return found


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


def _brief(place: Layout, name: str) -> str:
    """A table of figures/ as narrow as a page: of the scores beside Dice the means alone."""
    caption = (place.figures / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
    table = pd.read_csv(place.figures / f"{name}.csv")
    intervals = table.filter(regex="^(?!dice).*_(low|high)$")
    wide = table.filter(regex="^hd95_mm|_difference_(median|missed|rest)")
    same = table.filter(regex="^n$|_difference_n$") if "n" in table and table.n.nunique() == 1 else []  # the caption's
    return tables.table_markdown(table.drop(columns=[*intervals, *wide, *same]), caption)


if __name__ == "__main__":
    update(Path(sys.argv[1]), quoted(output_root()))
