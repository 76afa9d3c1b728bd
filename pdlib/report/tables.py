"""Score rows in, the paper's tables out: means with intervals, paired differences with adjusted p."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pdlib.evaluation.stats import holm, mean_interval, paired_comparison
from pdlib.methods import METHODS

NAMES = {
    **{name: method.title for name, method in METHODS.items()},
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "HD95",
    "hd95_mm": "HD95 (mm)",
    "hd95_voxel": "HD95 (voxels)",
    "f1": "F1",
    "lesion_recall": "Lesion recall",
    "lesion_precision": "Lesion precision",
    "lesion_f1": "Lesion F1",
    "avd_percent": "AVD (%)",
    "uncertainty": "Uncertainty (variance)",
    "entropy": "Entropy (nat)",
    "energy_distance": "Energy distance to the raters",
    "energy_distance_difference": "Δ energy distance",
    "energy_distance_holm": "p (Holm)",
    "rater_dice": "Dice with a rater",
    "risk_area": "Area under the risk",
    "calibration_error": "Calibration error",
    "method": "Method",
    "preseg": "Pre-segmentation",
    "preseg_dice": "Pre-segmentation Dice",
    "dice_difference": "Δ Dice",
    "dice_holm": "p (Holm)",
    "dice_disc": "Dice, disc",
    "dice_disc_difference": "Δ Dice, disc",
    "dice_disc_holm": "p (Holm)",
    "dice_cup": "Dice, cup",
    "nfe": "Calls",
    "seconds": "Seconds",
    "train_loss": "Training loss",
    "reconstruction_loss": "Reconstruction loss",
    "kl_loss": "KL loss",
    "g_loss": "Generator loss",
    "d_loss": "Discriminator loss",
    "vlb_loss": "Variational bound",
    "number": "Claim",
    "claim": "What is claimed",
    "estimate": "Difference",
    "corrected_p": "p (Holm)",
    "verdict": "Verdict",
    "shown": "Shown in",
    "system": "System",
    "setting": "Setting",
    "milliseconds": "Milliseconds",
    "faster": "Times as fast",
    "error": "Error",
    "share_of_matmul": "Of the bfloat16 matmul rate",
}
FORMATS = {
    "n": "g",
    "nfe": ".10g",
    "seconds": ".1f",
    "uncertainty": ".1e",
    "energy_distance_difference": "+.3f",
    "energy_distance_holm": ".2g",
    "risk_area": ".1e",
    "calibration_error": ".4f",
    "dice_difference": "+.3f",
    "dice_holm": ".2g",
    "dice_disc_difference": "+.3f",
    "dice_disc_holm": ".2g",
    "estimate": "+.3g",
    "corrected_p": ".2g",
    "milliseconds": ".3g",
    "faster": ".2f",
    "error": ".1e",
    "share_of_matmul": ".0%",
}  # else .3f
PARTS = ("_low", "_high", "_undefined", "_difference", "_p", "_holm")  # of a score, in columns beside its own


def display_name(key: str) -> str:
    """What a reader is shown for a method, a metric or a column; the key itself where it has no other name."""
    return NAMES.get(key, str(key))


def subject_values(rows: pd.DataFrame) -> pd.Series:
    """One value a subject, the mean over seeds; NaN if any of them is."""
    return rows.groupby("subject").value.agg(lambda values: values.mean(skipna=False)).astype(float)


def table1(
    scores: pd.DataFrame,
    *,
    methods: Sequence[str],
    baseline: str,
    metrics: Sequence[str],
    interval: Mapping[str, float],
) -> pd.DataFrame:
    """Table 1: a row for each method, each score as mean, interval and paired difference to the baseline's.

    scores: rows of `records.COLUMNS`, of one split. Columns: method, n, nfe and seconds where the scores have them, and
    for each metric M: M, M_low, M_high, M_undefined (subjects without a value), M_difference (method - baseline) with
    _low, _high, _undefined, M_p (Wilcoxon) and M_holm (adjusted over the table's rows). A subject that a method lacks
    counts as undefined.
    ValueError: scores of several splits, of no subject of a method, or of a method under several settings; a row that
    chooses its own T' may have another in each fold.
    """
    subjects = _subjects(scores)
    base = _method_rows(scores, baseline)
    rows = []
    for method in methods:
        mine = _method_rows(scores, method)
        row = {"method": method, "n": len(subjects)}
        if mine.nfe.notna().any():
            row |= {"nfe": round(mine.nfe.mean(), 1), "seconds": mine.seconds.mean()}
        rows.append(row | _scored(mine, None if method == baseline else base, subjects, metrics, interval))
    return _adjusted(pd.DataFrame(rows), metrics)


def table2(
    scores: pd.DataFrame, *, levels: Mapping[str, str], metrics: Sequence[str], interval: Mapping[str, float]
) -> pd.DataFrame:
    """Table 2: a row for each quality of pre-segmentation, from its own Dice to what the diffusion makes of it.

    levels: method name of the pre-segmentation -> method name of the diffusion started from it. Columns as in `table1`,
    after preseg and preseg_dice (_low, _high, _undefined); a row's difference is to its own pre-segmentation.
    """
    subjects = _subjects(scores)
    rows = []
    for preseg, method in levels.items():
        start, mine = _method_rows(scores, preseg), _method_rows(scores, method)
        row = {"preseg": preseg, "n": len(subjects), "nfe": round(mine.nfe.mean(), 1), "seconds": mine.seconds.mean()}
        before = _scored(start, None, subjects, ["dice"], interval)
        row |= {f"preseg_{column}": value for column, value in before.items()}
        rows.append(row | _scored(mine, start, subjects, metrics, interval))
    return _adjusted(pd.DataFrame(rows), metrics)


def site_table(scores: pd.DataFrame, *, methods: Sequence[str]) -> pd.DataFrame:
    """Mean Dice of the methods (rows) by site (columns, with their number of subjects); NaN where a subject has none.

    scores: rows of `records.COLUMNS`, of one split. ValueError: scores of several splits.
    """
    _subjects(scores)
    rows = scores[scores.metric == "dice"]
    counts = rows.groupby("site").subject.nunique()
    means = rows.groupby(["method", "site"]).value.agg(lambda values: values.mean(skipna=False)).unstack("site")
    named = means.loc[list(methods)].rename(columns={site: f"{site} (n = {count})" for site, count in counts.items()})
    return named.reset_index().rename_axis(columns=None)


def speed_table(steps: pd.DataFrame) -> pd.DataFrame:
    """What one slice costs in one step of the chain, quickest first: rows of `benchmarks/step.py`.

    Columns: system, setting, milliseconds with its quartiles, faster (than the quickest setting of the reference mode)
    and error; a candidate whose answer was wrong has no time.
    """
    base = steps.loc[steps.system == "reference", "median_s"].min()
    table = steps[["system", "setting"]].assign(milliseconds=1e3 * steps.median_s)
    table["milliseconds_low"], table["milliseconds_high"] = 1e3 * steps.low_s, 1e3 * steps.high_s
    table = table.assign(faster=base / steps.median_s, error=steps.error, share_of_matmul=steps.share_of_matmul)
    return table.sort_values("milliseconds", ignore_index=True)


def paper_table(paper: pd.DataFrame, table: str) -> pd.DataFrame:
    """What the paper prints, in a table of its own: "1" or "2". paper: columns table, row, metric, value."""
    rows = paper[paper.table.astype(str) == table]
    wide = rows.pivot(index="row", columns="metric", values="value").loc[rows.row.unique(), rows.metric.unique()]
    return wide.rename_axis(index={"1": "method", "2": "preseg_dice"}[table], columns=None).reset_index()


def table_markdown(frame: pd.DataFrame, caption: str) -> str:
    """A table of this module as Markdown: scores as mean [low, high], the first compared with difference and Holm's p.

    The other scores' differences have no room beside it: they are in the CSV.
    """
    parts = {f"{column}{part}" for column in frame for part in PARTS}
    columns = [column for column in frame if column not in parts]
    for score in [column for column in columns if f"{column}_difference" in frame][:1]:
        after = columns.index(score) + 1
        columns[after:after] = [f"{score}_difference", f"{score}_holm"]
    lines = [" | ".join(display_name(column) for column in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row, column) for column in columns) for row in frame.to_dict("records")]
    return "\n".join([caption, "", *(f"| {line} |" for line in lines), ""])


def save_table(frame: pd.DataFrame, caption: str, path_stem: str | os.PathLike) -> None:
    """Write a table to path_stem.csv (six significant digits) and, as it is read, to path_stem.md."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(stem.with_suffix(".csv"), index=False, float_format="%.6g", lineterminator="\n")
    stem.with_suffix(".md").write_text(table_markdown(frame, caption), encoding="utf-8")


def _cell(row: Mapping, column: str) -> str:
    value = row[column]
    if not isinstance(value, float | int):
        return display_name(value)
    if pd.isna(value):
        return "–"
    form = FORMATS.get(column, ".3f")
    text = format(value, form)
    if f"{column}_low" in row:
        text += f" [{row[f'{column}_low']:{form}}, {row[f'{column}_high']:{form}}]".replace("nan", "–")
    if row.get(f"{column}_undefined"):
        text += f", {row[f'{column}_undefined']:.0f} undefined"
    return text


def _subjects(scores: pd.DataFrame) -> pd.Index:
    if scores.split.nunique() > 1:
        raise ValueError(f"a table of one split, not of {', '.join(map(str, scores.split.unique()))}")
    return pd.Index(sorted(scores.subject.unique()))


def _method_rows(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    rows = scores[scores.method == method]
    if rows.empty:
        raise ValueError(f"{method}: no scores (there are {', '.join(map(str, scores.method.unique()))})")
    by_fold = method in METHODS and METHODS[method].own_t_prime
    for part in [part for _, part in rows.groupby("fold")] if by_fold else [rows]:
        settings = part[["t_prime", "ensemble_size"]].drop_duplicates()
        if len(settings) > 1:
            raise ValueError(f"{method}: scores of several settings, {settings.to_dict('records')}")
    return rows


def _scored(
    rows: pd.DataFrame,
    base: pd.DataFrame | None,
    subjects: pd.Index,
    metrics: Sequence[str],
    interval: Mapping[str, float],
) -> dict[str, float]:
    cells = {}
    for metric in metrics:
        values = subject_values(rows[rows.metric == metric]).reindex(subjects)
        mean = mean_interval(values, **interval)
        cells |= {metric: mean["mean"], f"{metric}_low": mean["low"], f"{metric}_high": mean["high"]}
        cells[f"{metric}_undefined"] = mean["n_undefined"]
        if base is None:
            continue
        pair = paired_comparison(values, subject_values(base[base.metric == metric]).reindex(subjects), **interval)
        cells |= {
            f"{metric}_difference": pair["mean_difference"],
            f"{metric}_difference_low": pair["low"],
            f"{metric}_difference_high": pair["high"],
            f"{metric}_difference_undefined": pair["n_undefined"],
            f"{metric}_p": pair["p_value"],
        }
    return cells


def _adjusted(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    columns = {f"{m}_holm": holm(frame[f"{m}_p"]) for m in metrics if f"{m}_p" in frame}
    return frame.assign(**columns)
