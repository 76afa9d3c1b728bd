"""README and docs/ say what results/ say, and the committed results are whole."""

import pandas as pd
import pytest
from conftest import rows

from pdlib.evaluation import records
from pdlib.methods import CHAIN
from pdlib.paths import DOCS, ROOT, Layout
from pdlib.profiles import load_profile
from pdlib.report import readme as report
from pdlib.report import tables
from pdlib.report.findings import findings
from pdlib.report.values import missed_starts
from pdlib.study.claims import TABLES, ledger, read_scores

COMMITTED = report.quoted(ROOT)
STAMP = {"git": {"sha": "0123456789ab", "dirty": False}, "packages": {"torch": "2"}, "device": "cpu", "seed": 0}
STAMP |= {"data_fingerprint": "f" * 64, "changes": {"chain": {"eta": 0}}}


def test_every_page_quotes_the_committed_results():
    pages = report.parts(COMMITTED)
    assert {page.relative_to(DOCS).name for page in pages if page.is_relative_to(DOCS)} == {
        *("results.md", "scale.md", "scan.md", "security.md", "speed.md", "teaching.md")
    }
    assert ROOT / "README.md" in pages
    for page, texts in pages.items():
        written = page.read_text(encoding="utf-8")
        for name, text in texts.items():
            assert text and f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->" in written, f"{page.name}: {name}"
    assert "| Dice | Δ Dice | p (Holm) | HD95 (voxels) | Jaccard | Lesion F1 |" in report.numbers(COMMITTED)


def test_committed_tables_are_those_that_were_stamped():
    tables = [file for file in sorted(COMMITTED.results.rglob("*.csv")) if len(file.suffixes) == 1]  # .2.csv goes on
    stamps = {table: records.read_stamp(table) for table in tables}
    assert len(stamps) >= 10
    for stamp in stamps.values():
        assert stamp["profile"] == COMMITTED.profile and stamp["phantom"] is True
        assert stamp["git"]["sha"] and not stamp["git"]["dirty"]
    own = {path for path in stamps if path.name != "plan.csv" and COMMITTED.confirmation not in path.parents}
    for made in (own, {path for path in stamps if path.name != "plan.csv"} - own):
        assert len({stamps[path]["git"]["sha"] for path in made}) <= 1, "one run of one state of the code made them all"


def test_committed_tables_follow_from_the_committed_scores():
    profile = load_profile(COMMITTED.profile)
    scores = {name: records.read_table(COMMITTED.results / f"{name}.csv") for name in TABLES}
    judged = read_scores(COMMITTED)
    settings = {"presegmenter": profile.comparison.presegmenter, "few_calls": profile.fewer_calls.few_calls}
    statistics, interval = profile.statistics, profile.interval
    again = ledger(judged, **settings, statistics=statistics, interval=interval)
    kept = pd.read_csv(COMMITTED.figures / "claims.csv")
    pd.testing.assert_frame_equal(again, kept, rtol=1e-4, atol=2e-6, check_dtype=False)  # both round to six digits
    table = pd.read_csv(COMMITTED.figures / "table1.csv").drop(columns="remark", errors="ignore")  # words, no score
    metrics = ["dice", "hd95_voxel", "hd95_mm", "jaccard", "lesion_f1", "uncertainty"]
    how = {"rows": [{"method": name} for name in profile.comparison.methods], "baseline": {"method": CHAIN}}
    missed = missed_starts(scores["table1_scores"], profile.comparison.presegmenter)
    again = tables.table1(scores["table1_scores"], **how, metrics=metrics, interval=interval, missed=missed)
    pd.testing.assert_frame_equal(again, table, rtol=1e-4, atol=2e-5, check_dtype=False)
    said = findings(
        kept, scores["table1_scores"], scores["agreement_scores"], margin=statistics.margin, interval=interval
    )
    text = (COMMITTED.figures / "findings.md").read_text(encoding="utf-8")
    assert all(f"{i}. {sentence}\n" in text for i, sentence in enumerate(said, start=1))


