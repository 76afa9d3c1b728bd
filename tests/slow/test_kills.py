"""`kill -9` at twenty points of a whole smoke `make reproduce`, and the tables of a run that was never killed."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest
from graph_run import processes, start, tables

from pdlib.graph import graph
from pdlib.paths import DRAFT, PROFILE_JOBS, SHARED_JOBS, layout
from pdlib.profiles import load_profile
from pdlib.training.weights import Weights

KILLS, LEFT = 20, 4  # the kills, and how many jobs are left at the last one
LATER = (1, 15)  # seconds from when so many jobs are done to a kill
PATIENCE = 1800  # seconds to a kill, beside other work
LAST_BREATH = 60  # seconds for an orphan to end
KERNEL, JOB = "ipykernel_launcher", "pdlib.workflow"
ONE = {"a kernel": KERNEL, "papermill": JOB, "Snakemake": "pdlib.reproduce"}  # victims that are a process alone
GROUP = "the process group"  # what a terminal's end kills; kernels are in sessions of their own
WRITING, DRAWING = "everything while a file of a job is written", "everything while a table or a figure is written"
SHOWN = {WRITING: False, DRAWING: True}  # whether the file belongs to a table or a figure
VICTIMS = (GROUP, WRITING, "a kernel", "papermill", DRAWING, "Snakemake")  # in turn
TRAINS, SAMPLES, DRAWS = "trains", "samples", "makes tables and figures"


def words(process: psutil.Process) -> list[str]:
    """The module of Python that a process runs, and what it was given; empty for another process."""
    with suppress(psutil.Error):
        command = process.cmdline()
        return command[2:] if command[1:2] == ["-m"] else []
    return []


def running(module: str, living: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in living if words(process)[:1] == [module]]


def does(job: str) -> str:
    """What a job of the graph does, as far as kills are to meet it."""
    notebook, _, what = job.partition(".")
    if notebook in SHARED_JOBS:
        return "other"
    return TRAINS if notebook in PROFILE_JOBS else SAMPLES if what else DRAWS


@dataclass
class Met:
    """What kills have met: how often jobs of each kind, trainings halfway, writes that never ended, orphans."""

    jobs: Counter[str] = field(default_factory=Counter)
    halfway: int = 0
    cut_off: int = 0
    tables_cut_off: int = 0  # of these
    orphans: int = 0


class Run:
    """One run that is killed and begun again in the same folder."""

    def __init__(self, folder: Path):
        self.out, self.log, self.times, self.met = folder / "out", folder / "log", 0, Met()
        self.place = layout("smoke", str(self.out))
        self.stale: set[Path] = set()

    def begin(self) -> None:
        self.make, self.times = start(self.out, self.log), self.times + 1

    def jobs_done(self) -> int:
        return len(list(self.place.done("x").parent.glob("*")))

    def halfway(self) -> list[str]:
        """The trainings that have a checkpoint to go on from."""
        stored = self.place.weights("x").parent.glob("*/best.safetensors")
        return [path.parent.name for path in stored if not Weights.read(path).finished]

    def drafts(self, shown: bool | None = None) -> list[Path]:
        """The files that are not whole yet, but for stale ones, whose writers are dead; shown: only those that belong
        to a table or a figure, or only the others."""
        found = [Path(folder, name) for folder, _, names in os.walk(self.out) for name in names]
        found = [path for path in found if path.name.startswith(DRAFT) and path not in self.stale]
        return found if shown is None else [path for path in found if self.shown(path) == shown]

    def shown(self, path: Path) -> bool:
        """Whether a file belongs to a table or a figure."""
        return not path.is_relative_to(self.place.runs)

    def moments(self) -> Iterator[None]:
        """Moments of the run, which is begun again where it has ended."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            if self.make.poll() is not None:
                assert self.make.returncode, "the run has ended before the last kill"
                self.begin()
            yield
        pytest.fail(f"nothing happens: {self.log.read_text()[-2000:]}")


def send(number: signal.Signals, to: list[psutil.Process]) -> None:
    for process in to:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill(victims: list[psutil.Process]) -> None:
    send(signal.SIGKILL, victims)


