"""A bar that fits where it is shown, and the lines that a graph's log gets."""

import io
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.common import LogEvent
from tqdm import tqdm as terminal_bar
from tqdm.notebook import tqdm_notebook

from pdlib import progress
from pdlib.graph_log import LogHandler
from pdlib.progress import IN_WORKFLOW, LogBar, tqdm
from pdlib.training import watch
from pdlib.workflow import Told


def walked(bar, steps=100):
    for _ in range(steps):
        bar.update()
    bar.close()


def test_a_log_gets_whole_lines_and_few_of_them(capsys, monkeypatch):
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    walked(tqdm(total=100, unit="call", desc="calls"))
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 22 and lines[-1].startswith("calls: 100% of 100 calls, 00:00 so far")
    walked(tqdm(unit="call"))
    assert capsys.readouterr().err.splitlines()[-1].startswith("100 calls, 00:00 so far")
    monkeypatch.setenv("TQDM_MININTERVAL", "60")
    walked(tqdm(total=100))
    assert capsys.readouterr().err == "", "what is done at once says nothing"


def test_in_a_job_a_bar_s_last_state_stays_and_the_log_gets_each_with_the_job_s_name(capsys, monkeypatch):
    monkeypatch.setenv(IN_WORKFLOW, "1")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    walked(tqdm(total=4, unit="call"), 4)
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("\r") and out.count("\n") == 1
    told = Told("03_train_ddpm.0", bars_alone=True)
    told.write("0.27 M parameters\n")
    told.write(out)
    Told("03_train_ddpm.0", bars_alone=False).write("a warning\n\n")
    *bars, warned = capsys.readouterr().out.splitlines()
    assert warned == "03_train_ddpm.0: a warning" and len(bars) == out.count("\r")
    assert all(line.startswith("03_train_ddpm.0: ") and " of 4 calls, 00:00 so far" in line for line in bars)


def test_a_terminal_and_a_notebook_have_bars_of_their_own(monkeypatch):
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert type(tqdm(total=1)) is terminal_bar
    code = (
        "import ipykernel.zmqshell; from pdlib import progress; print(progress.in_notebook(), progress.own_bar.__mro__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.startswith("True ") and tqdm_notebook.__name__ in shown.stdout and shown.stderr == ""
    monkeypatch.setattr(progress, "notebook_tqdm", tqdm_notebook)
    assert progress.in_notebook()
    monkeypatch.setenv(IN_WORKFLOW, "1")
    assert not progress.in_notebook() and type(tqdm(total=1)) is LogBar


def test_a_notebook_sees_the_curves_so_far_in_one_place(monkeypatch):
    drawn = []
    handle = SimpleNamespace(update=lambda picture, raw=False: drawn.append(picture))
    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: drawn.append(figure) or handle)
    monkeypatch.setattr(watch, "in_notebook", lambda: True)
    history = [{"step": step, "metric": "dice", "value": step / 4} for step in (1, 2)]
    with watch.watch("tiny", 0, 2) as watched:
        for count in (1, 2):
            watched.step(count)
            watched.validated(history[:count])
    first, second, nothing = drawn
    assert [len(figure.axes[0].lines[0].get_xdata()) for figure in (first, second)] == [1, 2]
    assert nothing == {"text/plain": ""} and "dice=0.5" in watched.bar.postfix


def event(kind, **about):
    record = logging.LogRecord("snakemake", about.pop("level", logging.INFO), "", 0, about.pop("msg", ""), (), None)
    vars(record).update(about, event=kind)
    return record


@pytest.fixture
def handler():
    return LogHandler(None, None)


def test_the_graph_s_log_names_jobs_and_counts_them(handler, capsys):
    rules = {"notebook_03_train_ddpm_0": 1, "notebook_04": 1, "all": 1, "total": 3}
    handler.emit(event(LogEvent.RUN_INFO, stats=rules))
    handler.emit(event(None, msg="Select jobs to execute..."))
    handler.emit(event(LogEvent.JOB_INFO, jobid=7, log=["runs/cpu/notebooks/03_train_ddpm.0.ipynb"]))
    handler.emit(event(LogEvent.JOB_INFO, jobid=0, log=[]))
    handler.emit(event(LogEvent.JOB_FINISHED, job_id=7))
    handler.emit(event(LogEvent.JOB_FINISHED, job_id=0))
    handler.emit(event(LogEvent.JOB_INFO, jobid=8, log=["runs/cpu/notebooks/04.ipynb"]))
    handler.emit(event(LogEvent.ERROR, level=logging.ERROR, msg="CalledProcessError in", exception="RuleException"))
    handler.emit(event(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=8, rule_name="notebook_04"))
    handler.emit(event(LogEvent.ERROR, level=logging.ERROR, msg="no space left", exception="OSError"))
    handler.emit(event(LogEvent.ERROR, level=logging.ERROR, msg="a job failed", exception="WorkflowError"))
    handler.close()
    handler.emit(event(None, msg=NOTHING_TO_BE_DONE_MSG))
    told = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "03_train_ddpm.0 starts, 1 of 2",
        "03_train_ddpm.0 is done after 0 s; 1 of 2 are done",
        "04 starts, 2 of 2",
        "04 failed; what does not wait for it goes on",
        "no space left",
        "failed: 04; the errors stand above, and the same command tries again",
        "Nothing to be done: every job of the graph has run",
    ]
