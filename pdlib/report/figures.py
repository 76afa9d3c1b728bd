"""Score tables in, the paper's figures out. Pictures show the numbers of `results/`, they compute none anew.

Slices are [H, W] = [Y, X] in canonical orientation: anterior is up, the patient's left is on the left.
Every figure takes a `note` that is printed in its corner, such as "phantom": no picture may pass for another's data.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pdlib.evaluation.stats import mean_interval
from pdlib.paths import STYLE
from pdlib.report.tables import display_name, subject_values

SINGLE, DOUBLE = 3.4, 7.0  # column widths, inches
SPLIT_COLOURS = {"validation": "C0", "test": "C1"}
HIT, EXTRA, MISSED = "#009E73", "#E69F00", "#56B4E9"


class State(NamedTuple):
    """One panel of Fig. 1: what stands above it, x_t [H, W], and whether noise (forward) or the network led to it."""

    title: str
    x_t: NDArray
    forward: bool = False


@dataclass(frozen=True)
class Example:
    """One row of Fig. 2, slices [H, W]: two images, the reference {0, 1}, predictions {0, 1} by method, variance.

    dice holds the subject's volume Dice by method; pixel_aspect is a pixel's height over its width.
    """

    subject: str
    flair: NDArray
    t1: NDArray
    reference: NDArray
    predictions: Mapping[str, NDArray]
    variance: NDArray
    dice: Mapping[str, float]
    pixel_aspect: float


def _paper_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the paper's style, whatever the notebook's own settings are, and print the note in the corner."""

    @wraps(draw)
    def styled(*args, note: str = "", **kwargs) -> Figure:
        with plt.style.context(STYLE):
            figure = draw(*args, **kwargs)
            if note:
                figure.suptitle(note, x=0.995, ha="right", style="italic", color="0.35")
            return figure

    return styled


@_paper_style
def data_figure(calibration: pd.DataFrame) -> Figure:
    """The phantom beside real lesions: every quantity as a ratio to its target, and both values in print.

    calibration: columns quantity, phantom, target, unit. A target is a number, a range "low-high" (drawn as a bar about
    its geometric middle) or words (printed only). Raises ValueError if there is no row.
    """
    if calibration.empty:
        raise ValueError("data_figure: no quantities")
    figure = Figure(figsize=(DOUBLE, 0.7 + 0.19 * len(calibration)))
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


@_paper_style
def training_figure(history: pd.DataFrame) -> Figure:
    """A training's curves, a panel for each metric, and the best validation marked. history: step, metric, value."""
    metrics = list(history.metric.unique())
    if not metrics:
        raise ValueError("training_figure: no history")
    figure = Figure(figsize=(min(SINGLE * len(metrics), DOUBLE), 2.2))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        curve = history[history.metric == metric].sort_values("step")
        ax.plot(curve.step, curve.value, color="C0")
        if "loss" not in metric and curve.value.notna().any():
            best = curve.loc[curve.value.idxmax()]
            ax.plot(best.step, best.value, "o", color="C1", label=f"best {best.value:.3f} at {best.step:g}")
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1))  # above the panel: no curve runs there
        elif 0 < 10 * curve.value.min() < curve.value.max():
            ax.set_yscale("log")
        ax.set(xlabel="Update", ylabel=display_name(metric))
        ax.xaxis.set_major_locator(MaxNLocator(5))
    return figure


