"""Scores against network calls, of all methods that promise fewer of them."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from pdlib.methods import CHAIN, RULES
from pdlib.report.differences import BARS, paired_mean, reach
from pdlib.report.style import DOUBLE, PaperFigure, calls_axis, method_colour, paper_style, scaled_axis
from pdlib.report.tables import front_table
from pdlib.report.titles import ROW_KEY, display_name, rule_title
from pdlib.report.values import select

MARKERS = "osD^vPX*<>"  # by rule


@paper_style
def fewer_figure(scores: pd.DataFrame, *, metrics: Sequence[str], interval: Mapping[str, float]) -> PaperFigure:
    """Left a panel for each metric, means over subjects against network calls, a ring about the Dice of those on the
    Pareto front; right the difference of each chain's Dice to the longest PD-DDPM's, with its interval over trainings
    and subjects, a method after the other, each by rising calls: a colour for each method, a marker for each rule.

    scores: rows of `records.COLUMNS`, of one split; a metric that a row lacks is left out of its panel, and one that
    every row lacks has none.
    """
    means = front_table(scores, metrics=metrics)
    metrics = [metric for metric in metrics if means[metric].notna().any()]
    present = scores.rule.unique()
    rules = [rule for rule in dict.fromkeys([*RULES, *scores.rule]) if rule in present]
    marker = dict(zip(rules, MARKERS, strict=False))
    figure = PaperFigure(figsize=(DOUBLE, max(1.35 * len(metrics), 0.175 * len(means)) + 0.5))
    grid = figure.add_gridspec(len(metrics), 2, width_ratios=[3, 2])
    for place, metric in enumerate(metrics):
        ax = figure.add_subplot(grid[place, 0])
        for (method, rule), rows in means.groupby(["method", "rule"], sort=False):
            drawn = rows.dropna(subset=metric)
            ax.plot(drawn.nfe, drawn[metric], marker=marker[rule], markersize=3, color=method_colour(method))
        if metric == "dice":
            best = means[means.front]
            ring = {"markersize": 7, "markerfacecolor": "none", "color": "0.3", "zorder": 0, "linestyle": "none"}
            ax.plot(best.nfe, best[metric], "o", **ring, label="Pareto front")
            ax.legend(loc="lower left", fontsize=6)
        ax.margins(y=0.15)  # a ring is larger than its point
        ax.set_ylabel(display_name(metric).replace(" to the", "\nto the").replace(" (", "\n("))
        calls_axis(ax, scores.nfe)
        if metric == "uncertainty":
            scaled_axis(ax, "Uncertainty")
        if place < len(metrics) - 1:
            ax.set_xlabel("")
    _differences(figure.add_subplot(grid[:, 1]), scores, means, marker, interval)
    return figure


def _differences(
    ax: Axes, scores: pd.DataFrame, means: pd.DataFrame, marker: Mapping[str, str], interval: Mapping[str, float]
) -> None:
    """Every chain's difference in Dice to the longest of PD-DDPM; methods in the order of their fewest calls."""
    ours = means.index[means.method == CHAIN]
    base = means.loc[ours.max() if len(ours) else means.index.max()]
    theirs, several = _rows(scores, base), means.groupby("method").rule.nunique() > 1
    chains = means.assign(order=pd.factorize(means.method)[0]).sort_values(["order", "nfe"], kind="stable")
    for place, (number, chain) in enumerate(chains.iterrows()):
        look = {"fmt": marker[chain.rule], "markersize": 3, "color": method_colour(chain.method)}
        if number == base.name:
            ax.plot(0, place, marker=look.pop("fmt"), **look)
            continue
        point = pd.DataFrame([paired_mean(_rows(scores, chain), theirs, "dice", interval)])
        ax.errorbar(point["mean"], place, xerr=reach(point), **look, **BARS | {"capsize": 1.5})
    ax.axvline(0, color=method_colour(base.method), linewidth=0.6, zorder=0)
    again = chains.method.duplicated()  # the method stands beside its first chain
    names = [_name(chain, several[chain.method], again[number]) for number, chain in chains.iterrows()]
    ax.set_yticks(range(len(chains)), names)
    for label, method in zip(ax.get_yticklabels(), chains.method, strict=True):
        label.set_color(method_colour(method))
    ax.set(xlabel=f"Δ Dice to\n{_name(base, several[base.method])}", ylim=(len(chains) - 0.5, -0.5))


def _rows(scores: pd.DataFrame, chain: Mapping) -> pd.DataFrame:
    return select(scores, {column: chain[column] for column in ROW_KEY if pd.notna(chain[column]) and chain[column]})


def _name(chain: Mapping, with_rule: bool, again: bool = False) -> str:
    parts = [] if again else [display_name(chain["method"])]
    parts += [rule_title(chain["rule"])] if with_rule else []
    return ", ".join([*parts, f"{chain['nfe']:g} call{'s' if chain['nfe'] != 1 else ''}"])
