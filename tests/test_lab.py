"""Saving a notebook in JupyterLab leaves nothing for git to see, and git's filter is set in the clone alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager

from pdlib import lab
from pdlib.lab import cleaned, install_filter
from pdlib.paths import NOTEBOOKS, ROOT


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path) -> Path:
    root = tmp_path / "a clone #1 it's"
    (root / "notebooks").mkdir(parents=True)
    for name in (".gitattributes", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for name in ("01_prepare_data", "05_sweep_t_prime"):
        shutil.copy(NOTEBOOKS / f"{name}.ipynb", root / "notebooks")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "notebooks")
    return root


def save_as_lab_does(path: Path) -> None:
    """Outputs, counts, and the metadata that JupyterLab and its kernel add, written by Jupyter's server."""
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(notebook.cells):
        cell.metadata |= {"editable": True, "slideshow": {"slide_type": ""}, "jp-MarkdownHeadingCollapsed": True}
        if cell.cell_type == "code":
            cell.execution_count = count
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
            cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"})]
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99.1", "file_extension": ".py"}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    manager = FileContentsManager(root_dir=str(path.parent), post_save_hook="pdlib.lab.after_saving")
    manager.save({"type": "notebook", "format": "json", "content": notebook}, path.name)


def test_saving_outputs_is_no_change_and_an_edit_is_one(clone):
    install_filter(clone, Path(sys.executable))
    path = clone / "notebooks" / "05_sweep_t_prime.ipynb"
    before = path.read_bytes()
    save_as_lab_does(path)
    assert path.read_bytes() != before and git(clone, "status", "--porcelain") == ""
    assert git(clone, "diff") == ""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += " More."
    nbformat.write(notebook, path)
    assert git(clone, "status", "--porcelain") == " M notebooks/05_sweep_t_prime.ipynb\n"
    git(clone, "add", ".")
    assert "image/png" not in git(clone, "show", ":notebooks/05_sweep_t_prime.ipynb")
    assert nbformat.read(path, as_version=4).cells[-1].outputs, "what the reader sees stays"


def test_the_filter_is_set_in_the_clone_alone(clone, tmp_path):
    install_filter(clone, Path(sys.executable))
    assert "filter.notebook.clean=" in git(clone, "config", "--local", "--list")
    install_filter(clone, clone / ".venv" / "bin" / "python")
    assert git(clone, "config", "filter.notebook.clean").startswith(".venv/bin/python -m pdlib.lab clean")
    (tmp_path / "no clone").mkdir()
    install_filter(tmp_path / "no clone", Path(sys.executable))
    assert not list((tmp_path / "no clone").iterdir())


def test_what_is_no_notebook_stays_as_it_is():
    for text in ("", "<<<<<<< HEAD\n{}", "[]", "{}"):
        assert cleaned(text) == text


def test_lab_sets_the_filter_before_it_opens(monkeypatch):
    calls = []
    monkeypatch.setattr(lab, "install_filter", lambda root, python: calls.append(("filter", root)))
    monkeypatch.delenv("PDLIB_FOLDER", raising=False)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, env: calls.append(("lab", *command[-2:])) or done)
    assert lab.main([]) == 0
    hook = "--FileContentsManager.post_save_hook=pdlib.lab.after_saving"
    assert calls == [("filter", ROOT), ("lab", hook, str(NOTEBOOKS))]
    monkeypatch.setenv("PDLIB_FOLDER", "sheets of 5 May")
    assert lab.main([]) == 0 and calls[-1] == ("lab", hook, "sheets of 5 May")