@pytest.fixture
def place(tmp_path):
    """Scores and tables of one small run: what `numbers` reads, without what the profile may leave out."""
    place = Layout(tmp_path, "cpu")
    for name in ("table1_scores", "preseg_scores"):
        records.write_table(place.results / f"{name}.csv", rows("unet", [0.5]), STAMP)
    line = {"method": "unet", "n": 12, "dice": 0.5, "dice_low": 0.4, "dice_high": 0.6, "lesion_f1": 0.3}
    line |= {"lesion_f1_low": 0.2, "lesion_f1_high": 0.4}
    claim = {"number": "C2", "claim": "PD-DDPM beats its pre-segmenter", "verdict": "holds"}
    claim |= {"estimate": 0.02, "estimate_low": 0.01, "estimate_high": 0.031}
    tables.save_table(pd.DataFrame([line, line | {"method": "x0_jump"}]), "Table 1, ours", place.figures / "table1")
    tables.save_table(
        pd.DataFrame([{"method": "unet", "GE3T (n = 4)": 0.5}]), "By site", place.figures / "table1_by_site"
    )
    starts = pd.DataFrame({"start": ["checkpoint_1", "best"], "dice": 0.5, "preseg_dice": [0.3, 0.4]})
    tables.save_table(starts, "Table 2", place.figures / "table2")
    tables.save_table(pd.DataFrame([claim]), "The claims", place.figures / "claims")
    said = "What this run found (phantom, 12 subjects):\n\n1. Enough.\n4. Matching: it helps.\n5. What to use: that.\n"
    (place.figures / "findings.md").write_text(said, encoding="utf-8")
    return place


def test_the_block_says_what_made_its_numbers_and_what_they_are(place):
    block = report.numbers(place)
    assert block.startswith("## What was found\n\nWhat this run found (phantom, 12 subjects):\n\n1. Enough.\n")
    assert 'Scores of profile `cpu` with {"chain": {"eta": 0}} from code 0123456789, device cpu, torch 2,' in block
    assert "## Table 1\n\nTable 1, ours\n" in block and "Table 1 as the paper prints it (patients)" in block
    assert "| x0 jump | 0.500 [0.400, 0.600] | 0.300 |" in block, "of the scores beside Dice the means alone"
    assert "| checkpoint 1 | 0.500 | 0.300 |" in block
    assert "Verdicts of 1 rows: holds 1 (C2); does not hold 0; undecided 0." in block
    assert "Optic disc" not in block


def test_rows_on_different_subjects_keep_their_numbers(place):
    table = pd.read_csv(place.figures / "table1.csv")
    assert "| n |" not in report.numbers(place)
    tables.save_table(table.assign(n=[198, 60]), "Table 1, ours", place.figures / "table1")
    assert "| x0 jump | 60 | 0.500" in report.numbers(place)


def test_the_reference_study_is_quoted_as_soon_as_it_is_complete(place):
    night = Layout(place.out, "night")
    records.write_table(night.results / "plan.csv", pd.DataFrame({"number": ["C1"]}), STAMP)
    records.write_table(night.results / "table1_scores.csv", rows("unet", [0.5]), STAMP)
    assert report.quoted(place.out) == place, "a run under way is not quoted"
    tables.save_table(pd.DataFrame({"number": ["C1"]}), "The claims", night.figures / "claims")
    assert report.quoted(place.out) == night


def test_scores_of_two_states_of_the_code_are_not_quoted_as_one(place):
    other = STAMP | {"git": {"sha": "fedcba", "dirty": False}}
    records.write_table(place.results / "preseg_scores.csv", rows("unet", [0.5]), other)
    with pytest.raises(ValueError, match=r"preseg_scores\.csv: made by other code"):
        report.numbers(place)


@pytest.mark.parametrize("text", ["# Nothing here\n", "<!-- rows: end --> <!-- rows: begin -->\n"])
def test_a_page_without_the_marks_is_refused_and_stays(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="has no block between <!-- rows: begin -->"):
        report.update(page, {"rows": "new"})
    assert page.read_text(encoding="utf-8") == text


def test_a_page_keeps_what_is_written_by_hand(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("By hand\n<!-- a: begin -->\nold\n<!-- a: end -->\n<!-- b: begin -->\n<!-- b: end -->\nEnd\n")
    report.update(page, {"a": "new", "b": "more"})
    expected = "By hand\n<!-- a: begin -->\nnew\n<!-- a: end -->\n<!-- b: begin -->\nmore\n<!-- b: end -->\nEnd\n"
    assert page.read_text(encoding="utf-8") == expected
