"""`make verify` of the repository itself: all that is committed follows from results/, but for what no table holds."""

import os
import subprocess
import sys

import pytest

from pdlib.paths import ROOT
from pdlib.study.redraw import IMAGES
from pdlib.verify import DIFFERS, SAME, UNCHECKED

UNHELD = {"typed from the paper", *(f"shows {images}, which results/ does not hold" for images in IMAGES.values())}


@pytest.mark.hours
def test_what_is_committed_follows_from_results():
    unasked = os.environ | {"PDLIB_PROFILE": "", "PDLIB_OUT_FOLDER": ""}
    done = subprocess.run([sys.executable, "-m", "pdlib.verify"], cwd=ROOT, env=unasked, capture_output=True, text=True)
    *lines, total = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith(DIFFERS)]
    assert done.returncode == 0 and f" 0 {DIFFERS}" in total, done.stderr
    assert {line.partition(": ")[2] for line in lines if line.startswith(UNCHECKED)} <= UNHELD
    same = [line.removeprefix(SAME).strip() for line in lines if line.startswith(SAME)]
    looked_at = [f"figures/{folder.name}/" for folder in (ROOT / "figures").glob("*/")]
    looked_at += ["results/", "commit ", "README.md, ", "docs/", "weights, ", "weights/scan, "]
    assert [one for one in looked_at if not any(what.startswith(one) for what in same)] == []