@_paper_style
def processes_figure(flair: NDArray, chains: Mapping[str, Sequence[State]]) -> Figure:
    """Fig. 1: reverse chains side by side, one a row; the image they see stands at the left, the mask at the right.

    flair [H, W]; chains: row title -> the states visited, in order. Rows end in the same column. A dashed arrow is the
    forward process (noise is added), a solid one the reverse process (the network removes it).
    """
    columns = 1 + max(len(states) for states in chains.values())
    height, width = (side.stop - side.start for side in _brain_box(flair))
    panel = DOUBLE / (columns + 0.25 * (columns - 1))
    figure = Figure(figsize=(DOUBLE, len(chains) * (panel * height / width + 0.42) + 0.25))
    axes = figure.subplots(len(chains), columns, squeeze=False)
    figure.get_layout_engine().set(wspace=0.18)
    box = _brain_box(flair)
    for row, (title, states) in zip(axes, chains.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        _show_image(row[0], flair[box])
        row[0].set_title(title, weight="bold")
        last = None
        for ax, state in zip(row[columns - len(states) :], states, strict=True):
            low, high = min(0, np.percentile(state.x_t, 1)), max(1, np.percentile(state.x_t, 99))
            ax.imshow(state.x_t[box], cmap="gray", vmin=low, vmax=high)
            ax.set_title(state.title)
            if last is not None:
                style = {"arrowstyle": "-|>", "color": "C1" if state.forward else "C0", "shrinkA": 1, "shrinkB": 1}
                style |= {"linestyle": (0, (2, 1.2)) if state.forward else "-", "mutation_scale": 6}
                places = {"xycoords": ax.transAxes, "textcoords": last.transAxes}
                ax.annotate("", xy=(0, 0.5), xytext=(1, 0.5), arrowprops=style, **places)
            last = ax
    return figure


@_paper_style
def examples_figure(examples: Sequence[Example]) -> Figure:
    """Fig. 2: test images in rows; images, reference, predictions and the variance between members in columns.

    In the predictions a voxel is a hit, extra or missed against the reference. The variance has one scale for all rows.
    """
    methods = list(examples[0].predictions)
    titles = ["FLAIR", "T1", "Reference", *(display_name(m) for m in methods), "Variance"]
    boxes = [_brain_box(example.flair) for example in examples]
    ratios = [
        (box[0].stop - box[0].start) * example.pixel_aspect / (box[1].stop - box[1].start)
        for box, example in zip(boxes, examples, strict=True)
    ]
    panel = (DOUBLE - 0.55) / len(titles)
    figure = Figure(figsize=(DOUBLE, panel * sum(ratios) + 0.16 * len(examples) + 0.75))
    axes = figure.subplots(len(examples), len(titles), squeeze=False, gridspec_kw={"height_ratios": ratios})
    figure.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.02)
    highest = max(float(np.max(example.variance)) for example in examples) or 1.0
    for row, example, box in zip(axes, examples, boxes, strict=True):
        for ax, image in zip(row, (example.flair, example.t1), strict=False):
            _show_image(ax, image[box], example.pixel_aspect)
        _show_overlay(row[2], example.flair[box], example.reference[box], example.reference[box], example.pixel_aspect)
        for ax, method in zip(row[3:], methods, strict=False):
            _show_overlay(
                ax, example.flair[box], example.predictions[method][box], example.reference[box], example.pixel_aspect
            )
            if method in example.dice:
                ax.set_xlabel(f"{example.dice[method]:.3f}", labelpad=2, fontsize=7)
        shown = row[-1].imshow(example.variance[box], cmap="inferno", vmin=0, vmax=highest, aspect=example.pixel_aspect)
        row[0].set_ylabel("/".join(example.subject.split("/")[-2:]), labelpad=2, fontsize=7)
        row[2].set_xlabel("Dice", labelpad=2, fontsize=7)
        for ax in row:
            _bare(ax)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=7)
    figure.colorbar(shown, ax=axes[:, -1], fraction=0.08, pad=0.04, aspect=40, label="Variance over members")
    figure.legend(handles=_overlay_patches(), loc="outside lower center", ncols=3)
    return figure


