"""What the paper's study costs on a GPU: the tables of docs/scale.md, from what `pdlib.study.scale` counts."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pdlib.evaluation import records

ROOM = {
    "disk_gib": ("Disk, GiB", lambda row: f"{row.disk_gib:.0f}"),
    "memory_gib": ("Memory, GiB", lambda row: f"{row.memory_gib:.0f}"),
}
WORK = {
    "jobs": ("Jobs", lambda row: f"{row.jobs:.0f}"),
    "update_eflop": ("Updates, EFLOP", lambda row: f"{row.update_eflop:.3g}"),
    "call_eflop": ("Calls, EFLOP", lambda row: f"{row.call_eflop:.3g}"),
}
NETWORK = {
    "million_parameters": ("Million parameters", lambda row: f"{row.million_parameters:.3g}"),
    "tflop_update": ("An update, TFLOP", lambda row: f"{row.tflop_update:.3g}"),
    "gflop_call": ("A call on a slice, GFLOP", lambda row: f"{row.gflop_call:.3g}"),
    "gpu_gib": ("Training, GiB on the GPU", lambda row: f"{row.gpu_gib:.1f}"),
}


def parts(path: Path) -> dict[str, str]:
    """The computed parts of docs/scale.md by their names."""
    rows, stamp = records.read_table(path), records.read_stamp(path)
    spent = _hours(rows, stamp)
    layout = {
        "figures": ("part", "Of the paper", WORK | spent),
        "points": ("point", "T'", {"call_eflop": WORK["call_eflop"]} | spent),
        "growth": ("design", "Study", {"jobs": WORK["jobs"]} | spent | ROOM),
        "networks": ("network", "Network", NETWORK),
    }
    told = {name: _table(rows[rows.kind == kind], *how) for name, (kind, *how) in layout.items()}
    return {"basis": _basis(stamp), "jobs": _jobs(rows[rows.kind == "job"], spent)} | told


def _jobs(rows: pd.DataFrame, spent: dict[str, tuple[str, Callable]]) -> str:
    """The longest job of each notebook, a column for each number of subjects."""
    (head, told), *_ = spent.values()
    few, many = (rows[rows.subjects == subjects].set_index("name") for subjects in sorted(rows.subjects.unique()))
    columns = {
        "few": (f"{head}, {few.subjects.iloc[0]:.0f} subjects", lambda row: told(few.loc[row["name"]])),
        "many": (f"{many.subjects.iloc[0]:.0f} subjects", lambda row: told(many.loc[row["name"]])),
    }
    return _table(many.reset_index(), "Notebook", columns)


def _basis(stamp: dict) -> str:
    """What the hours stand on."""
    slices, height, width = stamp["head"]
    about = (
        f"Counted for profile `{stamp['profile']}`, a subject of {slices} slices of {height} x {width}, the brain's "
        f"window of phantoms on the grids of the three training scanners. A phantom has no skull: of a scan that has "
        f"one the window is larger, and with it calls, their hours and the processor's memory; updates and disk are not"
    )
    if stamp["measured"]:
        return f"{about}. Hours: of {stamp['device']}, at the rate that `make bench` measured there for a step."
    low, high = stamp["shares"]
    peaks = ", ".join(f"{name} {peak / 1e12:.0f}" for name, peak in stamp["peaks"].items())
    return (
        f"{about}. **An estimate: no GPU has run it.** Hours: at {high:.0%} and at {low:.0%} of the peak (bfloat16 "
        f"TFLOP a second by the data sheets: {peaks}), a range that is assumed, not measured."
    )


def _hours(rows: pd.DataFrame, stamp: dict) -> dict[str, tuple[str, Callable]]:
    if stamp["measured"]:
        return {"gpu_hours": ("GPU hours", lambda row: _rounded(row.gpu_hours))}

    def between(name: str) -> Callable:
        return lambda row: " to ".join(_rounded(row[f"{name}_hours_{end}"]) for end in ("low", "high"))

    return {name: (f"Hours of one {name}", between(name.lower())) for name in stamp["peaks"]}


def _rounded(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{float(f'{hours:.2g}'):,.0f}"


def _table(rows: pd.DataFrame, first: str, columns: dict[str, tuple[str, Callable]]) -> str:
    heads = [first, *(head for head, _ in columns.values())]
    cells = [[row["name"], *(told(row) for _, told in columns.values())] for _, row in rows.iterrows()]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
