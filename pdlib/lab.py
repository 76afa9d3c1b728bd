"""`make lab`: JupyterLab on the notebooks, and a git filter and a hook that leave out what saving one adds to it.

PDLIB_FOLDER, in the environment, names another folder of notebooks, such as a workshop's sheets.
`python -m pdlib.lab clean` is the filter: a notebook on stdin, its cells alone on stdout.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from pdlib.paths import CONFIGS, NOTEBOOKS, ROOT

FILTER = "notebook"  # of .gitattributes; a clone in whose .git/config it is not set commits notebooks as they are
ABOUT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cleaned(text: str) -> str:
    """A notebook as git keeps it: no outputs, and of all metadata the tags, whatever program saved it.

    What is no notebook, such as one with conflict markers, stays as it is.
    """
    try:
        notebook = json.loads(text)
        cells = [_cleaned(cell) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError):
        return text
    kept = {"cells": cells, "metadata": ABOUT, "nbformat": notebook["nbformat"]}
    kept["nbformat_minor"] = notebook["nbformat_minor"]
    return json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _cleaned(cell: dict) -> dict:
    source = "".join(cell["source"]).splitlines(keepends=True)
    tags = cell["metadata"].get("tags")
    kept = {"cell_type": cell["cell_type"], "metadata": {"tags": tags} if tags else {}, "source": source}
    kept |= {"id": cell["id"]} if "id" in cell else {}
    return kept | ({"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {})


def install_filter(root: Path, python: Path) -> None:
    """Set the filter in the .git/config of a clone, and nowhere else; a folder without git stays as it is."""
    if _git(root, "rev-parse", "--is-inside-work-tree").returncode == 0:
        python = python.relative_to(root) if python.is_relative_to(root) else python  # git runs it from the top
        command = f"{shlex.quote(str(python))} -m pdlib.lab clean"
        _git(root, "config", f"filter.{FILTER}.clean", command).check_returncode()


def after_saving(os_path: str, model: dict, **other: object) -> None:
    """Jupyter's hook: a save that changed no cell is none for git either.

    Git takes a file of another size for a changed one, whatever its filter makes of it, until the file is added again.
    """
    path = Path(os_path)
    if model["type"] != "notebook":
        return
    kept = _git(path.parent, "show", f":./{path.name}")
    if kept.returncode == 0 and kept.stdout == cleaned(path.read_text(encoding="utf-8")).encode():
        _git(path.parent, "add", "--", path.name)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True)


def main(arguments: list[str]) -> int:
    """Filter a notebook, or open JupyterLab."""
    if arguments == ["clean"]:
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        sys.stdout.buffer.write(cleaned(text).encode("utf-8", "surrogateescape"))
        return 0
    install_filter(ROOT, Path(sys.executable))
    hook = "--FileContentsManager.post_save_hook=pdlib.lab.after_saving"
    folder = os.environ.get("PDLIB_FOLDER") or str(NOTEBOOKS)
    return subprocess.run([sys.executable, "-m", "jupyterlab", hook, folder], env=_environment()).returncode


def _environment() -> dict[str, str]:
    """JupyterLab's defaults as this repository has them: no news from the network, names of notebooks in full."""
    folders = os.environ.get("JUPYTER_CONFIG_PATH", "").split(os.pathsep)
    return os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join([*filter(None, folders), str(CONFIGS / "jupyter")])}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
