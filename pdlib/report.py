"""README's numbers, from figures/ and results/: `python -m pdlib.report README.md` rewrites the marked block."""

import sys
from pathlib import Path

import pandas as pd

from pdlib import records, tables
from pdlib.paths import PAPER_NUMBERS, Layout, layout
from pdlib.stats import paired_comparison
from pdlib.workflow import load_profile

BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"


def update(readme: Path, place: Layout) -> None:
    """Put the tables and claims of a profile between the markers of a README. ValueError where it has no markers."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme}: has no block between {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{numbers(place)}\n{END}{after}", encoding="utf-8")


def numbers(place: Layout) -> str:
    """The block: provenance, our tables, the paper's in tables of their own, and what became of its claims."""
    stamp = records.read_stamp(place.results / "table1_scores.csv")
    paper = pd.read_csv(PAPER_NUMBERS)
    printed = [
        tables.table_markdown(tables.paper_table(paper, number), f"Table {number} as the paper prints it (patients)")
        for number in ("1", "2")
    ]
    ours = [(place.figures / f"table{number}.md").read_text(encoding="utf-8").strip() for number in (1, 2)]
    code = (stamp["git"]["sha"] or "unknown")[:10] + (" with changes" if stamp["git"].get("dirty") else "")
    source = (
        f"Profile `{place.profile}`, code {code}, device {stamp['device']}, torch {stamp['packages']['torch']}, "
        f"seed {stamp['seed']}, data {stamp['data_fingerprint'][:10]}."
    )
    return "\n\n".join([source, ours[0], printed[0].strip(), ours[1], printed[1].strip(), claims(place)])


def claims(place: Layout) -> str:
    """Comparisons behind the claims, as Markdown: a paired difference, its interval, and what it allows to say."""
    table1, sweep, drawn, presegs = (
        records.read_table(place.results / f"{name}.csv")
        for name in ("table1_scores", "t_prime_scores", "ensemble_scores", "preseg_scores")
    )
    profile = load_profile(place.profile)["04_compare_methods"]
    table1, presegs = _dice(table1, "method"), _dice(presegs, "method")
    uncertainty, dice = (_sweep(sweep, metric, "test") for metric in ("uncertainty", "dice"))
    best = int(_sweep(sweep, "dice", "validation").mean().idxmax())
    first, last = min(dice), max(dice)
    sizes = _dice(drawn[drawn.split == "test"], "ensemble_size")
    worst = min((name for name in presegs if name.startswith("step")), key=lambda name: presegs[name].mean())
    rows = {
        "C1 PD-DDPM over DDPM": (table1["pd_ddpm"], table1["ddpm"]),
        "C2 PD-DDPM over its pre-segmenter": (table1["pd_ddpm"], table1[profile["presegmenter"]]),
        "C2b PD-DDPM over an ensemble of pre-segmenters": (table1["pd_ddpm"], table1["deep_ensemble"]),
        "PD-DDPM over the x0 jump": (table1["pd_ddpm"], table1["x0_jump"]),
        **{
            f"C4 T' = {best} (best on validation) over T' = {end}": (dice[best], dice[end])
            for end in (first, last)
            if end != best
        },
        f"C5 uncertainty at T' = {last} over T' = {first}": (uncertainty[last], uncertainty[first]),
        f"C6 {max(sizes)} members over {min(sizes)}": (sizes[max(sizes)], sizes[min(sizes)]),
        f"C7 PD-DDPM from the best start over that from {worst}": (
            presegs["pd_ddpm from best"],
            presegs[f"pd_ddpm from {worst}"],
        ),
        "C7 PD-DDPM from the best start over an empty one": (
            presegs["pd_ddpm from best"],
            presegs["pd_ddpm from empty"],
        ),
    }
    settings = {name: profile[name] for name in ("resamples", "confidence", "seed")}
    lines = ["| Is it higher? | Difference | Verdict |", "| --- | --- | --- |"]
    lines += [f"| {text} | {_verdict(*pair, settings)} |" for text, pair in rows.items()]
    title = "Comparisons on the test subjects, paired, of Dice if not said otherwise; not corrected for their number"
    return "\n".join([f"{title} ({_kind(place)}):", "", *lines])


def _kind(place: Layout) -> str:
    return "phantom" if (place.results / "phantom_calibration.csv").exists() else "patients"


def _dice(scores: pd.DataFrame, by: str) -> pd.DataFrame:
    """Dice by subject (rows) and method or ensemble size (columns), the mean over random ensembles."""
    rows = scores[scores.metric == "dice"]
    return rows.pivot_table(index="subject", columns=by, values="value", dropna=False)


def _verdict(values: pd.Series, others: pd.Series, settings: dict) -> str:
    found = paired_comparison(values, others, **settings)
    verdict = "higher" if found["low"] > 0 else "lower" if found["high"] < 0 else "undecided"
    return f"{found['mean_difference']:+.3g} [{found['low']:+.3g}, {found['high']:+.3g}], n = {found['n']} | {verdict}"


def _sweep(scores: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Values by subject (rows) and T' (columns)."""
    rows = scores[(scores.method == "pd_ddpm") & (scores.metric == metric) & (scores.split == split)]
    return rows.pivot_table(index="subject", columns="t_prime", values="value", dropna=False)


if __name__ == "__main__":
    update(Path(sys.argv[1]), layout("cpu"))
