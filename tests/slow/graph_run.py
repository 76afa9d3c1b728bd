"""A smoke `make reproduce` in a folder of its own, up to its sweep: data, two trainings, six samplings, a table."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from pdlib.paths import ROOT

TARGET = "05_sweep_t_prime"


def start(out: Path, log: Path, **asked: str) -> subprocess.Popen:
    """Begin a run, in a session of its own; what it prints is added to a log. asked: variables of `make reproduce`."""
    asked = {"PROFILE": "smoke", "OUT": str(out), "TARGETS": TARGET, "MEASURE": "0", "CORES": "2"} | asked
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PDLIB_"))}
    environment |= {"PYTHONPATH": str(ROOT)} | asked
    command = ["make", "--no-print-directory", "reproduce", f"PYTHON={sys.executable}", "READY="]
    with log.open("a") as stream:
        how = {"stdout": stream, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **how)


def tables(folder: Path) -> dict[str, str]:
    """The tables below a folder as they stand there, by name, but for the seconds that were measured."""
    found = {}
    for path in sorted(folder.rglob("*.csv")):
        cells = pd.read_csv(path, dtype=str, keep_default_na=False)
        seconds = [column for column in cells if "seconds" in column]
        found[str(path.relative_to(folder))] = cells.drop(columns=seconds).to_csv(index=False)
    return found