def kill_group(run: Run, kernels: list[psutil.Process]) -> None:
    """Kill the run's process group, and count the kernels that then live without the process that started them."""
    parents, orphans, ends = {kernel: kernel.ppid() for kernel in kernels}, set(), time.monotonic() + 0.5
    os.killpg(run.make.pid, signal.SIGKILL)
    while time.monotonic() < ends:
        for kernel, parent in parents.items():
            with suppress(psutil.NoSuchProcess):
                if kernel.ppid() != parent and kernel.status() != psutil.STATUS_ZOMBIE:
                    orphans.add(kernel)
        time.sleep(0.01)
    run.met.orphans += len(orphans)


def kill_everything(run: Run, living: list[psutil.Process], drafts: list[Path]) -> bool:
    """As when the machine loses its power, if a draft is still there when all stand still; count those that stay."""
    send(signal.SIGSTOP, living[::-1])  # kernels, which write, are the youngest
    time.sleep(0.01)
    if not any(draft.exists() for draft in drafts):
        send(signal.SIGCONT, living)
        return False
    kill(living)
    while left := processes(run.out):
        kill(left)
    cut_off = [draft for draft in drafts if draft.exists()]
    run.met.cut_off += len(cut_off)
    run.met.tables_cut_off += sum(map(run.shown, cut_off))
    return True


def strike(run: Run, victim: str, rng: np.random.Generator) -> bool:
    """Kill the victim, if this is a moment to meet it."""
    living = processes(run.out)
    jobs = [Path(words(process)[2]).stem for process in running(JOB, living)]
    if victim in ONE and (found := running(ONE[victim], living)):
        kill([found[rng.integers(len(found))]])
    elif victim == GROUP and (found := running(KERNEL, living)):
        kill_group(run, found)
    elif victim not in SHOWN or not (drafts := run.drafts(SHOWN[victim])) or not kill_everything(run, living, drafts):
        return False
    run.met.jobs.update(map(does, jobs))
    run.met.halfway += bool(run.halfway())
    print(f"{victim}, {run.jobs_done()} jobs done, beside {', '.join(jobs) or 'no job'}", flush=True)
    return True


def wait_and_kill(run: Run, jobs: int, victim: str, rng: np.random.Generator) -> None:
    """Let the run go on until so many jobs are done and for some seconds more, and kill."""
    for _ in run.moments():
        if run.jobs_done() >= jobs:
            break
        time.sleep(0.2)
    run.stale |= {*run.drafts()}
    then = time.monotonic() + rng.uniform(*LATER)
    for _ in run.moments():
        if time.monotonic() >= then and strike(run, victim, rng):
            break
        time.sleep(0.005)
    if victim not in ("a kernel", "papermill"):
        run.make.wait()


@contextmanager
def killed(folder: Path) -> Iterator[Run]:
    """A run that has been killed so often and has then come to its end; no process of it is left afterwards."""
    run, rng = Run(folder), np.random.default_rng(20)
    after = np.linspace(0, len(graph(load_profile("smoke"))) - LEFT, KILLS).astype(int)
    try:
        run.begin()
        for count, (jobs, victim) in enumerate(zip(after, cycle(VICTIMS)), 1):
            print(f"kill {count}: ", end="", flush=True)
            wait_and_kill(run, jobs, victim, rng)
        run.make.wait()
        run.begin()
        assert run.make.wait() == 0, run.log.read_text()[-4000:]
        yield run
    finally:
        kill(processes(run.out))


@pytest.mark.hours
@pytest.mark.fault("kill -9")
def test_twenty_kills_change_no_table(whole, tmp_path, record_property):
    record_property("faults", KILLS)
    with killed(tmp_path) as run:
        met = run.met
        print(f"{KILLS} kills in {run.times} runs met {met}", flush=True)
        psutil.wait_procs(processes(run.out), timeout=LAST_BREATH)
        assert processes(run.out) == [], "orphans end by themselves"
    assert {TRAINS, SAMPLES, DRAWS} <= met.jobs.keys() and met.halfway
    assert met.cut_off > met.tables_cut_off > 0 and met.orphans > 0
    expected, found = tables(whole), tables(run.out)
    assert found.keys() == expected.keys() and len(found) >= 30
    assert [name for name in found if found[name] != expected[name]] == []
    for weights in layout("smoke", str(whole)).runs.rglob("*.safetensors"):
        assert (run.out / weights.relative_to(whole)).read_bytes() == weights.read_bytes(), weights.name
