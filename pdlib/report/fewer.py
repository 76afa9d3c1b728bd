"""Scores against network calls, of all methods that promise fewer of them."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.lines import Line2D

from pdlib.methods import RULES
from pdlib.report.style import DOUBLE, PaperFigure, calls_axis, method_colour, paper_style, scaled_axis
from pdlib.report.tables import front_table
from pdlib.report.titles import display_name, rule_title

MARKERS = "osD^vPX*<>"  # by rule


@paper_style
def fewer_figure(scores: pd.DataFrame, *, metrics: Sequence[str]) -> PaperFigure:
    """A panel for each metric, means over subjects against network calls: a colour for each method, a marker and a line
    for each rule, a ring about the Dice of those on the Pareto front.

    scores: rows of `records.COLUMNS`, of one split; a metric that a row lacks is left out of its panel.
    """
    means = front_table(scores, metrics=metrics)
    present, methods = scores.rule.unique(), scores.method.unique()
    rules = [rule for rule in dict.fromkeys([*RULES, *scores.rule]) if rule in present]
    figure = PaperFigure(figsize=(DOUBLE, 5.6))
    panels = figure.subplots(-(-len(metrics) // 2), 2, squeeze=False).flat
    for metric, ax in zip(metrics, panels, strict=False):
        for (method, rule), rows in means.groupby(["method", "rule"], sort=False):
            rows = rows.dropna(subset=metric)
            marker = MARKERS[rules.index(rule)]
            ax.plot(rows.nfe, rows[metric], marker=marker, markersize=3, color=method_colour(method))
        if metric == "dice":
            best = means[means.front]
            ax.plot(best.nfe, best[metric], "o", markersize=7, markerfacecolor="none", color="0.3", zorder=0)
        ax.set_ylabel(display_name(metric))
        calls_axis(ax, scores.nfe)
        if metric == "uncertainty":
            scaled_axis(ax, display_name(metric))
    shown = [Line2D([], [], color=method_colour(name), label=display_name(name)) for name in methods]
    style = {"color": "0.3", "linestyle": "", "markersize": 3}
    shown += [Line2D([], [], marker=MARKERS[i], label=rule_title(rule), **style) for i, rule in enumerate(rules)]
    figure.legend(handles=shown, loc="outside lower center", ncols=4)
    return figure
