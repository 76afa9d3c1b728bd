"""Nothing needs the network after set-up: a notebook of the graph, and `segment`, where there is none."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pdlib.inference.segment import FILES
from pdlib.paths import ROOT, layout

PROBE = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"


@pytest.fixture(scope="module")
def without_network():
    """Run a command in a namespace of its own, which has not even a loopback that is up."""

    def run(*command, **environment):
        everything = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        apart = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
        return subprocess.run([*apart, *command], cwd=ROOT, env=everything, capture_output=True, text=True)

    if not shutil.which("unshare") or (refused := run("true")).returncode:
        reason = refused.stderr.strip() if shutil.which("unshare") else "there is no unshare"
        pytest.skip(f"no network namespace can be made here: {reason}")
    assert "unreachable" in run(sys.executable, "-c", PROBE).stderr
    return run


def test_a_point_of_the_sweep_runs(without_network, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    place = layout("smoke", str(out))
    shutil.rmtree(place.samples())
    executed, given = tmp_path / "05.ipynb", {"profile": "smoke", "out": str(out), "t_primes": [300]}
    ended = without_network(sys.executable, "-m", "pdlib.workflow", "05_sweep_t_prime", executed, json.dumps(given))
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "mean test Dice" in ended.stdout and [*place.samples().rglob("*.npz")]


def test_a_case_is_segmented(without_network, whole, tmp_path):
    (flair, *_) = sorted(layout("smoke", str(whole)).runs.glob("phantom-*/**/pre/FLAIR.nii.gz"))
    given = ["--flair", flair, "--t1", flair.with_name("T1.nii.gz"), "--out", tmp_path / "out"]
    ended = without_network(sys.executable, "-m", "pdlib", "segment", *given, "--members", "2", "--calls", "2")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES.values())
