"""What docs/results.md tells beside the tables: of Table 1 the subjects whose start is empty, of Table 2 whether the
starts were what they were meant to be, of "fewer calls" every number of calls, and what each network was trained for.
"""

import pandas as pd

from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.paths import Layout
from pdlib.report.tables import table_markdown
from pdlib.report.titles import row_title, start_title

SCORED_BY = "dice"  # of the validation subjects, by which a checkpoint is chosen


def aside(place: Layout, name: str) -> str:
    """What stands under a table of figures/; nothing where there is nothing to tell."""
    told = {"table1": _empty_starts, "table2": _starts_in_order, "fewer_calls": _every_count}.get(name)
    return told(place) if told else ""


def trained(place: Layout) -> str:
    """Updates of each training whose validation Dice was watched, the best of it and where, and where it ended."""
    lines = []
    for path in sorted((place.results / "training").glob("*.csv")):
        table = records.read_table(path)
        if {*table} != {"step", "metric", "value"} or SCORED_BY not in {*table.metric}:
            continue
        watched = table[table.metric == SCORED_BY].set_index("step").value
        best = watched.idxmax()
        ended = "at the last look" if best == watched.index[-1] else f"at {best}"
        lines.append((path.stem, f"{table.step.max()}", f"{watched.max():.3f} {ended}", f"{watched.iloc[-1]:.3f}"))
    if not lines:
        return ""
    caption = (
        "What was trained, on the same subjects: updates, and the best Dice of the validation subjects, whose "
        "checkpoint is used. Where the best is the last look, more updates might have given more"
    )
    heads = ["Training", "Updates", "Best validation Dice", "Last validation Dice"]
    return table_markdown(pd.DataFrame(lines, columns=heads), caption)


def _empty_starts(place: Layout) -> str:
    """Δ Dice of each row of Table 1 where the start finds none of a subject's lesions, and elsewhere."""
    table = pd.read_csv(place.figures / "table1.csv")
    if "dice_difference_missed" not in table or not table.dice_difference_missed_n.max() > 0:
        return ""
    parts = {"where the start finds no lesion": "missed", "elsewhere": "rest"}
    lines = [
        [row_title({"method": row["method"]})]
        + [
            f"{row[f'dice_difference_{part}']:+.3f} (n = {row[f'dice_difference_{part}_n']:.0f})"
            for part in parts.values()
        ]
        for row in table[table.method != CHAIN].to_dict("records")
    ]
    caption = "Δ Dice to PD-DDPM by what the pre-segmentation found"
    return table_markdown(pd.DataFrame(lines, columns=["Method", *(f"Δ {part}" for part in parts)]), caption)


def _starts_in_order(place: Layout) -> str:
    """Whether the start that was best on validation was best on the test subjects: else C7 has not been put to test."""
    table = pd.read_csv(place.figures / "table2.csv").set_index("start").preseg_dice
    better = table[table > table["best"]]
    if better.empty:
        return ""
    names = " and ".join(f"{start_title(start)} ({dice:.3f})" for start, dice in better.items())
    return (
        f"The checkpoints were chosen as better and worse on the validation subjects; on the test subjects {names} "
        f"lie{'s' if len(better) == 1 else ''} above the best ({table['best']:.3f}). So these rows say little of how "
        f"much a better start is worth, and nor does the first row of C7."
    )


def _every_count(place: Layout) -> str:
    """Mean Dice of every row of notebook 10 by its number of calls."""
    scores = records.read_table(place.results / "fewer_calls_scores.csv")
    dice = scores[(scores.metric == "dice") & (scores.split == "test")]
    several = dice.groupby("method")["rule"].nunique() > 1
    titles = [_titled(row, several[row["method"]]) for row in dice.to_dict("records")]
    wide = dice.assign(Row=titles).pivot_table(index="Row", columns="calls", values="value", sort=False)
    told = wide[sorted(wide)].map(lambda value: "–" if pd.isna(value) else f"{value:.3f}")
    told.columns = [f"{calls:g}" for calls in told]
    return table_markdown(
        told.reset_index(), "Mean Dice by the network calls of a member's chain (0: one call, and no chain)"
    )


def _titled(row: dict, by_rule: bool) -> str:
    """A row without its number of calls, by its rule where the method was tried with several."""
    every = row["rule"] == "ddpm"  # which is told by its calls
    columns = ["method", *(["rule"] if by_rule else []), *(["calls", "t_prime"] if every else [])]
    return row_title({name: row[name] for name in columns})
