"""Why members agree, as a picture: the table of `study.spread` in, a figure out."""

import pandas as pd

from pdlib.report.style import DOUBLE, PaperFigure, method_colour, paper_style

TITLES = {  # of what is changed, in the order of the figure
    "as_printed": "PD-DDPM, as in Table 1",
    "start_noise": "the start's noise alone (eta 0)",
    "every_step": "every step",
    "start_mask": "a start mask each, the same noise",
    "from_noise": "from pure noise (DDPM)",
}


def variant_title(variant: str) -> str:
    """What a reader is shown for a variant of the chain."""
    return TITLES[variant]


@paper_style
def spread_figure(table: pd.DataFrame) -> PaperFigure:
    """The variance of members by what is changed, means over subjects (bars) and each subject (dots).

    table: variant, subject, variance, due. A ring is the variance that is due: what it would be if the reference were
    one more member. ValueError where there are no variants.
    """
    if table.empty:
        raise ValueError("spread_figure: no variants")
    shown = [name for name in TITLES if name in set(table.variant)]
    means = table.groupby("variant")[["variance", "due"]].mean().loc[shown]
    figure = PaperFigure(figsize=(DOUBLE, 0.9 + 0.26 * len(shown)))
    ax = figure.add_subplot()
    colours = [method_colour("ddpm" if name == "from_noise" else "pd_ddpm") for name in shown]
    ax.barh(range(len(shown)), means.variance, color=colours, alpha=0.7, height=0.6)
    for y, name in enumerate(shown):
        each = table[table.variant == name]
        ax.plot(each.variance, [y] * len(each), ".", color="0.25", markersize=3)
    ax.plot(means.due, range(len(shown)), "o", fillstyle="none", color="0.25", label="if the reference were a member")
    ax.ticklabel_format(axis="x", scilimits=(0, 0), useMathText=True)
    ax.set_xlim(left=0)
    ax.set_yticks(range(len(shown)), [variant_title(name) for name in shown])
    ax.invert_yaxis()
    ax.set_xlabel("Variance over members, mean over brain voxels")
    figure.legend(loc="outside lower right")
    return figure
