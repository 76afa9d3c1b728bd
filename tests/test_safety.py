"""What is read is never run, and what is written takes one door, `paths.replacing`: seen in the source itself."""

import ast
import tokenize
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from pdlib.paths import NOTEBOOKS, ROOT

SOURCES = sorted([*(ROOT / "pdlib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *NOTEBOOKS.glob("*.ipynb")])
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
RUNS_WHAT_IT_READS = {
    *("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "read_pickle"),
    *("unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "Loader"),
}
WRITERS = {  # they write to an argument, or to what they are called on
    *("write_text", "write_bytes", "tofile", "touch", "to_filename", "savefig", "imsave", "imwrite", "save", "savez"),
    *("savez_compressed", "savetxt", "save_file", "memmap", "extractall", "symlink_to", "hardlink_to"),
}
TABLE_WRITERS = {"to_csv", "to_json", "to_html", "to_markdown", "to_parquet", "to_feather"}  # without a path: a text
MOVES = {
    "os": {"replace", "rename", "link", "symlink", "truncate"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move"},
}
OTHER_DOORS = {  # (file, function): why what it writes need not appear whole by the helper
    ("pdlib/paths.py", "replacing"): "the helper itself",
    ("pdlib/inference/outputs.py", "_move_in"): "the files of a result appear together, or those of before come back",
    ("pdlib/inference/outputs.py", "_try_to_write"): "tries whether there is room, and removes what it wrote",
    ("pdlib/book.py", "gather"): "copies into a folder that each build begins anew",
    ("pdlib/book.py", "_bring"): "copies into a folder that each build begins anew",
    ("pdlib/study/held_out_heads.py", "write"): "`Quality.save`, which writes by the helper",
    ("pdlib/data/download.py", "_fetch_one"): "a temporary file of pooch, which gets its name when its SHA-1 is right",
}


def code_of(path: Path) -> str:
    """A module's text, or a notebook's cells without what only IPython understands."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return "\n".join(line for one in code for line in one.splitlines() if not line.lstrip().startswith(("%", "!")))


def called(call: ast.Call) -> tuple[str, str]:
    """What a call calls, and on what."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr, ast.unparse(call.func.value)
    return (call.func.id, "") if isinstance(call.func, ast.Name) else ("", "")


def option(call: ast.Call, name: str) -> object:
    return next((getattr(one.value, "value", "?") for one in call.keywords if one.arg == name), None)


def evaluations(code: str) -> Iterator[str]:
    """Where code would run what it was given as data."""
    for node in ast.walk(ast.parse(code)):
        names = [getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "module", None) or ""]
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        yield from (f"{name}, line {node.lineno}" for name in names if name.partition(".")[0] in RUNS_WHAT_IT_READS)
        if not isinstance(node, ast.Call):
            continue
        name, owner = called(node)
        wrong = {
            name: not owner and name in RUNS_CODE,
            "eval with arguments": name == "eval" and bool(node.args or node.keywords),  # of a DataFrame
            "yaml.load": owner == "yaml" and name in ("load", "load_all"),
            "torch.load": owner == "torch" and name == "load" and option(node, "weights_only") is not True,
            "allow_pickle": option(node, "allow_pickle") not in (None, False),
            "shell": option(node, "shell") not in (None, False),
            "a shell": owner in ("os", "subprocess") and name in ("system", "popen", "getoutput"),
            "a computed query": name == "query" and "Tree" not in owner and not isinstance(node.args[0], ast.Constant),
        }
        yield from (f"{what}, line {node.lineno}" for what, found in wrong.items() if found)


def opens_to_write(call: ast.Call, owner: str) -> bool:
    """Whether an `open` may write: as its mode has it, a constant."""
    if owner in ("Image", "nib", "Run"):
        return False  # they read
    if owner == "os":
        return ast.unparse(call.args[0]) != "os.devnull"
    modes = call.args[1:2] if owner in ("", "gzip", "io") else call.args[:1]
    modes += [one.value for one in call.keywords if one.arg == "mode"]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)


def safe_names(function: ast.AST) -> set[str]:
    """Names of what a `with replacing(...)` has given, of what was opened there, and of files in memory."""
    found = set()
    items = [item for node in ast.walk(function) if isinstance(node, ast.With) for item in node.items]
    for item in (item for item in items if isinstance(item.context_expr, ast.Call) and item.optional_vars):
        name, owner = called(item.context_expr)
        if name == "replacing" or (name == "open" and owner in found):
            found.add(ast.unparse(item.optional_vars))
    for node in (node for node in ast.walk(function) if isinstance(node, ast.Assign)):
        (target, *_), value = node.targets, node.value
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts, strict=False) if both else [(target, value)]
        found |= {ast.unparse(to) for to, one in pairs if isinstance(one, ast.Call) and called(one)[0] == "BytesIO"}
    return found


def outermost(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Functions and methods that lie in no other, by name; and by no name the statements outside of all."""
    for one in getattr(node, "body", []):
        if isinstance(one, ast.FunctionDef):
            yield one.name, one
        elif isinstance(one, ast.ClassDef):
            yield from outermost(one)
        else:
            yield "", one


def writes(code: str) -> Iterator[tuple[str, str]]:
    """Where code writes to disk beside the helper: the function, and what it calls there."""
    for name, part in outermost(ast.parse(code)):
        safe = safe_names(part)
        for call in (node for node in ast.walk(part) if isinstance(node, ast.Call)):
            what, owner = called(call)
            if (what, owner) == ("save", ""):  # a function of the benchmarks'
                continue
            given = {ast.unparse(one) for one in call.args}
            door = what in WRITERS or what in MOVES.get(owner, ())
            door |= what in TABLE_WRITERS and (bool(call.args) or option(call, "path_or_buf") is not None)
            door |= what == "open" and opens_to_write(call, owner)
            door |= what == "dump" and len(call.args) > 1
            if door and not (given | {owner}) & safe:
                yield name, f"{owner}.{what}, line {call.lineno}"


@pytest.mark.parametrize(
    "code",
    [
        *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "df.eval(x)", "df.query(x)"),
        *("import pickle", "from pickle import load", "import torch\ntorch.load(x)", "torch.load(x, weights_only=w)"),
        *("torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)", "pd.read_pickle(x)", "yaml.load(x)"),
        *("yaml.load(x, Loader=yaml.SafeLoader)", "yaml.unsafe_load(x)", "os.system(x)", "run(x, shell=True)"),
    ],
)
def test_the_search_finds_each_way_of_running_data(code):
    assert list(evaluations(code))


def test_the_search_passes_what_runs_nothing():
    code = "network.eval(); yaml.safe_load(x); torch.load(x, weights_only=True); np.load(x, allow_pickle=False)\n"
    assert not list(evaluations(code + "df.query('a == 1'); cKDTree(a).query(b); re.compile(x); run(x, shell=False)"))


def test_nothing_that_is_read_is_run_as_code():
    found = {path.name: list(evaluations(code_of(path))) for path in SOURCES}
    assert len(found) > 100 and not {name: lines for name, lines in found.items() if lines}


def test_the_workflow_runs_nothing_that_it_reads():
    """The Snakefile is no Python, but made of its tokens."""
    with (ROOT / "Snakefile").open("rb") as stream:
        names = {token.string for token in tokenize.tokenize(stream.readline) if token.type == tokenize.NAME}
    assert "json" in names and not names & (RUNS_CODE | RUNS_WHAT_IT_READS | {"yaml", "np"})


@pytest.mark.parametrize(
    "code",
    [
        *("path.write_text(x)", "open(path, 'w')", "path.open('ab')", "path.open(mode)", "gzip.open(path, 'wt')"),
        *("frame.to_csv(path)", "figure.savefig(path)", "np.save(path, x)", "save_file(x, path)", "nib.save(x, path)"),
        *(
            "json.dump(x, stream)",
            "os.replace(a, b)",
            "shutil.copy(a, b)",
            "os.open(path, os.O_WRONLY)",
            "path.touch()",
        ),
        "with other(path) as draft:\n    draft.write_bytes(x)",
        "def f():\n    draft = path\n    with draft.open('wb') as s:\n        np.savez(s, x)",
    ],
)
def test_the_search_finds_each_way_of_writing(code):
    assert list(writes(code))


def test_the_search_passes_what_takes_the_door_or_reads():
    code = "def f():\n    with replacing(path) as draft, draft.open('wb') as stream:\n        np.savez(stream, x)\n"
    code += "def g():\n    memory = io.BytesIO()\n    figure.savefig(memory)\n    return frame.to_csv(index=False)\n"
    code += "path.open('rb'); open(path); Image.open(memory); text.replace('a', 'b'); os.open(os.devnull, os.O_WRONLY)"
    assert not list(writes(code))


def test_every_write_appears_whole():
    """And every exception is still one."""
    found = [(path.relative_to(ROOT).as_posix(), *where) for path in SOURCES for where in writes(code_of(path))]
    assert not [where for where in found if where[:2] not in OTHER_DOORS]
    assert {where[:2] for where in found} == {*OTHER_DOORS}
