"""`make workshop`: each notebook as a student's sheet and as a solved one, and a run of what is solved.

PDLIB_NOTEBOOKS, in the environment, names some notebooks or their numbers; unasked it is all of them, at lesson values.
`python -m pdlib.workshop times` writes into results/ how long they took.
"""

import ast
import copy
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from pdlib.evaluation import records
from pdlib.paths import NOTEBOOKS, ROOT, RUN_TIMES, write_whole
from pdlib.workflow import NotebookFailed, run_notebook

PROFILE = "lesson"  # which the parameters cell of every notebook names
WORKSHOP = ROOT / "runs" / "workshop"
STUDENTS, SOLVED, EXECUTED = "students", "solved", "executed"  # folders below it
EXERCISE, SOLUTION = "exercise", "solution"  # tags of cells


def write_sheets(names: Sequence[str], folder: Path) -> None:
    """Write both sheets of notebooks below a folder. ValueError names every exercise that is not as it has to be."""
    notebooks = {name: nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4) for name in names}
    if found := [f"{name}: {fault}" for name, notebook in notebooks.items() for fault in faults(notebook)]:
        raise ValueError("\n".join(found))
    for name, notebook in notebooks.items():
        for kind, sheet in ((STUDENTS, student_sheet(notebook)), (SOLVED, notebook)):
            path = folder / kind / f"{name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, nbformat.writes(sheet))


def faults(notebook: NotebookNode) -> Iterator[str]:
    """What is wrong with a notebook's exercises.

    Each is followed by its solution, which asserts something; no other cell needs what a solution makes.
    """
    cells = notebook.cells
    for before, cell in zip([None, *cells], [*cells, None], strict=True):
        asked = before is not None and EXERCISE in _tags(before)
        solved = cell is not None and SOLUTION in _tags(cell) and cell.cell_type == "code"
        if asked and not solved:
            yield f"no solution follows the exercise {_first_line(before)!r}"
        elif solved and not asked:
            yield f"no exercise stands before the solution {_first_line(cell)!r}"
    for number, cell in enumerate((cell for cell in cells if SOLUTION in _tags(cell)), start=1):
        if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source))):
            yield f"the solution of exercise {number} asserts nothing"
    yield from (f"{name!r} of a solution is needed by {_first_line(cell)!r}" for name, cell in _needed(cells))


def student_sheet(notebook: NotebookNode) -> NotebookNode:
    """A notebook with a place for each solution, and there, as comments, which names to set and what has to hold."""
    sheet = copy.deepcopy(notebook)
    for number, cell in enumerate((cell for cell in sheet.cells if SOLUTION in _tags(cell)), start=1):
        solution, lines = ast.parse(cell.source), cell.source.splitlines()
        checks = sorted(
            (node for node in ast.walk(solution) if isinstance(node, ast.Assert)), key=lambda node: node.lineno
        )
        told = [line[one.col_offset :] for one in checks for line in lines[one.lineno - 1 : one.end_lineno]]
        names = ", ".join(_set_and_checked(solution, checks))
        stub = [f"# TODO: your lines for exercise {number}."]
        stub += [f"# Call your results {names}: the check below reads them."] if names else []
        stub += ["# Then remove the # from the check, and run the cell again:"] if told else []
        cell.source = "\n".join([*stub, *(f"# {line}" for line in told)])
        cell.metadata["tags"] = [tag for tag in _tags(cell) if tag != SOLUTION]
    return sheet


