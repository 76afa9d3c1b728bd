"""Faults are counted as they are put in: by kind and file, over processes and sessions, lost where a test fails."""

import subprocess
import sys

import pandas as pd
import pytest
from faults import KINDS, add

from pdlib.evaluation import records
from pdlib.paths import FAULTS, ROOT
from pdlib.report import faults as report

FIRST, SECOND = KINDS[:2]
TESTS = f"""
import pytest
from hypothesis import given, settings, strategies as st

@pytest.mark.fault({FIRST!r})
@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_each(number):
    assert number != 2

@pytest.mark.fault({FIRST!r})
def test_several(record_property):
    record_property("faults", 20)

@pytest.mark.fault({SECOND!r})
@settings(derandomize=True, max_examples=12, database=None)
@given(st.integers())
def test_drawn(number):
    pass

@pytest.fixture
def broken():
    yield
    raise OSError

@pytest.mark.fault({SECOND!r})
def test_it_breaks_afterwards(broken, record_property):
    record_property("faults", 4)

@pytest.mark.fault({SECOND!r})
def test_nothing_was_put_in():
    pytest.skip("no disk")

def test_of_something_else():
    pass
"""
COUNTED = {(FIRST, "test_a.py"): (23, 22, 1), (SECOND, "test_a.py"): (16, 12, 4)}


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Run pytest over test files in a folder of their own; returns what it prints."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-p", "faults", "-q", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    return run


def counted(path):
    rows = records.read_table(path).set_index(["kind", "file"])
    return {row: tuple(counts) for row, *counts in rows[["tried", "survived", "lost"]].itertuples()}


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_what_was_tried_survived_and_was_lost(session, tmp_path, processes):
    (tmp_path / "test_a.py").write_text(TESTS)
    said = session("--faults", "faults.csv", *processes)
    assert counted(tmp_path / "faults.csv") == COUNTED
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert f"{FIRST} 23 22 1" in lines and f"{SECOND} 16 12 4" in lines and "all 39 34 5" in lines


def test_a_session_without_faults_writes_no_table_and_one_of_a_strange_kind_runs_no_test(session, tmp_path):
    (tmp_path / "test_a.py").write_text(TESTS)
    assert "1 passed" in session("--faults", "faults.csv", "-k", "something_else")
    (tmp_path / "test_a.py").write_text(TESTS.replace(FIRST, "kil"))
    assert "passed" not in session("--faults", "faults.csv")
    assert not (tmp_path / "faults.csv").exists()


def put(path, *found, ran=()):
    table = pd.DataFrame(found, columns=["kind", "file", "tried", "survived", "lost"])
    add(path, table, {*table.file, *ran})


def test_files_add_up_and_one_that_runs_again_counts_anew(tmp_path):
    path = tmp_path / "faults.csv"
    put(path, (FIRST, "a.py", 3, 3, 0), (SECOND, "a.py", 1, 0, 1))
    put(path, (FIRST, "b.py", 2, 2, 0))
    put(path, (FIRST, "a.py", 4, 4, 0))
    assert counted(path) == {(FIRST, "a.py"): (4, 4, 0), (FIRST, "b.py"): (2, 2, 0)}
    put(path, (FIRST, "a.py", 4, 4, 0), ran=["b.py"])
    assert counted(path) == {(FIRST, "a.py"): (4, 4, 0)}, "b.py puts in no faults any more"


def test_rows_tell_the_code_that_they_are_of(tmp_path, monkeypatch):
    path = tmp_path / "faults.csv"
    for file, digit, dirty in (("a.py", "1", False), ("b.py", "1", False), ("b.py", "2", True)):
        monkeypatch.setattr(records, "git_state", lambda root, of=(digit, dirty): {"sha": of[0] * 40, "dirty": of[1]})
        put(path, (FIRST, file, 1, 1, 0))
    assert [*records.read_table(path).set_index("file").code.items()] == [
        ("a.py", "g" + "1" * 10),
        ("b.py", "g" + "2" * 10 + "+"),
    ]
    assert f"1 at code g{'1' * 10}, 1 at code g{'2' * 10}+" in report.parts(path)["faults"]


def test_the_committed_rows_are_of_tests_that_there_are():
    if not FAULTS.exists():
        pytest.skip("`make faults` has not counted any")
    assert [file for file in records.read_table(FAULTS).file if not (ROOT / file).is_file()] == []


def test_the_page_shows_each_kind_with_its_sum(tmp_path):
    path = tmp_path / "faults.csv"
    assert report.parts(path)["faults"].startswith("Not counted yet")
    put(path, (FIRST, "a.py", 3, 2, 1), (FIRST, "b.py", 20, 20, 0), (SECOND, "a.py", 150, 150, 0))
    shown = report.parts(path)["faults"]
    assert "of 2 files of tests" in shown and f"| {FIRST} | 23 | 22 | 1 |" in shown
    assert shown.endswith("| all | 173 | 172 | 1 |")