@_paper_style
def t_prime_figure(
    scores: pd.DataFrame, *, method: str, preseg: str, steps: int, chosen: Sequence[int], interval: Mapping[str, float]
) -> Figure:
    """Fig. 3: Dice and uncertainty of `method` against T', mean over subjects with its bootstrap interval.

    scores: rows of `records.COLUMNS`, one curve for each split in it. The Dice of the pre-segmentation `preseg` is a
    dashed line for each split. steps is T; chosen holds the T' taken on the validation subjects, of each fold; interval
    the arguments of `mean_interval`.
    """
    for metric in ("dice", "uncertainty"):
        if not ((scores.method == method) & (scores.metric == metric)).any():
            raise ValueError(f"{method}: no scores of {metric}")
    figure = Figure(figsize=(DOUBLE, 2.8))
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
    _scaled_axis(axes[1], "Uncertainty (variance)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@_paper_style
def ensemble_figure(scores: pd.DataFrame, *, method: str) -> Figure:
    """Fig. 4: Dice against ensemble size, mean and standard deviation over random ensembles, a curve for each split.

    scores: rows of `records.COLUMNS` in which `seed` tells the random ensembles of one size apart. An ensemble's Dice
    is its mean over subjects; the deviation (ddof 1) is that of these means, NaN for a single ensemble.
    """
    rows = scores[(scores.method == method) & (scores.metric == "dice")]
    if rows.empty:
        raise ValueError(f"{method}: no scores of dice")
    figure = Figure(figsize=(DOUBLE, 2.8))
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
    _scaled_axis(right, "Standard deviation of Dice")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    for ax in (left, right):
        ax.set_xlabel("Ensemble size")
        ax.set_xticks(sizes)
    return figure


@_paper_style
def calls_figure(scores: pd.DataFrame, *, metrics: Sequence[str], interval: Mapping[str, float]) -> Figure:
    """Scores against network calls, a panel for each metric: one point a method, mean over subjects with its interval.

    scores: rows of `records.COLUMNS`, of one split; a method's name is its label. Of methods with as many calls each
    stands a little to the right of the one before, so that they do not cover each other.
    """
    figure = Figure(figsize=(DOUBLE, 2.9))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        drawn: list[float] = []
        for place, (method, rows) in enumerate(scores[scores.metric == metric].groupby("method", sort=False)):
            mean = mean_interval(subject_values(rows), **interval)
            reach = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
            style = {"fmt": "o", "color": f"C{place}", "capsize": 2, "elinewidth": 0.8}
            calls = float(rows.nfe.mean())
            ax.errorbar(calls * 1.03 ** drawn.count(calls), mean["mean"], reach, label=display_name(method), **style)
            drawn.append(calls)
        ax.set(ylabel=display_name(metric))
        _calls_axis(ax, scores.nfe)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@_paper_style
def solver_figure(scores: pd.DataFrame, *, front: Sequence[str]) -> Figure:
    """Dice, lesion F1 and uncertainty (rows) against network calls, means over subjects, from each start (columns): a
    line for each way of stepping, a diamond for a single chain, a ring about the Dice of those on the Pareto front.

    scores: rows of `records.COLUMNS`, of one split; a method is named "start, rule, N calls", or "start, rule".
    """
    means = scores.groupby(["method", "metric"], sort=False).value.mean().unstack()
    means["nfe"] = scores.groupby("method").nfe.mean().astype(float)
    names = means.index.to_series().str.extract(r"^(?P<start>[^,]+), (?P<rule>.+?)(?:, \d+ calls)?$")
    means = means.join(names)
    starts, rules = means.start.unique(), list(means.rule.unique())
    figure = Figure(figsize=(DOUBLE, 5.0))
    grid = figure.subplots(3, len(starts), sharex=True, sharey="row", squeeze=False)
    for metric, line in zip(("dice", "lesion_f1", "uncertainty"), grid, strict=True):
        for start, ax in zip(starts, line, strict=True):
            for rule, rows in means[means.start == start].sort_values("nfe").groupby("rule"):
                style = {"marker": "o" if len(rows) > 1 else "D", "color": f"C{rules.index(rule)}", "label": rule}
                ax.plot(rows.nfe, rows[metric], markersize=3, **style)
            if metric == "dice":
                best = means[(means.start == start) & means.index.isin(front)]
                ax.plot(best.nfe, best[metric], "o", markersize=7, markerfacecolor="none", color="0.3", zorder=0)
                ax.set_title(start)
        line[0].set_ylabel(display_name(metric))
    for ax in grid[-1]:
        _calls_axis(ax, scores.nfe)
    _scaled_axis(grid[-1][0], "Uncertainty (variance)")
    labelled = {text: handle for ax in grid[0] for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=len(labelled))
    return figure


@_paper_style
def agreement_figure(curves: pd.DataFrame, scores: pd.DataFrame, *, interval: Mapping[str, float]) -> Figure:
    """What the members' spread is worth: risk against coverage, mean over subjects, and the distance to the raters.

    curves: columns subject, coverage, risk, oracle, random. scores: rows of `records.COLUMNS`, of one split; methods
    without a rater to compare with are left out of the right panel.
    """
    figure = Figure(figsize=(DOUBLE, 2.8))
    left, right = figure.subplots(1, 2)
    means = curves.groupby("coverage")[["risk", "oracle", "random"]].mean()
    for colour, (name, style) in enumerate((("risk", "-"), ("oracle", "--"), ("random", ":"))):
        label = {"risk": "by members' variance", "oracle": "errors last", "random": "in no order"}[name]
        left.plot(means.index, means[name], style, color=f"C{colour}", label=label)
    left.set(xlabel="Coverage, share of the brain's voxels", yscale="log", ylim=(means["random"].max() / 100, None))
    _scaled_axis(left, "Risk, share of errors")
    left.legend(loc="lower left")
    found = scores[(scores.metric == "energy_distance") & scores.value.notna()]
    for place, (_, rows) in enumerate(found.groupby("method", sort=False)):
        mean = mean_interval(subject_values(rows), **interval)
        reach = [[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]]
        right.errorbar(mean["mean"], place, xerr=reach, fmt="o", color="C0", capsize=2, elinewidth=0.8)
    methods = list(found.method.unique())
    if not methods:
        right.set_axis_off()
        return figure
    right.set_yticks(range(len(methods)), [display_name(method) for method in methods])
    right.set(xlabel="Energy distance to the raters", ylim=(len(methods) - 0.5, -0.5))
    return figure


@_paper_style
def speed_figure(steps: pd.DataFrame, ops: pd.DataFrame) -> Figure:
    """Milliseconds a slice and step of each system and setting, with quartiles; and how fast each op is beside its
    reference. Rows of `benchmarks/step.py` and `benchmarks/ops.py`; what gave a wrong answer is not shown."""
    key = ["op", "shape", "dtype"]
    base = ops[ops.candidate == "reference"].set_index(key).median_s.rename("base")
    beside = ops[ops.candidate != "reference"].join(base, on=key).dropna(subset="median_s")
    figure, (left, right) = plt.subplots(1, 2, figsize=(DOUBLE, 0.6 + 0.17 * max(len(steps), len(base))))
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
    right.set_xscale("log")
    right.set_xlabel("times as fast as the reference")
    right.legend(fontsize=5, loc="upper left")
    for ax in (left, right):
        ax.tick_params(axis="y", labelsize=5)
    return figure


@_paper_style
def overlay_figure(
    image: NDArray,
    reference: NDArray | None,
    mask: NDArray,
    variance: NDArray,
    *,
    spacing_mm: Sequence[float],
    columns: int,
) -> Figure:
    """A subject at a glance: the `columns` slices with most predicted lesion, with FLAIR, mask and members' variance.

    image [2, Z, Y, X] (FLAIR, T1); reference (or None), mask, variance [Z, Y, X]; spacing_mm (z, y, x). Without a
    reference the prediction is drawn in the colour of a hit.
    """
    slices = np.sort(np.lexsort([(part != 0).sum((1, 2)) for part in (image[0], mask)])[-columns:])
    box = _brain_box(np.abs(image[0]).max(0))
    height, width = (side.stop - side.start for side in box)
    aspect = spacing_mm[1] / spacing_mm[2]
    figure = Figure(figsize=(DOUBLE, 3 * (DOUBLE - 0.6) / columns * height * aspect / width + 0.65))
    axes = figure.subplots(3, len(slices), squeeze=False)
    figure.get_layout_engine().set(wspace=0.01, hspace=0.01, w_pad=0.01, h_pad=0.02)
    highest = float(np.max(variance)) or 1.0
    truth = mask != 0 if reference is None else reference
    for z, (top, middle, bottom) in zip(slices, axes.T, strict=True):
        _show_image(top, image[0, z][box], aspect)
        _show_overlay(middle, image[0, z][box], mask[z][box], truth[z][box], aspect)
        top.set_title(f"slice {z + 1}", fontsize=7)
        shown = bottom.imshow(variance[z][box], cmap="inferno", vmin=0, vmax=highest, aspect=aspect)
        for ax in (top, middle, bottom):
            _bare(ax)
    for ax, title in zip(axes[:, 0], ("FLAIR", "mask", "variance"), strict=True):
        ax.set_ylabel(title, fontsize=7)
    figure.colorbar(shown, ax=axes[2], fraction=0.02, pad=0.01)
    patches = [Patch(color=HIT, label="prediction")] if reference is None else _overlay_patches()
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure


def save_figure(figure: Figure, path_stem: str | os.PathLike) -> list[Path]:
    """Write path_stem.png (200 dpi) and path_stem.pdf and return both paths; the same figure gives the same bytes."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    with plt.style.context(STYLE):
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths


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


def _scaled_axis(ax: Axes, label: str) -> None:
    """Small numbers on the y axis in units of a power of ten that the axis label names."""
    top = max((np.nanmax(np.abs(line.get_ydata())) for line in ax.lines if np.size(line.get_ydata()) > 2), default=1.0)
    power = int(np.floor(np.log10(top))) if top > 0 else 0
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 10.0**power:.3g}"))
    ax.set_ylabel(label if power == 0 else f"{label}, $10^{{{power}}}$")


def _calls_axis(ax: Axes, calls: pd.Series) -> None:
    """Network calls on a logarithmic x axis with round numbers that can be read."""
    low, high = float(calls.min()) / 1.2, float(calls.max()) * 1.3
    ticks = [base * 10**power for power in range(5) for base in (1, 2, 5) if low <= base * 10**power <= high]
    ax.set(xlabel="Network calls a slice", xscale="log", xlim=(low, high))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _brain_box(flair: NDArray) -> tuple[slice, slice]:
    """The rows and columns of a slice that hold brain (the background is zero), with two pixels of margin."""
    inside = np.argwhere(flair != 0)
    if len(inside) == 0:
        return slice(0, flair.shape[0]), slice(0, flair.shape[1])
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0)
    return slice(max(y0 - 2, 0), y1 + 3), slice(max(x0 - 2, 0), x1 + 3)


def _show_image(ax: Axes, image: NDArray, aspect: float = 1.0) -> None:
    inside = image[image != 0] if image.any() else image
    low, high = np.percentile(inside, (0.5, 99.8))
    ax.imshow(np.where(image == 0, low, image), cmap="gray", vmin=low, vmax=high, aspect=aspect)


def _show_overlay(ax: Axes, flair: NDArray, mask: NDArray, reference: NDArray, aspect: float) -> None:
    _show_image(ax, flair, aspect)
    mask, reference = mask != 0, reference == 1
    for colour, where in ((HIT, mask & reference), (EXTRA, mask & ~reference), (MISSED, ~mask & reference)):
        paint = np.zeros((*mask.shape, 4))
        paint[where] = to_rgba(colour)
        ax.imshow(paint, aspect=aspect)


def _overlay_patches() -> list[Patch]:
    return [Patch(color=HIT, label="hit"), Patch(color=EXTRA, label="extra"), Patch(color=MISSED, label="missed")]


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
