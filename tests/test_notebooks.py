"""Every notebook keeps the rules: short cells of one thought, few parameters, nothing in git but text and code."""

import ast
import subprocess
import sys

import nbformat
import pytest

from pdlib.graph import graph
from pdlib.lab import cleaned
from pdlib.paths import NOTEBOOKS, ROOT
from pdlib.profiles import load_profile
from pdlib.workflow import check_parameters
from pdlib.workshop import PROFILE

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
MOST_CELLS = 16  # of code, beside the exercises' solutions
MOST_LINES = 12  # of a cell, beside its imports
MOST_ASSERTS_LINES = 20  # of the cell that checks what was seen
MOST_DEF_LINES = 10
MOST_PARAMETERS = 6  # beside the three that every notebook has


def text(name):
    return (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")


def code_cells(name):
    return [cell for cell in nbformat.reads(text(name), as_version=4).cells if cell.cell_type == "code"]


def parameters(name):
    """The one parameters cell, which is the first, and the values that it sets."""
    (cell,) = [cell for cell in code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    assert cell == code_cells(name)[0]
    body = ast.parse(cell.source).body
    assert all(isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) for line in body), cell.source
    return {line.target.id: ast.literal_eval(line.value) for line in body}


def lines_beside_imports(source):
    """The lines of a cell but those of its import statements and blank ones."""
    imports = [line for line in ast.parse(source).body if isinstance(line, ast.Import | ast.ImportFrom)]
    imported = {number for line in imports for number in range(line.lineno, line.end_lineno + 1)}
    return [line for number, line in enumerate(source.splitlines(), 1) if line.strip() and number not in imported]


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_few_and_short(name):
    cells = code_cells(name)
    assert len([cell for cell in cells if "solution" not in cell.metadata.get("tags", [])]) <= MOST_CELLS
    *others, last = cells
    for cell in others:
        assert len(lines_beside_imports(cell.source)) <= MOST_LINES, cell.source
    assert len(last.source.splitlines()) <= MOST_ASSERTS_LINES
    for node in (node for cell in cells for node in ast.walk(ast.parse(cell.source))):
        assert not isinstance(node, ast.ClassDef), node.name
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_DEF_LINES, node.name


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_in_asserts_and_in_a_sentence(name):
    ends = [ast.parse(cell.source).body for cell in code_cells(name)[-2:]]
    assert any(isinstance(line, ast.Assert) for body in ends for line in body)
    told = ends[-1][-1]
    assert ast.unparse(told).startswith("print("), "what was seen"
    assert any(isinstance(node, ast.FormattedValue) for node in ast.walk(told)), "computed from the numbers"


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_few_and_those_of_a_lesson(name):
    found = parameters(name)
    assert found["profile"] == PROFILE and found["out"] == "" and found["changes"] == {}
    assert len(found) <= 3 + MOST_PARAMETERS
    check_parameters(NOTEBOOKS / f"{name}.ipynb", found)
    with pytest.raises(ValueError, match="unknown parameters profil;"):
        check_parameters(NOTEBOOKS / f"{name}.ipynb", {"profil": "smoke"})


def test_the_graph_s_jobs_are_runs_of_notebooks_and_every_notebook_is_a_job():
    jobs = {job.partition(".")[0] for profile in ("paper", "smoke") for job in graph(load_profile(profile))}
    assert jobs | {"13_all_folds"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_come_from_the_report(name):
    trees = [ast.parse(cell.source) for cell in code_cells(name)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.partition(".")[0] in ("matplotlib", "seaborn", "plotly")]


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_drawn_from_what_was_written(name):
    """In memory a number has more digits than in results/, from which the figure is drawn again."""
    for tree in [ast.parse(cell.source) for cell in code_cells(name)]:
        calls = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        ]
        dropped = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "run.write"]
        assert not [one for one in dropped if "histor" in one], "history = run.write(..., history)"


@pytest.mark.parametrize("name", NAMES)
def test_git_holds_text_and_code_alone(name):
    assert text(name) == cleaned(text(name)), "python -m pdlib.lab clean < NOTEBOOK"
    ids = [cell["id"] for cell in nbformat.reads(text(name), as_version=4).cells]
    assert len(ids) == len(set(ids))
    nbformat.validate(nbformat.reads(text(name), as_version=4))


def test_nbstripout_finds_nothing_to_strip():
    checked = ["nbstripout", "--verify", "--keep-id", *map(str, sorted(NOTEBOOKS.glob("*.ipynb")))]
    done = subprocess.run([sys.executable, "-m", *checked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("format", "--check"), ("check",)])
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(NOTEBOOKS)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
