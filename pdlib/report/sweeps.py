"""Scores against what a user may choose: T' (Fig. 3), the number of members (Fig. 4), and the start (Table 2)."""

from collections.abc import Mapping, Sequence

import pandas as pd

from pdlib.evaluation.stats import mean_interval
from pdlib.report.differences import BARS, paired_mean, reach, row_mean
from pdlib.report.printed import mark_printed
from pdlib.report.style import DOUBLE, SINGLE, SPLIT_STYLES, PaperFigure, method_colour, paper_style, scaled_axis
from pdlib.report.titles import display_name, start_title
from pdlib.report.values import select, tested_values


@paper_style
def t_prime_figure(
    scores: pd.DataFrame,
    *,
    method: str,
    preseg: str,
    steps: int,
    chosen: Sequence[int],
    interval: Mapping[str, float],
    paper: Mapping[str, float],
) -> PaperFigure:
    """Fig. 3 against T': mean Dice of `method`, its difference to the pre-segmentation's, and its uncertainty.

    scores: rows of `records.COLUMNS`, one curve for each split in it. The Dice of the pre-segmentation `preseg` is a
    dashed line for each split. Bars are intervals over trainings and subjects; Dice has none, for the spread between
    subjects tells nothing of a difference. steps is T; chosen holds the T' taken on the validation subjects, of each
    fold; interval the arguments of `mean_interval`; paper, by T'/T, Dice as the paper prints it
    (`printed.printed_dice`).
    """
    for metric in ("dice", "uncertainty"):
        if not ((scores.method == method) & (scores.metric == metric)).any():
            raise ValueError(f"{method}: no scores of {metric}")
    figure = PaperFigure(figsize=(DOUBLE, 3.0))
    plain, difference, spread = axes = figure.subplots(1, 3)
    for place, (split, rows) in enumerate(scores.groupby("split", sort=False)):
        style = {"color": method_colour(method), "clip_on": False, "marker": "o"} | SPLIT_STYLES[split]
        start, parts = select(rows, {"method": preseg}), dict(iter(rows[rows.method == method].groupby("t_prime")))
        dice, against, variance = (
            pd.DataFrame({float(t): of(part) for t, part in parts.items()}).T
            for of in (
                lambda part: row_mean(part, "dice", interval),
                lambda part, start=start: paired_mean(part, start, "dice", interval),
                lambda part: row_mean(part, "uncertainty", interval),
            )
        )
        plain.plot(
            dice.index,
            dice["mean"],
            label=f"{display_name(method)}, {split} ({_count(dice.n.max(), dice.n_undefined.max())})",
            **style,
        )
        level = tested_values(start, "dice").mean()
        line = {"color": method_colour(preseg), "linestyle": style["linestyle"], "linewidth": 0.8}
        plain.axhline(level, label=f"{display_name(preseg)}, {split}", zorder=0, **line)
        for ax, points in ((difference, against), (spread, variance)):
            aside = points.index + place * 0.02 * steps  # so that no bar covers another
            ax.errorbar(aside, points["mean"], reach(points), linewidth=0.8, **BARS, **style)
    difference.axhline(0, color="0.5", linewidth=0.6, zorder=0)
    for ax in axes:
        for t_prime in sorted({*chosen}):
            label = f"$T'$ = {t_prime}, chosen on validation"
            ax.axvline(t_prime, color="0.5", linestyle=":", linewidth=0.8, label=label, zorder=0)
        ax.set(xlabel="$T'$", xlim=(0, steps))
        top = ax.secondary_xaxis("top", functions=(lambda t: t / steps, lambda share: share * steps))
        top.set_xlabel("$T'/T$")
    mark_printed(plain, [float(share) * steps for share in paper], [*paper.values()])
    plain.set_ylabel("Dice")
    difference.set_ylabel("Δ Dice to the\npre-segmentation")
    scaled_axis(spread, "Uncertainty (variance)")
    handles, labels = plain.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@paper_style
