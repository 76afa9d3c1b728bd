"""A smoke `make reproduce` in a folder of its own, its tables, and every process that works for it."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil

from pdlib.paths import ROOT

OUTPUT = ("OUT", "PDLIB_OUT_FOLDER")  # what the environment of a run's processes calls its output root


def start(out: Path, log: Path, **asked: str) -> subprocess.Popen:
    """Begin a run, in a session of its own; what it prints is added to a log. asked: variables of `make reproduce`."""
    asked = {"PROFILE": "smoke", "OUT": str(out), "MEASURE": "0", "CORES": "2"} | asked
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PDLIB_"))}
    environment |= {"PYTHONPATH": str(ROOT)} | asked
    command = ["make", "--no-print-directory", "reproduce", f"PYTHON={sys.executable}", "READY="]
    with log.open("a") as stream:
        how = {"stdout": stream, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **how)


def processes(out: Path) -> list[psutil.Process]:
    """Every living process of the runs into an output root, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if str(out) in map(environment.get, OUTPUT) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def tables(folder: Path) -> dict[str, str]:
    """The tables below a folder as they stand there, by name, but for the seconds that were measured."""
    found = {}
    for path in sorted(folder.rglob("*.csv")):
        cells = pd.read_csv(path, dtype=str, keep_default_na=False)
        seconds = [column for column in cells if "seconds" in column]
        found[str(path.relative_to(folder))] = cells.drop(columns=seconds).to_csv(index=False)
    return found
