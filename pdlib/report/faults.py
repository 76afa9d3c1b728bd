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
    rows, code = records.read_table(path), records.read_stamp(path)["git"]["sha"] or "unknown"
    told = by_kind(rows).astype(str).rename(columns=str.capitalize)
    caption = f"Faults that tests put in, of {rows.file.nunique()} files of tests, at code {code[:10]}"
    return {"faults": table_markdown(told, caption).strip()}


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns kind, tried, survived, lost, from those of each test file, and a last row of all kinds."""
    kinds = rows.groupby("kind", sort=False)[[*COUNTS]].sum().reset_index()
    return pd.concat([kinds, pd.DataFrame([{"kind": "all", **kinds[[*COUNTS]].sum()}])], ignore_index=True)
