"""Score tables in, curves and points out. Pictures show the numbers of `results/`, they compute none anew.

Every figure takes a `note` that is printed in its corner, such as "phantom": no picture may pass for another's data.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import MatplotlibDeprecationWarning
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from pdlib.methods import CHAIN
from pdlib.report.differences import BARS, forest, paired_mean, reach
from pdlib.report.printed import mark_printed
from pdlib.report.style import (
    DOUBLE,
    SINGLE,
    PaperFigure,
    calls_axis,
    method_colour,
    paper_style,
)
from pdlib.report.titles import Row, display_name, row_title
from pdlib.report.values import select, subject_values, tested_values


@paper_style
def data_figure(calibration: pd.DataFrame) -> PaperFigure:
    """The phantom beside real lesions: every quantity as a ratio to its target, and both values in print.

    calibration: columns quantity, phantom, target, unit. A target is a number, a range "low-high" (drawn as a bar about
    its geometric middle) or words (printed only). Raises ValueError if there is no row.
    """
    if calibration.empty:
        raise ValueError("data_figure: no quantities")
    figure = PaperFigure(figsize=(DOUBLE, 0.7 + 0.19 * len(calibration)))
    ax = figure.add_subplot()
    for y, row in enumerate(calibration.itertuples()):
        ours, (low, high) = pd.to_numeric(row.phantom, errors="coerce"), _target_range(row.target)
        middle = np.sqrt(low * high)
        ax.plot([low / middle, high / middle], [y, y], color="0.75", linewidth=5, solid_capstyle="butt")
        ax.plot(ours / middle, y, "o", color="C0")
        _beside(ax, y, row.phantom if np.isnan(ours) else f"{ours:.3g}", row.target, row.unit if middle > 0 else "")
    _beside(ax, -1, "phantom", "target", weight="bold")
    ax.axvline(1, color="0.5", linewidth=0.6, zorder=0)
    ax.set_xscale("log")
    reach = max(2.0, *(np.exp(abs(np.log(line.get_xdata()[0]))) for line in ax.lines[1::2] if line.get_xdata()[0] > 0))
    ax.set_xlim(1 / (1.1 * reach), 1.1 * reach)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / reach <= t * 1.01 and t <= reach * 1.01]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(calibration)), calibration.quantity)
    ax.set_ylim(len(calibration) - 0.4, -1.4)
    ax.set_xlabel("phantom / target (grey: the target's range)")
    return figure


@paper_style
def training_figure(history: pd.DataFrame, *, steps: int | None = None, min_gain: float = 0.0) -> PaperFigure:
    """A training's curves, a panel for each metric, with its best validation and, if it ended early, where.

    history: step, metric, value. steps: updates that it might have taken; min_gain: what made a validation the best
    (see `training.fit.Fit`).
    """
    metrics = list(history.metric.unique())
    if not metrics:
        raise ValueError("training_figure: no history")
    figure = PaperFigure(figsize=(min(SINGLE * len(metrics), DOUBLE), 2.2))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        curve = history[history.metric == metric].sort_values("step")
        ax.plot(curve.step, curve.value, color="C0")
        if "loss" not in metric and curve.value.notna().any():
            best = curve.loc[_kept(curve.value, min_gain)]
            ax.plot(best.step, best.value, "o", color="C1", label=f"best {best.value:.3f} at {best.step:g}")
            if steps is not None and curve.step.max() < steps:
                label = f"ended at {curve.step.max():g} of {steps}"
                ax.axvline(curve.step.max(), color="0.5", linestyle=":", linewidth=0.8, label=label)
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1))  # above the panel: no curve runs there
        elif 0 < 10 * curve.value.min() < curve.value.max():
            ax.set_yscale("log")
        ax.set(xlabel="Update", ylabel=display_name(metric))
        ax.xaxis.set_major_locator(MaxNLocator(5 if len(metrics) < 4 else 2))
    return figure


def _kept(scores: pd.Series, min_gain: float) -> object:
    """The label of the last score that was higher than the best before it by more than min_gain."""
    scores = scores.dropna()
    kept = scores.index[0]
    for label, score in scores.items():
        kept = label if score > scores[kept] + min_gain else kept
    return kept


@paper_style
def scores_figure(
    scores: pd.DataFrame, *, methods: Sequence[str], interval: Mapping[str, float], paper: Mapping[str, float]
) -> PaperFigure:
    """Where the means of Table 1 come from: a dot for each subject, and the quartiles, of each method; and beside it
    the paired difference to PD-DDPM with its interval over trainings and subjects.

    scores: rows of `records.COLUMNS`, of one split; methods: keys of `methods.METHODS`, from the top down, PD-DDPM
    among them; paper: Dice as the paper prints it (`printed.printed_dice`), a hollow diamond. Whiskers reach the
    outermost subject. ValueError: a method without scores.
    """
    rows = scores[scores.metric == "dice"]
    parts = {method: select(rows, {"method": method}) for method in methods}
    values = {method: subject_values(part) for method, part in parts.items()}
    long = pd.DataFrame(values).melt(var_name="method", value_name="score").dropna()
    figure = PaperFigure(figsize=(DOUBLE, 0.6 + 0.22 * len(methods)))
    ax, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    common = {"data": long, "x": "score", "y": "method", "hue": "method", "order": methods, "ax": ax, "legend": False}
    common |= {"hue_order": methods, "palette": {method: method_colour(method) for method in methods}}
    with warnings.catch_warnings():  # seaborn 0.13 says vert=, which matplotlib 3.11 deprecates
        warnings.simplefilter("ignore", MatplotlibDeprecationWarning)
        sns.boxplot(**common, whis=(0, 100), width=0.6, fill=False, linewidth=0.8)
    sns.stripplot(**common, size=3, alpha=0.55, jitter=False)
    known = [method for method in methods if method in paper]
    mark_printed(ax, [paper[method] for method in known], [methods.index(method) for method in known])
    if known:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower right")
    forest(right, parts, CHAIN, "dice", interval, methods)
    ax.set_yticks(range(len(methods)), [display_name(method) for method in methods])
    right.tick_params(left=False, labelleft=False)
    counts = " or ".join(str(n) for n in sorted({len(one) for one in values.values()}))
    n_undefined = int(sum(one.isna().sum() for one in values.values()))
    undefined = f", {n_undefined} undefined" if n_undefined else ""
    ax.set(xlabel=f"Dice of a subject (n = {counts}{undefined})", ylabel="")
    return figure


@paper_style
def calls_figure(
    scores: pd.DataFrame, *, rows: Sequence[Row], metrics: Sequence[str], interval: Mapping[str, float]
) -> PaperFigure:
    """Scores against network calls, a column for each metric: the means above, on the subjects of all rows, below them
    the paired differences to the first row with their intervals over trainings and subjects.

    scores: rows of `records.COLUMNS`, of one split; rows as in `tables.table1`. A method has its colour, its second row
    another marker. Of rows with as many calls each stands a little to the right of the one before, so that they do not
    cover each other.
    """
    figure = PaperFigure(figsize=(DOUBLE, 4.2))
    grid = figure.subplots(2, len(metrics), squeeze=False, sharex=True)
    tested = [{*select(scores, row).subject} for row in rows]
    shared = set.intersection(*tested)
    whose = "" if all(one == shared for one in tested) else f"\n({len(shared)} subjects of all rows)"
    for metric, (above, below) in zip(metrics, grid.T, strict=True):
        drawn, methods = [], []
        for row in rows:
            mine = select(scores, row)
            calls, method = float(mine.nfe.mean()), row["method"]
            style = {"fmt": "osD^v"[methods.count(method) % 5], "color": method_colour(method), **BARS}
            x = calls * 1.03 ** drawn.count(calls)
            mean = tested_values(mine[mine.subject.isin(shared)], metric).mean()
            above.plot(x, mean, style["fmt"], color=style["color"], label=row_title(row))
            if drawn:
                point = pd.DataFrame([paired_mean(mine, select(scores, rows[0]), metric, interval)])
                below.errorbar(x, point["mean"], reach(point), **style)
            drawn.append(calls)
            methods.append(method)
        below.axhline(0, color=method_colour(rows[0]["method"]), linewidth=0.6, zorder=0)
        above.set(ylabel=display_name(metric) + whose)
        below.set(ylabel=f"Δ {display_name(metric)}\nto {display_name(rows[0]['method'])}")
        calls_axis(below, scores.nfe)
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@paper_style
def variance_figure(variances: pd.DataFrame) -> PaperFigure:
    """The variance of a step that a network learns, between its two bounds, against paper time t (the index).

    Columns: posterior and fixed-large (the bounds), in lesions, outside.
    """
    figure = PaperFigure(figsize=(SINGLE, 2.6))
    ax = figure.subplots()
    bounds = ("posterior", "fixed-large")
    for name, curve in variances.items():
        style = {"color": "0.6", "linestyle": "--" if name == bounds[0] else "-"} if name in bounds else {"marker": "o"}
        ax.plot(curve.index, curve, label=name, **style)
    ax.set(xlabel="$t$", ylabel="Variance of a step", yscale="log")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@paper_style
def speed_figure(steps: pd.DataFrame, ops: pd.DataFrame) -> PaperFigure:
    """Milliseconds a slice and step of each system and setting, with quartiles; and how fast each op is beside its
    reference. Rows of `benchmarks/step.py` and `benchmarks/ops.py`; what gave a wrong answer is not shown."""
    key = ["op", "shape", "dtype"]
    base = ops[ops.candidate == "reference"].set_index(key).median_s.rename("base")
    beside = ops[ops.candidate != "reference"].join(base, on=key).dropna(subset="median_s")
    figure = PaperFigure(figsize=(DOUBLE, 0.8 + 0.17 * max(len(steps), len(base))))
    left, right = figure.subplots(1, 2)
    steps = steps.dropna(subset="median_s").sort_values("median_s", ascending=False)
    spread = 1e3 * np.stack([steps.median_s - steps.low_s, steps.high_s - steps.median_s])
    names = steps.system + ": " + steps.setting
    colours = np.where(steps.system == "pdlib", "C0", "0.75")  # the legend's other colours are of the right panel
    left.barh(names, 1e3 * steps.median_s, xerr=spread, color=colours, error_kw={"lw": 0.6})
    left.set_xlabel("milliseconds a slice and step")
    for name in sorted(beside.candidate.unique(), key=lambda name: name != "pdlib"):
        mine = beside[beside.candidate == name]
        cases = mine.op + " " + mine["shape"] + " " + mine.dtype
        right.plot(mine.base / mine.median_s, cases, "o", ms=4 if name == "pdlib" else 2.5, label=name)
    right.axvline(1, color="0.3", lw=0.6)
    right.invert_yaxis()
    right.set(xscale="log", xlabel="times the reference's speed")
    right.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower right", ncols=6)  # beside the panels: no line runs there
    for ax in (left, right):
        ax.tick_params(axis="y", labelsize=5)
    return figure


def _beside(ax: Axes, y: float, ours: str, target: object, unit: str = "", weight: str = "normal") -> None:
    for text, points in ((ours, 6), (f"{target} {unit}".strip(), 50)):
        place = {"xy": (1, y), "xycoords": ("axes fraction", "data"), "xytext": (points, 0)}
        ax.annotate(text, textcoords="offset points", va="center", fontsize=7, weight=weight, **place)


def _target_range(target: object) -> tuple[float, float]:
    """A number -> (it, it); "low-high" -> (low, high); words -> (NaN, NaN)."""
    ends = [pd.to_numeric(part, errors="coerce") for part in str(target).replace("–", "-").split("-")]
    return (float(ends[0]), float(ends[-1])) if len(ends) <= 2 else (np.nan, np.nan)
