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

from pdlib.evaluation.stats import mean_interval
from pdlib.report.style import (
    DOUBLE,
    SINGLE,
    SPLIT_COLOURS,
    PaperFigure,
    calls_axis,
    method_colour,
    paper_style,
    scaled_axis,
)
from pdlib.report.titles import Row, display_name, row_title
from pdlib.report.values import select, subject_values


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
        ax.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _kept(scores: pd.Series, min_gain: float) -> object:
    """The label of the last score that was higher than the best before it by more than min_gain."""
    scores = scores.dropna()
    kept = scores.index[0]
    for label, score in scores.items():
        kept = label if score > scores[kept] + min_gain else kept
    return kept


@paper_style
def t_prime_figure(
    scores: pd.DataFrame, *, method: str, preseg: str, steps: int, chosen: Sequence[int], interval: Mapping[str, float]
) -> PaperFigure:
    """Fig. 3: Dice and uncertainty of `method` against T', mean over subjects with its bootstrap interval.

    scores: rows of `records.COLUMNS`, one curve for each split in it. The Dice of the pre-segmentation `preseg` is a
    dashed line for each split. steps is T; chosen holds the T' taken on the validation subjects, of each fold; interval
    the arguments of `mean_interval`.
    """
    for metric in ("dice", "uncertainty"):
        if not ((scores.method == method) & (scores.metric == metric)).any():
            raise ValueError(f"{method}: no scores of {metric}")
    figure = PaperFigure(figsize=(DOUBLE, 2.8))
    axes = figure.subplots(1, 2)
    for ax, metric in zip(axes, ("dice", "uncertainty"), strict=True):
        for split, rows in scores[scores.metric == metric].groupby("split", sort=False):
            colour = SPLIT_COLOURS.get(split, "C2")
            curve = _curve(rows[rows.method == method], "t_prime", interval)
            title = f"{split} ({_count(curve.n.max(), curve.n_undefined.max())})"
            ax.plot(curve.index, curve["mean"], "o-", color=colour, clip_on=False, label=title)
            ax.fill_between(curve.index, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            start = subject_values(rows[rows.method == preseg])
            if metric == "dice" and len(start):
                ax.axhline(
                    start.mean(), color=colour, linestyle="--", linewidth=0.8, label=f"{split}, {display_name(preseg)}"
                )
        for t_prime in sorted({*chosen}):
            label = f"$T'$ = {t_prime}, chosen on validation"
            ax.axvline(t_prime, color="0.5", linestyle=":", linewidth=0.8, label=label)
        ax.set(xlabel="$T'$", xlim=(0, steps))
        top = ax.secondary_xaxis("top", functions=(lambda t: t / steps, lambda share: share * steps))
        top.set_xlabel("$T'/T$")
    axes[0].set_ylabel("Dice")
    scaled_axis(axes[1], "Uncertainty (variance)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@paper_style
def ensemble_figure(scores: pd.DataFrame, *, method: str) -> PaperFigure:
    """Fig. 4: Dice against ensemble size, mean and standard deviation over random ensembles, a curve for each split.

    scores: rows of `records.COLUMNS` in which `seed` tells the random ensembles of one size apart. An ensemble's Dice
    is its mean over subjects; the deviation (ddof 1) is that of these means, NaN for a single ensemble.
    """
    rows = scores[(scores.method == method) & (scores.metric == "dice")]
    if rows.empty:
        raise ValueError(f"{method}: no scores of dice")
    figure = PaperFigure(figsize=(DOUBLE, 2.8))
    left, right = figure.subplots(1, 2)
    for split, mine in rows.groupby("split", sort=False):
        means = mine.groupby(["ensemble_size", "seed"]).value.mean()
        drawn = means.groupby("ensemble_size").agg(["mean", "std", "size"])
        n_subjects, n_undefined = mine.subject.nunique(), mine[mine.value.isna()].subject.nunique()
        label = f"{split} ({_count(n_subjects - n_undefined, n_undefined)}, {drawn['size'].max()} ensembles a size)"
        sizes, colour = drawn.index.to_numpy(float), SPLIT_COLOURS[split]
        left.errorbar(
            sizes, drawn["mean"], drawn["std"], fmt="o-", color=colour, capsize=2, elinewidth=0.8, label=label
        )
        right.plot(sizes, drawn["std"], "o-", color=colour)
    left.set_ylabel("Dice, mean ± standard deviation")
    scaled_axis(right, "Standard deviation of Dice")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    for ax in (left, right):
        ax.set_xlabel("Ensemble size")
        ax.set_xticks(sizes)
    return figure


@paper_style
def scores_figure(scores: pd.DataFrame, *, methods: Sequence[str], metric: str = "dice") -> PaperFigure:
    """Where the means of Table 1 come from: a dot for each subject, and the quartiles, of each method.

    scores: rows of `records.COLUMNS`, of one split; methods: keys of `methods.METHODS`, from the top down. Whiskers
    reach the outermost subject. ValueError: a method without scores.
    """
    rows = scores[scores.metric == metric]
    values = {method: subject_values(select(rows, {"method": method})) for method in methods}
    long = pd.DataFrame(values).melt(var_name="method", value_name="score").dropna()
    figure = PaperFigure(figsize=(DOUBLE, 0.6 + 0.22 * len(methods)))
    ax = figure.subplots()
    common = {"data": long, "x": "score", "y": "method", "hue": "method", "order": methods, "ax": ax, "legend": False}
    common |= {"hue_order": methods, "palette": {method: method_colour(method) for method in methods}}
    with warnings.catch_warnings():  # seaborn 0.13 says vert=, which matplotlib 3.11 deprecates
        warnings.simplefilter("ignore", MatplotlibDeprecationWarning)
        sns.boxplot(**common, whis=(0, 100), width=0.6, fill=False, linewidth=0.8)
    sns.stripplot(**common, size=3, alpha=0.55, jitter=False)
    ax.set_yticks(range(len(methods)), [display_name(method) for method in methods])
    n, n_undefined = (rows.subject.nunique(), int(sum(one.isna().sum() for one in values.values())))
    ax.set(xlabel=f"{display_name(metric)} of a subject ({_count(n, n_undefined)})", ylabel="")
    return figure


@paper_style
def calls_figure(
    scores: pd.DataFrame, *, rows: Sequence[Row], metrics: Sequence[str], interval: Mapping[str, float]
) -> PaperFigure:
    """Scores against network calls, a panel for each metric: a point a row, mean over subjects with its interval.

    scores: rows of `records.COLUMNS`, of one split; rows as in `tables.table1`. A method has its colour, its second row
    another marker. Of rows with as many calls each stands a little to the right of the one before, so that they do not
    cover each other.
    """
    figure = PaperFigure(figsize=(DOUBLE, 2.9))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        drawn, methods = [], []
        for row in rows:
            mine = select(scores[scores.metric == metric], row)
            mean, calls, method = mean_interval(subject_values(mine), **interval), float(mine.nfe.mean()), row["method"]
            style = {"fmt": "osD^v"[methods.count(method) % 5], "color": method_colour(method), "label": row_title(row)}
            x = calls * 1.03 ** drawn.count(calls)
            ax.errorbar(x, mean["mean"], _reach(mean), capsize=2, elinewidth=0.8, **style)
            drawn.append(calls)
            methods.append(method)
        ax.set(ylabel=display_name(metric))
        calls_axis(ax, scores.nfe)
    handles, labels = ax.get_legend_handles_labels()
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
def agreement_figure(curves: pd.DataFrame, scores: pd.DataFrame, *, interval: Mapping[str, float]) -> PaperFigure:
    """What the members' spread is worth: risk against coverage, mean over subjects, and the distance to the raters.

    curves: columns subject, coverage, risk, oracle, random. scores: rows of `records.COLUMNS`, of one split; methods
    without a rater to compare with are left out of the right panel.
    """
    figure = PaperFigure(figsize=(DOUBLE, 2.8))
    left, right = figure.subplots(1, 2)
    means = curves.groupby("coverage")[["risk", "oracle", "random"]].mean()
    for colour, (name, style) in enumerate((("risk", "-"), ("oracle", "--"), ("random", ":"))):
        label = {"risk": "by members' variance", "oracle": "errors last", "random": "in no order"}[name]
        left.plot(means.index, means[name], style, color=f"C{colour}", label=label)
    left.set(xlabel="Coverage, share of the brain's voxels", yscale="log", ylim=(means["random"].max() / 100, None))
    scaled_axis(left, "Risk, share of errors")
    left.legend(loc="lower left")
    found = scores[(scores.metric == "energy_distance") & scores.value.notna()]
    for place, (method, rows) in enumerate(found.groupby("method", sort=False)):
        mean = mean_interval(subject_values(rows), **interval)
        style = {"color": method_colour(method), "capsize": 2, "elinewidth": 0.8}
        right.errorbar(mean["mean"], place, xerr=_reach(mean), fmt="o", **style)
    methods = list(found.method.unique())
    if not methods:
        right.set_axis_off()
        return figure
    right.set_yticks(range(len(methods)), [display_name(method) for method in methods])
    right.set(xlabel="Energy distance to the raters", ylim=(len(methods) - 0.5, -0.5))
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
    colours = {name: f"C{i}" for i, name in enumerate(("pdlib", "reference", "diffusers", "MONAI"))}
    spread = 1e3 * np.stack([steps.median_s - steps.low_s, steps.high_s - steps.median_s])
    names = steps.system + ": " + steps.setting
    left.barh(names, 1e3 * steps.median_s, xerr=spread, color=steps.system.map(colours), error_kw={"lw": 0.6})
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


def _reach(mean: Mapping[str, float]) -> list[list[float]]:
    """An interval as the two lengths that an error bar takes."""
    return [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]


def _count(n: int, n_undefined: int) -> str:
    return f"n = {n:.0f}" + (f", {n_undefined:.0f} undefined" if n_undefined else "")


def _curve(rows: pd.DataFrame, by: str, interval: Mapping[str, float]) -> pd.DataFrame:
    points = {float(x): mean_interval(subject_values(at), **interval) for x, at in rows.groupby(by)}
    return pd.DataFrame.from_dict(points, orient="index").sort_index()


def _beside(ax: Axes, y: float, ours: str, target: object, unit: str = "", weight: str = "normal") -> None:
    for text, points in ((ours, 6), (f"{target} {unit}".strip(), 50)):
        place = {"xy": (1, y), "xycoords": ("axes fraction", "data"), "xytext": (points, 0)}
        ax.annotate(text, textcoords="offset points", va="center", fontsize=7, weight=weight, **place)


def _target_range(target: object) -> tuple[float, float]:
    """A number -> (it, it); "low-high" -> (low, high); words -> (NaN, NaN)."""
    ends = [pd.to_numeric(part, errors="coerce") for part in str(target).replace("–", "-").split("-")]
    return (float(ends[0]), float(ends[-1])) if len(ends) <= 2 else (np.nan, np.nan)
