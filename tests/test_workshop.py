"""Sheets for students and teachers: nothing of a solution is left in one, and the other passes its own asserts."""

import json

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from pdlib import workshop
from pdlib.evaluation import records
from pdlib.paths import NOTEBOOKS, RUN_TIMES

LONGEST = 180  # seconds that a lesson may take on two cores
SECRET = "tripled = 3 * number"


def sheet(*solutions, after="print(number)"):
    """A lesson with an exercise for each solution."""
    cells = [
        new_markdown_cell("# A lesson"),
        new_code_cell('profile: str = "lesson"\nout: str = ""', metadata={"tags": ["parameters"]}),
        new_code_cell("number = 2"),
        new_markdown_cell("## Exercises"),
    ]
    for solution in solutions:
        cells.append(new_markdown_cell("**1. Triple it.**", metadata={"tags": ["exercise"]}))
        cells.append(new_code_cell(solution, metadata={"tags": ["solution"]}))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=[*cells, new_code_cell(after)], metadata=metadata)


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Write a lesson where the notebooks are."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.setattr(workshop, "NOTEBOOKS", notebooks)
    return lambda notebook, name="05_sweep_t_prime": nbformat.write(notebook, notebooks / f"{name}.ipynb")


def test_both_sheets_run_to_the_end_and_the_student_s_holds_no_solution(lesson, tmp_path, capsys):
    lesson(sheet(f"{SECRET}\nassert tripled == (\n    6\n), 'six'", "for i in (1, 2):\n    assert i"))
    assert workshop.check(["05_sweep_t_prime"], tmp_path / "w") == 0
    out = capsys.readouterr().out
    assert "05_sweep_t_prime, 1 of 1" in out and "1 of 1 solved sheets pass" in out
    text = (tmp_path / "w" / "students" / "05_sweep_t_prime.ipynb").read_text()
    student = nbformat.reads(text, as_version=4)
    nbformat.validate(student)
    assert SECRET not in text and '"solution"' not in text and "Triple it" in text
    first, second = (cell.source for cell in student.cells if cell.source.startswith("# TODO"))
    assert first.splitlines()[1:] == [
        "# Call your results tripled: the check below reads them.",
        "# Then remove the # from the check, and run the cell again:",
        *("# assert tripled == (", "#     6", "# ), 'six'"),
    ]
    check = ["# Then remove the # from the check, and run the cell again:", "# assert i"]
    assert second.splitlines() == [
        "# TODO: your lines for exercise 2.",
        "# Call your results i: the check below reads them.",
        *check,
    ]
    workshop.run_notebook(
        "05_sweep_t_prime", tmp_path / "done.ipynb", {"profile": "lesson"}, folder=tmp_path / "w" / "students"
    )
    times = workshop.durations(tmp_path / "w")
    assert times[["profile", "notebook"]].to_numpy().tolist() == [["lesson", "05_sweep_t_prime"]]
    assert 0 < times.seconds.item() < 100


def test_a_solution_that_fails_is_named_and_the_others_are_run(lesson, tmp_path, capsys):
    lesson(sheet(f"{SECRET}\nassert tripled == 6", "six = 7\nassert six == 6, 'no six'"))
    lesson(sheet("assert True", after="1 / 0"), "06_ensemble_size")
    assert workshop.check(["05_sweep_t_prime", "06_ensemble_size"], tmp_path / "w") == 2
    out, err = capsys.readouterr()
    first, where, second, _ = err.splitlines()
    assert first == "05_sweep_t_prime: the solution of exercise 2, 'six = 7', fails with AssertionError: no six"
    assert where.endswith("w/executed/05_sweep_t_prime.ipynb")
    assert second == "06_ensemble_size: a cell, '1 / 0', fails with ZeroDivisionError: division by zero"
    assert "0 of 2 solved sheets pass" in out
    with pytest.raises(ValueError, match="no notebook has run to its end"):
        workshop.durations(tmp_path / "w")


def without(notebook, place):
    del notebook.cells[place]
    return notebook


@pytest.mark.parametrize(
    ("notebook", "fault"),
    [
        (sheet(SECRET), "the solution of exercise 1 asserts nothing"),
        (without(sheet("assert 1"), 5), "no solution follows the exercise '**1. Triple it.**'"),
        (without(sheet("assert 1"), 4), "no exercise stands before the solution 'assert 1'"),
        (sheet(f"{SECRET}\nassert 1", after="print(tripled)"), "'tripled' of a solution is needed by 'print(tripled)'"),
    ],
)
def test_what_cannot_be_taught_is_named(lesson, notebook, fault, monkeypatch, capsys):
    lesson(notebook)
    monkeypatch.setenv("PDLIB_NOTEBOOKS", "05")
    assert workshop.main([]) == 2
    assert capsys.readouterr().err == f"make workshop: 05_sweep_t_prime: {fault}\n"


def test_notebooks_are_asked_for_by_name_or_by_number(lesson, monkeypatch, capsys):
    lesson(sheet("assert 1"))
    lesson(sheet("assert 1"), "06_ensemble_size")
    assert workshop.chosen("") == ["05_sweep_t_prime", "06_ensemble_size"]
    assert workshop.chosen("6 05_sweep_t_prime") == ["06_ensemble_size", "05_sweep_t_prime"]
    monkeypatch.setenv("PDLIB_NOTEBOOKS", "06 55")
    assert workshop.main([]) == 2
    assert "NOTEBOOKS=06 55: no notebook '55': choose of 05_sweep" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_every_lesson_can_be_handed_out(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not [*workshop.faults(notebook)]
    for cell in workshop.student_sheet(notebook).cells:
        if cell.source.startswith("# TODO"):
            assert all(line.startswith("#") for line in cell.source.splitlines())


def test_times_are_stamped(lesson, tmp_path, monkeypatch):
    table = tmp_path / "run_times.csv"
    monkeypatch.setattr(workshop, "RUN_TIMES", table)
    rows = pd.DataFrame({"profile": ["lesson"], "notebook": ["00_tour"], "seconds": [61.5]})
    monkeypatch.setattr(workshop, "durations", lambda folder: rows)
    assert workshop.main(["times"]) == 0
    assert pd.read_csv(table)[["profile", "notebook", "seconds"]].equals(rows)
    assert json.loads(table.with_suffix(".stamp.json").read_text())["device"].endswith("cores")


def test_no_lesson_took_longer_than_promised_when_it_was_timed():
    times = records.read_table(RUN_TIMES)
    assert records.read_stamp(RUN_TIMES)["device"] == "2 cores" and set(times.profile) == {workshop.PROFILE}
    assert sorted(times.notebook) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert times.seconds.max() < LONGEST
