"""What the networks for a person's own scan are worth: the tables of docs/scan.md, from results/scan/."""

import pandas as pd

from pdlib.evaluation import records
from pdlib.paths import Layout
from pdlib.report import tables
from pdlib.report.titles import display_name

THRESHOLD, START = "flair_threshold", "pre_segmentation"  # methods of the tables, beside PD-DDPM
TITLES = {THRESHOLD: "Best threshold on FLAIR", START: "Its start"}
SCORES = ("dice", "lesion_f1", "lesion_recall", "lesion_precision", "avd_percent")
CITED = "Lesjak et al. 2018, CC BY"  # of the patients in the pictures
HEADS, LABELLED = "heads.csv", "labelled.csv"  # of results/


def parts(place: Layout) -> dict[str, str]:
    """The computed parts of docs/scan.md by their names; a sentence in place of each that nobody has measured."""
    made = {"heads": (HEADS, heads), "patients": (LABELLED, patients), "pictures": (LABELLED, pictures)}
    return {
        name: part(place) if (place.results / table).exists() else "Not measured yet."
        for name, (table, part) in made.items()
    }


def heads(place: Layout) -> str:
    """Painted heads that no network has seen: means of each method over them."""
    rows = records.read_table(place.results / HEADS).query("split == 'test'")
    wide = rows[rows.metric.isin(SCORES)].pivot_table(index="method", columns="metric", values="value", sort=False)
    known = [name for name in SCORES if name in wide]
    said = f"{rows.subject.nunique()} painted heads of anatomies that nothing was trained or chosen on (phantom): means"
    return _table(wide[known].reset_index().sort_values("dice"), said)


def patients(place: Layout) -> str:
    """Labelled scans, one by one, with what `segment` said of itself, where it could, and what it took."""
    rows = records.read_table(place.results / LABELLED)
    said = (
        "Each patient: the mask that `segment` wrote, beside the best threshold and the chain's own start. Predicted "
        "Dice is the quality score of report.json; seconds and memory are the whole command's"
    )
    wanted = ["subject", "method", "lesion_ml", "reference_ml", *SCORES, "predicted_dice", "seconds", "peak_memory_mb"]
    return _table(rows[wanted].dropna(axis="columns", how="all"), said)


def pictures(place: Layout) -> str:
    """The picture of each labelled scan, and below it whose it is."""
    shown = records.read_table(place.results / LABELLED).subject.unique()
    told = ((_said(subject), f"../figures/{place.profile}/{picture_name(subject)}") for subject in shown)
    return "\n\n".join(f"![{said}]({path})\n\n{said}" for said, path in told)


def picture_name(subject: str) -> str:
    """The file of a labelled scan's picture, in figures/."""
    return f"labelled_{subject.replace('/', '_')}.png"


def _said(subject: str) -> str:
    return f"{subject}: FLAIR, mask beside the expert's, members' variance ({CITED})"


def _table(rows: pd.DataFrame, caption: str) -> str:
    named = rows.assign(method=rows.method.map(lambda name: TITLES.get(name) or display_name(name)))
    return tables.table_markdown(named.rename(columns={"method": "Mask"}), caption).strip()
