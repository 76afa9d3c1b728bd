"""The whole graph under the smoke profile: killed, called again, called a third time; then every notebook by itself."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from pdlib.paths import NOTEBOOKS, ROOT, layout
from pdlib.workflow import load_profile

KILLED_AFTER_JOBS = 3


def reproduce(out):
    """Start `make reproduce` of the smoke profile; what it prints is shown, and kept in out/log."""
    command = f"make reproduce PROFILE=smoke OUT='{out}' 2>&1 | tee -a '{out}/log'"
    return subprocess.Popen(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, start_new_session=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    for table in ("folds", "table1_scores", "training/denoiser", "training/attention_unet_0"):
        committed = layout("smoke", str(out)).results / f"{table}.csv"  # as in a clone: results without their run
        committed.parent.mkdir(parents=True, exist_ok=True)
        committed.write_text("method\nnot this run's\n")
    (out / "log").touch()
    first = reproduce(out)
    while (out / "log").read_text().count("Finished jobid") < KILLED_AFTER_JOBS and first.poll() is None:
        time.sleep(0.2)
    time.sleep(3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (layout("smoke", str(out)).figures / "fig3.png").exists(), "killed before the end"
    assert reproduce(out).wait() == 0, (out / "log").read_text()[-4000:]
    return layout("smoke", str(out))


def test_every_figure_and_table_is_there(place):
    for name in ("fig1", "fig2", "fig3", "fig4", "truncation", "fewer_calls", "agreement"):
        assert (place.figures / f"{name}.png").stat().st_size > 10_000
        assert (place.figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("table1", "table1_by_site", "table2", "truncation", "fundus", "claims", "fewer_calls"):
        assert (place.figures / f"{name}.md").read_text().count("|") > 20
        assert len(pd.read_csv(place.figures / f"{name}.csv")) >= 3
    methods = load_profile("smoke")["04_compare_methods"]["methods"]
    assert pd.read_csv(place.figures / "table1.csv").method.tolist() == methods


def test_every_result_has_its_stamp(place):
    tables = sorted(place.results.rglob("*.csv"))
    assert {"folds", "table1_scores", "t_prime_scores", "ensemble_scores", "preseg_scores", "denoiser"} <= {
        table.stem for table in tables
    }
    for table in tables:
        assert "not this run's" not in table.read_text()
        stamp = json.loads(table.with_suffix(".stamp.json").read_text())
        assert stamp["profile"] == "smoke" and stamp["phantom"] is True
        assert stamp["data_fingerprint"] and stamp["packages"]["torch"]


def test_a_further_call_does_nothing(place):
    before = {
        path: path.stat().st_mtime_ns for path in place.out.rglob("*") if path.suffix in (".csv", ".ipynb", ".png")
    }
    assert reproduce(place.out).wait() == 0
    assert "Nothing to be done" in (place.out / "log").read_text()[-2000:]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_notebooks_run_by_themselves_with_their_smoke_values(place):
    notebooks = sorted(NOTEBOOKS.glob("*.ipynb"))
    cells = sum(cell.cell_type == "code" for path in notebooks for cell in nbformat.read(path, as_version=4).cells)
    print("every notebook by itself, some minutes ...", flush=True)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-o", "addopts=", *map(str, notebooks)],
        cwd=ROOT,
        env={**os.environ, "PDLIB_OUT": str(place.out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(rf"= {cells} passed in ", done.stdout), "every code cell ran, none was skipped"
