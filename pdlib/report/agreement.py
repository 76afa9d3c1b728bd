"""What the members' spread is worth: where the errors lie, and how near the members come to the raters."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from pdlib.methods import CHAIN
from pdlib.report.differences import forest
from pdlib.report.style import DOUBLE, PaperFigure, method_colour, paper_style, scaled_axis
from pdlib.report.titles import display_name
from pdlib.report.values import tested_values


@paper_style
def agreement_figure(curves: pd.DataFrame, scores: pd.DataFrame, *, interval: Mapping[str, float]) -> PaperFigure:
    """Left the share of errors that is left when the voxels of most variance are set aside, for each method; right the
    distance to the raters, as a paired difference to PD-DDPM's with its interval (below zero is nearer), beside each
    method its mean.

    curves: means over subjects in columns method, set_aside, risk and, of PD-DDPM, oracle; methods in the order to
    show. scores: rows of `records.COLUMNS`, of one split; methods without a rater to compare with are left out of the
    right panel.
    """
    found = scores[(scores.metric == "energy_distance") & scores.value.notna()]
    rated = dict(iter(found.groupby("method")))
    parts = {method: rated[method] for method in curves.method.unique() if method in rated}
    figure = PaperFigure(figsize=(DOUBLE, 2.8))
    left, right = figure.subplots(1, 2)
    _draw_risks(left, curves)
    if CHAIN not in parts:
        right.set_axis_off()
        left.legend(loc="upper right")
        return figure
    forest(right, parts, CHAIN, "energy_distance", interval, [*parts])
    means = {method: tested_values(rows, "energy_distance").mean() for method, rows in parts.items()}
    right.set_yticks(range(len(means)), [f"{display_name(method)}, {mean:.2f}" for method, mean in means.items()])
    for label, method in zip(right.get_yticklabels(), means, strict=True):
        label.set_color(method_colour(method))  # the key of both panels
    return figure


def _draw_risks(ax: Axes, curves: pd.DataFrame) -> None:
    """Errors among the other voxels, against the share set aside; of PD-DDPM also as they would fall at best."""
    for method, mine in curves.groupby("method", sort=False):
        colour, front = method_colour(method), 3 if method == CHAIN else 2
        ax.plot(mine.set_aside, mine.risk, color=colour, label=display_name(method), zorder=front)
        if method == CHAIN:
            ax.plot(mine.set_aside, mine.oracle, "--", linewidth=0.8, color=colour)
            best = f"dashed: if all errors of\n{display_name(method)} came first"
            ax.text(0.03, 0.04, best, color=colour, fontsize=6, transform=ax.transAxes)
    ax.set(xlabel="Voxels set aside, the most uncertain first", xscale="log", xlim=(curves.set_aside.min(), None))
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    scaled_axis(ax, "Errors among the others, share")
    ax.set_ylim(bottom=0)
