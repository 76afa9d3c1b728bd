"""Score rows in, the paper's tables out: means with intervals, paired differences with adjusted p.

Rows may be tested on different numbers of subjects: a mean is over a row's own, a difference over those of both rows.

A row of a table is a dict that names the columns of ROW_KEY it stands for, {"method": "pd_ddpm", "calls": 10}: its
scores are those that hold these values, and its title is made of them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pdlib.evaluation.stats import holm, mean_interval, paired_comparison
from pdlib.methods import CHAIN, METHODS
from pdlib.paths import write_whole
from pdlib.report.titles import ROW_KEY, Row, display_name, row_key, row_title, start_title
from pdlib.report.values import paired_values, select, tested_values, trainings

FORMATS = {
    "n": "g",
    "step": "g",
    "nfe": ".10g",
    "seconds": ".1f",
    "uncertainty": ".1e",
    "energy_distance_difference": "+.3f",
    "energy_distance_holm": ".2g",
    "risk_area": ".1e",
    "calibration_error": ".4f",
    "dice_difference": "+.3f",
    "dice_difference_median": "+.3f",
    "dice_difference_missed": "+.3f",
    "dice_difference_rest": "+.3f",
    "dice_holm": ".2g",
    "dice_disc_difference": "+.3f",
    "dice_disc_holm": ".2g",
    "estimate": "+.3g",
    "corrected_p": ".2g",
    "gain_p": ".2g",
    "decides_at": ".0f",
    "milliseconds": ".3g",
    "faster": ".2f",
    "error": ".1e",
    "share_of_matmul": ".0%",
    "peak_memory_mb": ".0f",
}  # else .3f
PARTS = ("_low", "_high", "_undefined", "_difference", "_p", "_holm", "_n", "_median", "_missed", "_rest")  # of a score


def table1(
    scores: pd.DataFrame,
    *,
    rows: Sequence[Row],
    baseline: Row,
    metrics: Sequence[str],
    interval: Mapping[str, float],
    missed: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Table 1: a line for each row, each score as mean, interval and paired difference to the baseline's.

    scores: rows of `records.COLUMNS`, of one split. Columns: those that the rows name, n (subjects), nfe and seconds
    where the scores have them, and for each metric M: M, M_low, M_high, M_undefined (subjects without a value),
    M_difference (row - baseline, mean over the subjects tested by both) with _n (of these), _median, _low, _high and
    _undefined, M_p (Wilcoxon) and M_holm (adjusted over the table's rows). With missed, subjects whose start finds none
    of their lesions (`values.missed_starts`), M_difference also with _missed and _rest, the mean over these and over
    the others, each with its _n. Intervals are over trainings and subjects.
    ValueError: scores of several splits, of no subject of a row, or of a row under several settings; a method that
    chooses its own T' may have another in each fold.
    """
    _require_one_split(scores)
    base = _row_scores(scores, baseline)
    found = []
    for row in rows:
        mine = _row_scores(scores, row)
        line = _named(row, rows) | {"n": mine.subject.nunique()}
        if mine.nfe.notna().any():
            line |= {"nfe": round(mine.nfe.mean(), 1), "seconds": mine.seconds.mean()}
        same = row_key(row) == row_key(baseline)
        found.append(line | _scored(mine, None if same else base, metrics, interval, missed))
    return _adjusted(pd.DataFrame(found), metrics)


def table2(
    scores: pd.DataFrame,
    *,
    starts: Sequence[str],
    presegmenter: str,
    metrics: Sequence[str],
    interval: Mapping[str, float],
) -> pd.DataFrame:
    """Table 2: a line for each quality of pre-segmentation, from its own Dice to what the diffusion makes of it.

    starts: values of the column `start` (`methods.preseg_starts`); scores of each are those of the method
    `presegmenter`, the pre-segmentation by itself, and of PD-DDPM from it. Columns as in `table1`, after start and
    preseg_dice (_low, _high, _undefined); a row's difference is to its own pre-segmentation.
    """
    _require_one_split(scores)
    rows = []
    for start in starts:
        before, mine = (_row_scores(scores, {"method": name, "start": start}) for name in (presegmenter, CHAIN))
        row = {
            "start": start,
            "n": mine.subject.nunique(),
            "nfe": round(mine.nfe.mean(), 1),
            "seconds": mine.seconds.mean(),
        }
        own = _scored(before, None, ["dice"], interval)
        row |= {f"preseg_{column}": value for column, value in own.items()}
        rows.append(row | _scored(mine, before, metrics, interval))
    return _adjusted(pd.DataFrame(rows), metrics)


