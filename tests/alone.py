"""Notebooks as pytest runs them: each by itself, with the values that stand in its parameters cell."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from pdlib.paths import ROOT

CELL_SECONDS = 600  # generous: of a busy machine


def run_alone(notebooks: Sequence[Path], out: Path) -> None:
    """Two at a time, below an output root; every code cell has to run, and none to fail."""
    cells = sum(cell.cell_type == "code" for path in notebooks for cell in nbformat.read(path, as_version=4).cells)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
    command += ["--nbval-cell-timeout", str(CELL_SECONDS)]
    command += ["-n", "2", "--dist", "loadscope"]  # a notebook's cells belong together
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-o", "addopts=", *map(str, notebooks)],
        cwd=ROOT,
        env={**os.environ, "PDLIB_OUT": str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[done.stdout.find("= FAILURES =") :][:4000] + done.stdout[-2000:]
    assert re.search(rf"= {cells} passed in ", done.stdout), "every code cell ran, none was skipped"
