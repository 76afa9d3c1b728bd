"""README says what results/ say, and the committed results are whole."""

import pytest

from pdlib import records, report
from pdlib.paths import ROOT, layout

COMMITTED = layout("cpu", str(ROOT))


def test_readme_quotes_the_committed_results():
    assert report.numbers(COMMITTED) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_committed_tables_are_those_that_were_stamped():
    tables = sorted(COMMITTED.results.rglob("*.csv"))
    assert len(tables) >= 10
    for table in tables:
        stamp = records.read_stamp(table)
        assert stamp["profile"] == "cpu" and stamp["git"]["sha"] and not stamp["git"]["dirty"]


def test_a_readme_without_the_block_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no block"):
        report.update(readme, COMMITTED)