def site_table(scores: pd.DataFrame, *, rows: Sequence[Row]) -> pd.DataFrame:
    """Mean Dice of the rows by site (columns, with the rows' numbers of subjects); NaN where a subject has none.

    scores: rows of `records.COLUMNS`, of one split. ValueError: scores of several splits.
    """
    _require_one_split(scores)
    parts = [select(scores[scores.metric == "dice"], row).groupby("site") for row in rows]
    counts = pd.DataFrame([part.subject.nunique() for part in parts])
    tested = {site: " or ".join(map(str, sorted({*n.dropna().astype(int)}))) for site, n in counts.items()}
    titles = {site: f"{site} (n = {n})" for site, n in tested.items()}
    found = []
    for row, part in zip(rows, parts, strict=True):
        means = part.value.agg(lambda values: values.mean(skipna=False))
        found.append(_named(row, rows) | {title: means.get(site) for site, title in titles.items()})
    return pd.DataFrame(found)


def front_table(scores: pd.DataFrame, *, metrics: Sequence[str]) -> pd.DataFrame:
    """Every row in the scores, by rising number of calls: the columns of ROW_KEY, nfe, the mean of each metric, front.

    scores: rows of `records.COLUMNS`, of one split. front: no other row has both fewer calls and a higher mean Dice.
    """
    found = []
    for key, rows in scores.groupby(list(ROW_KEY), sort=False, dropna=False):
        means = rows.groupby("metric").value.mean()
        line = dict(zip(ROW_KEY, key, strict=True)) | {"nfe": float(rows.nfe.mean())}
        found.append(line | {metric: means.get(metric) for metric in metrics})
    ranked = pd.DataFrame(found).sort_values(["nfe", "dice"], ascending=[True, False], ignore_index=True)
    return ranked.assign(front=ranked.dice > ranked.dice.cummax().shift(fill_value=-1))


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
    """A table of this module as Markdown: scores as mean [low, high], the first compared with difference and Holm's p,
    and, where starts miss all lesions of some subjects, with the median and the means over these and over the others.

    The other scores' differences have no room beside it: they are in the CSV. The columns that tell rows apart become
    one, the row's title, to which a column `remark` adds what it holds.
    """
    if "method" in frame:
        titles = [row_title(row) for row in frame.to_dict("records")]
        if "remark" in frame:
            said = frame["remark"].fillna("")
            titles = [f"{title} ({remark})" if remark else title for title, remark in zip(titles, said, strict=True)]
        frame = frame.drop(columns=[column for column in (*ROW_KEY, "remark") if column in frame])
        frame.insert(0, "method", titles)
    parts = {f"{column}{part}" for column in frame for part in PARTS}
    columns = [column for column in frame if column not in parts and "_difference_" not in column]
    for score in [column for column in columns if f"{column}_difference" in frame][:1]:
        after = columns.index(score) + 1
        columns[after:after] = [f"{score}_difference", f"{score}_holm"]
        if frame.get(f"{score}_difference_missed_n", pd.Series(0)).max() > 0:
            columns[after + 2 : after + 2] = [f"{score}_difference_{part}" for part in ("median", "missed", "rest")]
    lines = [" | ".join(display_name(column) for column in columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row, column) for column in columns) for row in frame.to_dict("records")]
    return "\n".join([caption, "", *(f"| {line} |" for line in lines), ""])


