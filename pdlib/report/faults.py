"""What tests put in to do harm, and what came of it: the table of docs/security.md, from results/faults.csv."""

from pathlib import Path

import pandas as pd

from pdlib.evaluation import records
from pdlib.report.tables import table_markdown

COUNTS = ("tried", "survived", "lost")


def parts(path: Path) -> dict[str, str]:
    """The computed part of docs/security.md by its name; a sentence in its place where nobody has counted."""
    if not path.exists():
        return {"faults": "Not counted yet: `make faults` does."}
    rows = records.read_table(path)
    told = by_kind(rows).astype(str).rename(columns=str.capitalize)
    files = rows.groupby("code", sort=False).file.nunique()
    codes = ", ".join(f"{count} at code {code}" for code, count in files.items())
    caption = f"Faults that tests put in, of {rows.file.nunique()} files of tests, each as it last ran: {codes}"
    return {"faults": table_markdown(told, caption).strip()}


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns kind, tried, survived, lost, from those of each test file, and a last row of all kinds."""
    kinds = rows.groupby("kind", sort=False)[[*COUNTS]].sum().reset_index()
    return pd.concat([kinds, pd.DataFrame([{"kind": "all", **kinds[[*COUNTS]].sum()}])], ignore_index=True)
