"""`segment` where there is no network; the whole graph runs there in tests/test_reproduce.py."""

import os
import subprocess
import sys

import pytest
from offline import NOTHING_REACHED, offline, refused

from pdlib.inference.segment import FILES
from pdlib.paths import ROOT, layout


def test_a_case_is_segmented(finished, tmp_path):
    if refused():
        pytest.skip(f"no network namespace can be made here: {refused()}")
    (flair, *_) = sorted(layout("smoke", str(finished)).runs.glob("phantom-*/**/pre/FLAIR.nii.gz"))
    given = ["--flair", flair, "--t1", flair.with_name("T1.nii.gz"), "--out", tmp_path / "out"]
    command = offline(sys.executable, "-m", "pdlib", "segment", *given, "--members", 2, "--calls", 2)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{NOTHING_REACHED}\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES.values())