def save_table(frame: pd.DataFrame, caption: str, path_stem: str | os.PathLike) -> None:
    """Write a table to path_stem.csv (six significant digits) and, as it is read, to path_stem.md."""
    stem = Path(path_stem)
    write_whole(stem.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_whole(stem.with_suffix(".md"), table_markdown(frame, caption))


def _cell(row: Mapping, column: str) -> str:
    value = row[column]
    if isinstance(value, str):
        return start_title(value) if column == "start" else display_name(value)
    if pd.isna(value):
        return "–"
    if column == "decides_at" and math.isinf(value):
        return "effect too small"
    if column == "decides_at" and value <= row["n"]:
        return "no more than these"
    form = FORMATS.get(column, ".3f")
    text = format(value, form)
    if f"{column}_low" in row:
        text += f" [{row[f'{column}_low']:{form}}, {row[f'{column}_high']:{form}}]".replace("nan", "–")
    if (n := row.get(f"{column}_n")) is not None and n != row.get("n"):
        text += f" (n = {n:.0f})"
    if row.get(f"{column}_undefined"):
        text += f", {row[f'{column}_undefined']:.0f} undefined"
    return text


def _require_one_split(scores: pd.DataFrame) -> None:
    if scores.split.nunique() > 1:
        raise ValueError(f"a table of one split, not of {', '.join(map(str, scores.split.unique()))}")


def _named(row: Row, rows: Sequence[Row]) -> dict:
    """The row's columns beside those that other rows of its table name."""
    return {column: row.get(column) for column in ROW_KEY if any(column in other for other in rows)}


def _row_scores(scores: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The scores of a row, which have to be of one setting each."""
    rows = select(scores, row)
    method = METHODS.get(row.get("method"))
    for part in [part for _, part in rows.groupby("fold")] if method and method.own_t_prime else [rows]:
        settings = part[[*ROW_KEY, "ensemble_size"]].drop_duplicates()
        if len(settings) > 1:
            differ = settings.loc[:, settings.nunique(dropna=False) > 1]
            raise ValueError(f"{row_title(row)}: scores of several settings, {differ.to_dict('records')}")
    return rows


def _scored(
    rows: pd.DataFrame,
    base: pd.DataFrame | None,
    metrics: Sequence[str],
    interval: Mapping[str, float],
    missed: Sequence[str] | None = None,
) -> dict[str, float]:
    cells, trained = {}, trainings(rows)
    for metric in metrics:
        values = tested_values(rows, metric)
        mean = mean_interval(values, **interval, groups=trained[values.index])
        cells |= {metric: mean["mean"], f"{metric}_low": mean["low"], f"{metric}_high": mean["high"]}
        cells[f"{metric}_undefined"] = mean["n_undefined"]
        if base is not None:
            cells |= _compared(paired_values(rows, base, metric), metric, interval, missed)
    return cells


def _compared(
    pairs: pd.DataFrame, metric: str, interval: Mapping[str, float], missed: Sequence[str] | None
) -> dict[str, float]:
    """The columns of a paired difference. pairs: columns ours, theirs, training, one row a subject."""
    pair = paired_comparison(pairs.ours, pairs.theirs, **interval, groups=pairs.training)
    name = f"{metric}_difference"
    cells = {name: pair["mean_difference"], f"{name}_n": len(pairs), f"{name}_median": pair["median_difference"]}
    cells |= {f"{name}_low": pair["low"], f"{name}_high": pair["high"], f"{name}_undefined": pair["n_undefined"]}
    if missed is not None:
        known = pairs.ours.sub(pairs.theirs).dropna()
        for part, values in known.groupby(np.where(known.index.isin(missed), "missed", "rest")):
            cells |= {f"{name}_{part}": values.mean(), f"{name}_{part}_n": len(values)}
        cells = {f"{name}_{part}_n": 0 for part in ("missed", "rest")} | cells
    return cells | {f"{metric}_p": pair["p_value"]}


def _adjusted(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    columns = {f"{m}_holm": holm(frame[f"{m}_p"]) for m in metrics if f"{m}_p" in frame}
    return frame.assign(**columns)
