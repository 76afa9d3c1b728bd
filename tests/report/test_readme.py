"""README says what results/ say, and the committed results are whole."""

import pandas as pd
import pytest

from pdlib.evaluation import records
from pdlib.paths import ROOT, layout
from pdlib.report import readme as report
from pdlib.report import tables
from pdlib.study.claims import TABLES, ledger
from pdlib.workflow import load_profile

COMMITTED = layout("cpu", str(ROOT))


def test_readme_quotes_the_committed_results():
    block = report.numbers(COMMITTED)
    assert "| Dice | Δ Dice | p (Holm) | HD95 (voxels) | Jaccard | Lesion F1 |" in block
    assert block in (ROOT / "README.md").read_text(encoding="utf-8")


def test_committed_tables_are_those_that_were_stamped():
    stamps = [records.read_stamp(table) for table in sorted(COMMITTED.results.rglob("*.csv"))]
    assert len(stamps) >= 10
    for stamp in stamps:
        assert stamp["profile"] == "cpu" and stamp["phantom"] is True
        assert stamp["git"]["sha"] and not stamp["git"]["dirty"]
    assert len({stamp["git"]["sha"] for stamp in stamps}) == 1, "one run of one state of the code made them all"


def test_committed_tables_follow_from_the_committed_scores():
    profile = load_profile("cpu")["04_compare_methods"]
    interval = {name: profile[name] for name in ("resamples", "confidence", "seed")}
    scores = {name: records.read_table(COMMITTED.results / f"{name}.csv") for name in TABLES}
    settings = {name: load_profile("cpu")["11_claims"][name] for name in ("presegmenter", "few_calls", "margin")}
    kept = pd.read_csv(COMMITTED.figures / "claims.csv")
    again = ledger(scores, **settings, interval=interval)
    pd.testing.assert_frame_equal(again, kept, rtol=1e-4, atol=2e-6, check_dtype=False)  # both round to six digits
    table = pd.read_csv(COMMITTED.figures / "table1.csv")
    metrics = ["dice", "hd95_voxel", "hd95_mm", "jaccard", "lesion_f1", "uncertainty"]
    how = {"methods": profile["methods"], "baseline": "pd_ddpm", "metrics": metrics, "interval": interval}
    again = tables.table1(scores["table1_scores"], **how)
    pd.testing.assert_frame_equal(again, table, rtol=1e-4, atol=2e-5, check_dtype=False)


def test_a_readme_without_the_block_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no block"):
        report.update(readme, COMMITTED)
