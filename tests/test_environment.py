"""The doors to the environment agree, imports only go down, and light modules stay light."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from importlinter.cli import lint_imports

from pdlib.paths import ROOT
from pdlib.reproduce import Asked

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "pdlib").rglob("*.py")
)


LINUX_ALONE = {  # of os: their documentation says "Availability: Linux", or all but macOS
    *("sched_getaffinity", "sched_setaffinity", "memfd_create", "eventfd", "pidfd_open", "splice", "setns", "unshare"),
    *("posix_fadvise", "posix_fallocate", "copy_file_range", "getrandom", "getxattr", "setxattr", "timerfd_create"),
}


def asked_for_first(tree: ast.AST) -> set[ast.AST]:
    """The nodes below an `if`, in a line or a block, that asks whether a module has something."""
    ifs = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)]
    return {one for node in ifs if "hasattr" in ast.unparse(node.test) for one in ast.walk(node)}


def places_in_proc(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Each path below /proc/ with the top-level statement, a function as a rule, that names it."""
    for statement in tree.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and str(node.value).startswith("/proc/"):
                yield node.value, statement


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def wanted() -> list[str]:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    asked = [*PYPROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]
    return [one for one in asked if not one.startswith("pdlib[")]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_conda_and_pip_ask_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = {"--constraint constraints.txt", "--editable ."}
    assert options <= set(pip)
    assert sorted(set(pip) - options) == sorted(wanted())
    assert f"python{PYPROJECT['project']['requires-python']}" in environment["dependencies"]


def test_every_requirement_is_pinned_once_and_without_a_local_suffix():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = dict(line.split("==") for line in lines)
    assert len(pinned) == len(lines) and "uv" in pinned
    assert not {name_of(one) for one in wanted()} - set(pinned)
    for exact in (one for one in wanted() if "==" in one):
        assert pinned[name_of(exact)] == exact.partition(";")[0].split("==")[1]


def test_imports_only_go_down(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    code = lint_imports(no_cache=True)
    assert code == 0, capfd.readouterr().out


def test_every_module_has_its_floor():
    layers = next(one["layers"] for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    floors = {name for layer in layers for name in re.split(r" [|:] ", layer)}
    assert not [m for m in MODULES if m != "pdlib" and not any(m == f or m.startswith(f"{f}.") for f in floors)]


def test_package_imports_without_triton():
    python("import sys; sys.modules['triton'] = None; import pdlib.study.pictures, pdlib.inference.segment")


def test_without_triton_chains_are_sampled_and_the_kernels_notebook_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['triton'] = None\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PDLIB_OUT": str(tmp_path)}
    tests = [
        "diffusion/test_steps.py",
        "inference/test_slices.py",
        "kernels/test_kernels.py",
        "kernels/test_compile.py",
    ]
    tests = [f"tests/{name}" for name in tests]
    notebook = ["notebooks/09_read_the_kernels.ipynb", str(tmp_path / "executed.ipynb")]
    for command in (["pytest", "-q", "-o", "addopts=", "-p", "no:xdist", *tests], ["papermill", *notebook]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "there is no Triton" in (tmp_path / "executed.ipynb").read_text(encoding="utf-8")


def test_what_linux_alone_has_is_asked_for_first():
    for path in [*(ROOT / "pdlib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded, nodes = asked_for_first(tree), [*ast.walk(tree)]
        used = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in LINUX_ALONE]
        assert {*used} <= guarded, f"{path}: {used[0].attr}"
        for place, function in places_in_proc(tree):
            assert ".exists()" in ast.unparse(function), f"{path}: {place}"
        imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
        assert not imported & {"fcntl", "termios", "pwd", "grp"}, f"{path}: filelock and os have what these have"


def test_light_modules_load_neither_torch_nor_monai():
    wings = "report.curves report.slices report.readme evaluation.metrics evaluation.stats evaluation.records data.wmh"
    light = ", ".join(f"pdlib.{module}" for module in (*wings.split(), "__main__", "reproduce", "lab", "workflow"))
    heavy = "{'torch', 'monai', 'lightning_fabric', 'papermill', 'snakemake'}"
    assert python(f"import sys, {light}; print({heavy} & set(sys.modules))").strip() == "set()"


@pytest.mark.parametrize(("given", "out"), [({}, "."), ({"DATA": "."}, "real-data"), ({"DATA": ".", "OUT": "y"}, "y")])
def test_real_data_never_write_over_the_committed_phantom(given, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wmh.nii.gz").touch()  # a case, as far as a plan goes
    names = {"DATA": "PDLIB_DATA", "OUT": "PDLIB_OUT_FOLDER"}
    asked = Asked.of({names[key]: value for key, value in given.items()})
    assert asked.out == (tmp_path / out).resolve() and bool(asked.data) == bool(given)
