"""README's numbers, from figures/ and results/: `python -m pdlib.report README.md` rewrites the marked block."""

import sys
from pathlib import Path

import pandas as pd

from pdlib import figures, records
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
        figures.table_markdown(figures.paper_table(paper, number), f"Table {number} as the paper prints it (patients)")
        for number in ("1", "2")
    ]
    ours = [(place.figures / f"table{number}.md").read_text(encoding="utf-8").strip() for number in (1, 2)]
    code = (stamp["git"]["sha"] or "unknown")[:10]
    source = (
        f"Profile `{place.profile}`, code {code}, device {stamp['device']}, torch {stamp['packages']['torch']}, "
        f"seed {stamp['seed']}, data {stamp['data_fingerprint'][:10]}."
    )
    return "\n\n".join([source, ours[0], printed[0].strip(), ours[1], printed[1].strip(), claims(place)])


def claims(place: Layout) -> str:
    """The paper's claims beside our estimates, as Markdown: difference of Dice with its interval, and a verdict."""
    table1 = records.read_table(place.results / "table1_scores.csv")
    sweep = records.read_table(place.results / "t_prime_scores.csv")
    drawn = records.read_table(place.results / "ensemble_scores.csv")
    presegs = records.read_table(place.results / "preseg_scores.csv")
    settings = _interval(place)
    rows = [
        _claim("C1 PD-DDPM is at least as good as DDPM", table1, "pd_ddpm", "ddpm", settings),
        _claim("C2 PD-DDPM beats its pre-segmenter", table1, "pd_ddpm", "attention_unet", settings),
        _claim("C2b PD-DDPM beats an ensemble of its pre-segmenter", table1, "pd_ddpm", "deep_ensemble", settings),
        _claim("PD-DDPM beats the jump to x0 after one call", table1, "pd_ddpm", "x0_jump", settings),
        _peak(sweep),
        _growth(sweep),
        _settling(drawn),
        _claim("C7 a better pre-segmentation is better", presegs, "pd_ddpm from best", _worst(presegs), settings),
        _claim("C7 an empty pre-segmentation is worse", presegs, "pd_ddpm from best", "pd_ddpm from empty", settings),
    ]
    lines = ["| Claim | Ours | Verdict |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(["What became of the claims (phantom, test subjects; differences of Dice, paired):", "", *lines])


def _interval(place: Layout) -> dict:
    """The bootstrap of the profile's Table 1."""
    chosen = load_profile(place.profile)["04_compare_methods"]
    return {name: chosen[name] for name in ("resamples", "confidence", "seed")}


def _dice(scores: pd.DataFrame, method: str) -> pd.Series:
    rows = scores[(scores.method == method) & (scores.metric == "dice")]
    return rows.set_index("subject").value.sort_index()


def _claim(text: str, scores: pd.DataFrame, method: str, other: str, settings: dict) -> tuple[str, str, str]:
    found = paired_comparison(_dice(scores, method), _dice(scores, other), **settings)
    verdict = "holds" if found["low"] > 0 else "does not hold" if found["high"] < 0 else "undecided"
    return text, f"{found['mean_difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]", verdict


def _sweep(scores: pd.DataFrame, metric: str, split: str) -> pd.Series:
    rows = scores[(scores.method == "pd_ddpm") & (scores.metric == metric) & (scores.split == split)]
    return rows.groupby("t_prime").value.mean()


def _peak(sweep: pd.DataFrame) -> tuple[str, str, str]:
    curves = {split: _sweep(sweep, "dice", split) for split in ("validation", "test")}
    best = {split: int(curve.idxmax()) for split, curve in curves.items()}
    ends = {split: (int(curve.index.min()), int(curve.index.max())) for split, curve in curves.items()}
    inside = all(ends[split][0] < best[split] < ends[split][1] for split in best)
    text = ", ".join(f"{split}: best at T' = {best[split]} of {ends[split][1]}" for split in best)
    return "C4 Dice peaks at an inner T'", text, "holds" if inside else "does not hold"


def _growth(sweep: pd.DataFrame) -> tuple[str, str, str]:
    curve = _sweep(sweep, "uncertainty", "test")
    grows = curve.is_monotonic_increasing
    text = f"{curve.iloc[0]:.2g} at T' = {curve.index[0]}, {curve.iloc[-1]:.2g} at T' = {curve.index[-1]}"
    return "C5 uncertainty grows with T'", text, "holds" if grows else "does not hold"


def _settling(drawn: pd.DataFrame) -> tuple[str, str, str]:
    means = drawn.groupby(["ensemble_size", "seed"]).value.mean().groupby("ensemble_size").agg(["mean", "std"])
    first, last = means.iloc[0], means.iloc[-1]
    text = f"Dice {first['mean']:.3f} -> {last['mean']:.3f}, deviation {first['std']:.4f} -> {last['std']:.4f}"
    holds = last["mean"] > first["mean"] and last["std"] < first["std"]
    return "C6 larger ensembles: higher Dice, smaller spread", text, "holds" if holds else "does not hold"


def _worst(presegs: pd.DataFrame) -> str:
    """The diffusion from the least accurate of the trained pre-segmentations."""
    names = [name for name in presegs.method.unique() if name.startswith("pd_ddpm from step")]
    return min(names, key=lambda name: _dice(presegs, name.removeprefix("pd_ddpm from ")).mean())


if __name__ == "__main__":
    update(Path(sys.argv[1]), layout("cpu"))