def _set_and_checked(solution: ast.Module, checks: Sequence[ast.Assert]) -> list[str]:
    """The names that a solution sets and its checks read, in the order in which it sets them."""
    within = {id(node) for check in checks for node in ast.walk(check)}
    found = [node for node in ast.walk(solution) if id(node) not in within]
    stored = [
        (node.lineno, node.id) for node in found if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    stored += [(node.lineno, node.name) for node in found if isinstance(node, ast.FunctionDef)]
    reads = (node for check in checks for node in ast.walk(check) if isinstance(node, ast.Name))
    read = {node.id for node in reads if isinstance(node.ctx, ast.Load)}
    return [*dict.fromkeys(name for _, name in sorted(stored) if name in read)]


def _needed(cells: Sequence[NotebookNode]) -> Iterator[tuple[str, NotebookNode]]:
    """Names that a solution alone has set, and a later cell beside the solutions that reads each."""
    known, own = set(), set()
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        if SOLUTION in _tags(cell):
            own |= stored - known
            continue
        read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        known |= stored
        yield from ((name, cell) for name in sorted(own & read - known))


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _first_line(cell: NotebookNode) -> str:
    return cell.source.partition("\n")[0]


def run_sheet(name: str, folder: Path, parameters: dict) -> str:
    """Run a solved sheet; what went wrong, one line and where to look, or nothing."""
    executed = folder / EXECUTED / f"{name}.ipynb"
    try:
        run_notebook(name, executed, parameters, folder=folder / SOLVED)
    except NotebookFailed as error:
        cells = nbformat.read(executed, as_version=4).cells
        at = next((i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("exception")), None)
        if at is None:
            return str(error)
        number = sum(SOLUTION in _tags(cell) for cell in cells[: at + 1])
        where = f"the solution of exercise {number}" if SOLUTION in _tags(cells[at]) else "a cell"
        what = str(error).partition("\n")[0].partition(": ")[2]
        return f"{name}: {where}, {_first_line(cells[at])!r}, fails with {what}\n  the executed copy: {executed}"
    return ""


def durations(folder: Path) -> pd.DataFrame:
    """How long the executed sheets of a folder took: profile, notebook, seconds, as papermill measured them.

    ValueError: none has run to its end.
    """
    copies = [nbformat.read(path, as_version=4) for path in sorted((folder / EXECUTED).glob("*.ipynb"))]
    told = [copy.metadata.papermill for copy in copies]
    rows = [
        {"profile": one.parameters.profile, "notebook": Path(one.input_path).stem, "seconds": round(one.duration, 1)}
        for one in told
        if one.duration and not one.exception
    ]
    if not rows:
        raise ValueError(f"{folder / EXECUTED}: no notebook has run to its end; first `make workshop`")
    return pd.DataFrame(rows)


def write_times(folder: Path) -> None:
    """Write how long the executed sheets took into results/, for README and the teacher's page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stamp = records.stamp(
        root=ROOT, device=f"{cores} cores", seed=0, data_fingerprint="", phantom=True, profile=PROFILE
    )
    records.write_table(RUN_TIMES, durations(folder), stamp)


def check(names: Sequence[str], folder: Path = WORKSHOP) -> int:
    """Write the sheets, and run the solved ones; how many failed."""
    write_sheets(names, folder)
    failed = []
    for number, name in enumerate(names, start=1):
        print(f"{name}, {number} of {len(names)}", flush=True)
        failed += [fault] if (fault := run_sheet(name, folder, {"profile": PROFILE})) else []
    print(*failed, sep="\n", end="\n" * bool(failed), file=sys.stderr)
    print(f"{len(names) - len(failed)} of {len(names)} solved sheets pass; the students' are in {folder / STUDENTS}")
    return len(failed)


def chosen(asked: str) -> list[str]:
    """The notebooks that are asked for by name or by number, such as "00 05_sweep_t_prime". ValueError for others."""
    known = {path.stem: path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    by = known | {name.partition("_")[0]: name for name in known}
    by |= {number.lstrip("0"): name for number, name in by.items() if number.lstrip("0").isdecimal()}
    if unknown := [name for name in asked.split() if name not in by]:
        raise ValueError(f"NOTEBOOKS={asked}: no notebook {unknown[0]!r}: choose of {', '.join(known)}")
    return [by[name] for name in asked.split()] or [*known]


def main(arguments: Sequence[str]) -> int:
    """Do what `make workshop` asks for; what cannot be done is told on stderr, and code 2."""
    try:
        if list(arguments) == ["times"]:
            write_times(WORKSHOP)
            return 0
        return min(1, check(chosen(os.environ.get("PDLIB_NOTEBOOKS", ""))))
    except (ValueError, OSError) as error:
        print(f"make workshop: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