def ensemble_figure(
    scores: pd.DataFrame,
    *,
    method: str,
    seeds: Mapping[str, int],
    interval: Mapping[str, float],
    paper: Mapping[str, float],
) -> PaperFigure:
    """Fig. 4: Dice against ensemble size, mean and standard deviation over random ensembles, a curve for each split.

    scores: rows of `records.COLUMNS` in which `seed` tells the random ensembles of one size apart; seeds: the training
    that segmented each subject (`Run.seed_of`). An ensemble's Dice is its mean over subjects; the deviation (ddof 1) is
    that of these means, NaN for a single ensemble. The legend has the gain from the smallest to the largest size, with
    its interval over trainings and subjects. paper: Dice as the paper prints it (`printed.printed_dice`), by size.
    """
    rows = scores[(scores.method == method) & (scores.metric == "dice")]
    if rows.empty:
        raise ValueError(f"{method}: no scores of dice")
    figure = PaperFigure(figsize=(SINGLE, 2.9))
    ax = figure.add_subplot()
    for place, (split, mine) in enumerate(rows.groupby("split", sort=False)):
        means = mine.groupby(["ensemble_size", "seed"]).value.mean()
        drawn = means.groupby("ensemble_size").agg(["mean", "std", "size"])
        n_subjects, n_undefined = mine.subject.nunique(), mine[mine.value.isna()].subject.nunique()
        sizes, gain = drawn.index.to_numpy(float), _gain(mine, seeds, interval)
        label = f"{split} ({_count(n_subjects - n_undefined, n_undefined)}, {drawn['size'].max()} ensembles a size)"
        grown = f"{gain['mean']:+.4f} [{gain['low']:.4f}, {gain['high']:.4f}]"
        label += f"\nfrom {sizes.min():g} to {sizes.max():g} members: {grown}"
        aside = sizes + place * 0.02 * sizes.max()  # so that no bar covers another
        look = {"color": method_colour(method), "marker": "o"} | SPLIT_STYLES[split]
        ax.errorbar(aside, drawn["mean"], drawn["std"], label=label, **look, **BARS)
    mark_printed(ax, [float(size) for size in paper], [*paper.values()])
    ax.set(xlabel="Ensemble size", ylabel="Dice, mean ± deviation\nover random ensembles")
    ax.set_xticks(sizes)
    figure.legend(loc="outside lower center")
    return figure


@paper_style
def starts_figure(table: pd.DataFrame, *, method: str, presegmenter: str) -> PaperFigure:
    """Table 2 as a picture: left from each start's mean Dice, hollow, to that of the method; right the paired
    differences with their intervals, but for a start without a Dice of its own.

    table: as `tables.table2` returns it, a start in a row, drawn from the top down.
    """
    figure = PaperFigure(figsize=(DOUBLE, 0.7 + 0.3 * len(table)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    places, ours, start = range(len(table)), method_colour(method), method_colour(presegmenter)
    left.hlines(places, table.preseg_dice, table.dice, color=ours, linewidth=0.8)
    left.plot(table.preseg_dice, places, "o", color=start, markerfacecolor="white", label="its start", clip_on=False)
    left.plot(table.dice, places, "o", color=ours, label=display_name(method), clip_on=False)
    columns = {"dice_difference": "mean", "dice_difference_low": "low", "dice_difference_high": "high"}
    points = table.assign(place=places)[table.preseg_dice > 0].rename(columns=columns)
    right.errorbar(points["mean"], points.place, xerr=reach(points), fmt="o", color=ours, **BARS)
    right.axvline(0, color="0.5", linewidth=0.6, zorder=0)
    left.set_yticks(places, [start_title(name) for name in table.start])
    left.set(xlabel=f"Dice (n = {table.n.iloc[0]})", ylim=(len(table) - 0.5, -0.5))
    right.set(xlabel=f"{display_name('dice_difference')} to its start")
    right.tick_params(left=False, labelleft=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _gain(draws: pd.DataFrame, seeds: Mapping[str, int], interval: Mapping[str, float]) -> dict[str, float]:
    """The gain of the largest size over the smallest, of each subject its mean over the ensembles: mean, low, high."""
    dice = draws.pivot_table(index=["subject", "fold"], columns="ensemble_size", values="value", dropna=False)
    dice = dice[dice.notna().any(axis=1)]
    groups = [f"{fold}.{seeds[subject]}" for subject, fold in dice.index]
    return mean_interval(dice[max(dice)] - dice[min(dice)], **interval, groups=groups)


def _count(n: int, n_undefined: int) -> str:
    return f"n = {n:.0f}" + (f", {n_undefined:.0f} undefined" if n_undefined else "")
