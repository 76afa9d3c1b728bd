"""The whole graph under the smoke profile: killed, called again, called a third time; then some lessons alone.

It has no network, wherever that can be taken from it: the set-up is over.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from alone import run_alone
from offline import NOTHING_REACHED, offline, refused
from offline import __file__ as probe

from pdlib.evaluation import records
from pdlib.graph import graph
from pdlib.paths import NOTEBOOKS, ROOT, layout
from pdlib.profiles import load_profile
from pdlib.study.claims import read_scores
from pdlib.workflow import run_notebook

KILLED_AFTER_JOBS = 3
LESSONS = ("00_tour", "05_sweep_t_prime")  # those of tests/browser that are quick; tests/slow runs all
DRAWN = (
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "08",
    "09",
    "10",
    "12",
    "14",
    "15",
    "16",
    "17",
    "18",
)  # notebooks that show figures
CALL = ("make", "--no-print-directory", "READY=", "PROFILE=smoke")
SHOWN_AND_KEPT = '"$@" 2>&1 | tee -a "$LOG"'


def reproduce(folder):
    """Start `make reproduce` of the smoke profile into an unkind folder; what it prints is shown, and kept in a log."""
    deep = folder / ("long" * 30)  # where a kernel's sockets could not lie
    deep.mkdir(exist_ok=True)
    environment = os.environ | {"OUT": str(folder / OUT), "LOG": str(folder / "log"), "TMPDIR": str(deep)}
    command = ["bash", "-o", "pipefail", "-c", SHOWN_AND_KEPT, "bash", *offline(*CALL, "reproduce")]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


OUT = "smoke #1 {x} it's $HOME "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(scope="module")
def place(folder, pytestconfig):
    place, log = layout("smoke", str(folder / OUT)), folder / "log"
    for table in ("folds", "table1_scores", "training/denoiser_0", "training/attention_unet_0"):
        committed = place.results / f"{table}.csv"  # as in a clone: results without their run
        committed.parent.mkdir(parents=True, exist_ok=True)
        committed.write_text("method\nnot this run's\n")
    log.touch()
    first = reproduce(folder)
    while log.read_text().count(" is done after ") < KILLED_AFTER_JOBS and first.poll() is None:
        time.sleep(0.2)
    time.sleep(3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (place.figures / "fig3.png").exists(), "killed before the end"
    assert reproduce(folder).wait() == 0, log.read_text()[-4000:]
    pytestconfig.cache.set("pdlib/run", str(place.out))  # for tests/browser
    return place


@pytest.mark.fault("kill -9")
def test_every_figure_and_table_is_there(place):
    for name in ("fig1", "fig2", "fig3", "fig4", "scores", "truncation", "fewer_calls", "agreement"):
        assert (place.figures / f"{name}.png").stat().st_size > 10_000
        assert (place.figures / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for name in ("table1", "table1_by_site", "table2", "truncation", "fundus", "claims", "fewer_calls"):
        assert (place.figures / f"{name}.md").read_text().count("|") > 20
        assert len(pd.read_csv(place.figures / f"{name}.csv")) >= 3
    assert (place.figures / "findings.md").read_text().count(".") >= 5
    assert pd.read_csv(place.figures / "table1.csv").method.tolist() == list(load_profile("smoke").comparison.methods)


def test_every_executed_notebook_shows_its_figures_and_no_error(place):
    executed = {path.stem: nbformat.read(path, as_version=4) for path in place.executed("x").parent.glob("*.ipynb")}
    assert set(executed) == set(graph(load_profile("smoke")))
    for name, notebook in executed.items():
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        pictures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert not [output for output in outputs if output.output_type == "error"], name
        for output in outputs:
            told = "".join(output.get("data", {}).get("text/plain", "")) + "".join(output.get("text", ""))
            assert "image/png" in output.get("data", {}) or not re.search(r"<[\w. ]*Figure", told), f"{name}: {told}"
        alone = name[:2] in ("02", "03", "16") or "." not in name  # one point of a sweep draws nothing
        assert pictures or name[:2] not in DRAWN or not alone, f"{name} shows no figure"


def test_the_graph_needs_no_network(place, folder):
    if refused():
        pytest.skip(f"it had one, for no network namespace can be made here: {refused()}")
    before, *runs = (folder / "log").read_text().split(f"{NOTHING_REACHED}\n")
    assert before == "" and len(runs) >= 2 and all(" starts, 1 of " in run for run in runs[:2])
    assert subprocess.run([sys.executable, probe, "true"]).returncode, "what was asked there has another answer here"


def test_the_cost_was_told_before(place, folder):
    told = (folder / "log").read_text()
    assert re.search(r"^\d+ jobs to run, \d+ at a time on this machine: about \d", told, re.M)
    assert re.search(r"^  03_train_ddpm +about \d", told, re.M) and "no estimate" not in told


def test_the_log_names_what_starts_and_counts_what_is_done(place, folder):
    told = (folder / "log").read_text()
    first, second = told.split("measuring this machine for some seconds", 2)[1:]
    jobs = set(graph(load_profile("smoke")))
    starts = re.findall(r"^\[[\d:]+\] (\S+) starts, (\d+) of (\d+)$", second, re.M)
    assert [int(count) for _, count, _ in starts] == [*range(1, len(starts) + 1)] and len(starts) == int(starts[0][2])
    ended = re.findall(r"^\[[\d:]+\] (\S+) is done after .*; (\d+) of (\d+) are done$", first + second, re.M)
    assert {name for name, *_ in ended} == jobs and ended[-1][1] == ended[-1][2]
    assert all(re.search(rf"^{re.escape(name)}: \S", told, re.M) for name in jobs), "its last words"
    assert not re.search(r"Select jobs|Execute \d|Touching|jobid|\r|IPKernelApp|^  fit:", told, re.M), "no chatter"


def test_every_result_has_its_stamp(place):
    tables = sorted(place.results.rglob("*.csv"))
    assert {"folds", "table1_scores", "t_prime_scores", "ensemble_scores", "preseg_scores", "denoiser_0"} <= {
        table.stem for table in tables
    }
    for table in tables:
        assert "not this run's" not in table.read_text()
        stamp = json.loads(table.with_suffix(".stamp.json").read_text())
        assert stamp["profile"] == "smoke" and stamp["phantom"] is True
        assert stamp["data_fingerprint"] and stamp["packages"]["torch"]


def test_a_further_call_does_nothing(place, folder):
    before = {
        path: path.stat().st_mtime_ns for path in place.out.rglob("*") if path.suffix in (".csv", ".ipynb", ".png")
    }
    assert reproduce(folder).wait() == 0
    assert "Nothing to be done" in (folder / "log").read_text()[-2000:]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_ledger_is_read_from_subjects_of_its_own(place):
    subprocess.run(offline(*CALL, "confirm"), cwd=ROOT, env=os.environ | {"OUT": str(place.out)}, check=True)
    scores = read_scores(place)["table1_scores"]
    assert scores.subject.nunique() == 3 and not {*scores.subject} & {*records.read_table(place.folds).subject}
    assert "phantom, profile smoke, 3 test subjects of their own" in (place.figures / "claims.md").read_text()
    claims = pd.read_csv(place.figures / "claims.csv").set_index("claim")
    dice = scores[scores.metric == "dice"].pivot(index="subject", columns="method", values="value")
    told = claims.loc["PD-DDPM beats its pre-segmenter"]
    assert told.n == 3 and np.isclose(told.estimate, (dice.pd_ddpm - dice.attention_unet).mean(), atol=1e-6)


def test_the_folds_are_pooled(place, folder):
    parameters = {"profile": "smoke", "out": str(place.out)}  # a notebook that is no job of a fold's graph
    run_notebook("13_all_folds", folder / "13_all_folds.ipynb", parameters)


def test_lessons_run_by_themselves(place):
    print("some notebooks by themselves, a few minutes ...", flush=True)
    run_alone([NOTEBOOKS / f"{name}.ipynb" for name in LESSONS], place.out)
