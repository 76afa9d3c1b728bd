"""A folder of scans through `segment`: resumable, and one bad scan does not stop the rest."""

import csv
import io
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from pdlib.data.folder import Scan, find_scans
from pdlib.data.nifti import printable, read_array, read_description
from pdlib.evaluation.metrics import CONNECTED_26
from pdlib.inference.segment import FILES, Ready, inputs_of, segment_scan
from pdlib.memory import is_lack_of_memory
from pdlib.paths import write_whole

TABLE = "volumes.csv"


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: done, kept (a complete result of the same files, networks and settings) or failed.

    about: notes on the input or, where it failed, the cause, in one line.
    """

    case: str
    status: str
    lesion_ml: float | None = None
    lesions: int | None = None
    seconds: float | None = None
    about: str = ""

    @property
    def line(self) -> str:
        """For a reader."""
        if self.status == "failed":
            return f"failed  {printable(self.case)}  {self.about}"
        seconds = "" if self.seconds is None else f"  {self.seconds:.0f} s"
        return f"{self.status:6}  {printable(self.case)}  {self.lesion_ml:.3f} ml in {self.lesions} lesions{seconds}"


def segment_folder(
    ready: Ready, root: Path, out: Path, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> tuple[Outcome, ...]:
    """Segment every scan below `root` (`data.folder.find_scans`) into a folder of its own name below `out`.

    After each scan `out`/volumes.csv holds a row for all so far. CaseError where there is no scan.
    """
    scans, outcomes = find_scans(root, out), []
    for number, scan in enumerate(scans, start=1):
        say(f"scan {number} of {len(scans)}: {printable(scan.name)}")
        outcomes.append(_one(ready, scan, Path(out) / scan.name))
        _write_table(Path(out) / TABLE, outcomes)
    return tuple(outcomes)


def _one(ready: Ready, scan: Scan, out: Path) -> Outcome:
    """Segment a scan, unless its result is there; whatever goes wrong is its outcome."""
    failed = Outcome(scan.name, "failed")
    if scan.fault:
        return replace(failed, about=_in_line(scan.fault))
    try:
        if _is_there(out, ready.fingerprint(inputs_of(scan))):
            return replace(_measured(out, scan.name), status="kept")
        done = segment_scan(ready, scan, out)
        return replace(_measured(out, scan.name), seconds=done.seconds, about="; ".join(done.notes))
    except Exception as error:  # one bad scan must not end the others
        if os.environ.get("PDLIB_TRACEBACK") == "1":
            traceback.print_exc()
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        named = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename}: {error.strerror}" if named else str(error) or type(error).__name__
        known = isinstance(error, (ValueError, OSError)) or is_lack_of_memory(error)
        return replace(failed, about=_in_line(text if known else f"unexpected {type(error).__name__}: {text}"))


def _is_there(out: Path, fingerprint: str) -> bool:
    """Whether a complete result made of the same is there."""
    files = [out / name for name in FILES.values()]
    return all(path.is_file() for path in files) and read_description(out / FILES["mask"]) == fingerprint


def _measured(out: Path, case: str) -> Outcome:
    """The outcome that a written mask tells of."""
    mask, grid = read_array(out / FILES["mask"], "mask")
    lesion_ml = float(np.count_nonzero(mask) * np.prod(grid.spacing_mm) / 1000)
    return Outcome(case, "done", lesion_ml, int(ndimage.label(mask, CONNECTED_26)[1]))


def _write_table(path: Path, outcomes: list[Outcome]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "status", "lesion_ml", "lesions", "seconds", "about"])
    for one in outcomes:
        numbers = (None if one.lesion_ml is None else f"{one.lesion_ml:.6f}", one.lesions)
        seconds = None if one.seconds is None else f"{one.seconds:.1f}"
        table.writerow([printable(one.case), one.status, *numbers, seconds, one.about])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def _in_line(text: str) -> str:
    return printable(" ".join(text.split()))
