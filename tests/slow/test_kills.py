"""`kill -9` at twenty seeded points of a smoke `make reproduce`, and the tables of a run that was never killed."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import pytest
from graph_run import start, tables

from pdlib.paths import DRAFT, layout
from pdlib.training.weights import Weights

AFTER_JOBS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 9)  # how many of ten are done before a kill
NETWORKS = ("attention_unet_0", "denoiser_0")  # trained at the same time, when one job is done
WRITES = {True: (1, 5), False: (1, 12)}  # weights written until the kill while networks are trained; any files else
BEST = "best.safetensors"
PATIENCE = 1800  # seconds to a kill, beside other work


def python(process: psutil.Process) -> str:
    """What a process of Python runs: a module or a notebook's kernel; "" for another process."""
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[2] if words[1:2] == ["-m"] else ""
    return ""


class Graph:
    """One run that is killed and begun again in the same folder."""

    def __init__(self, folder: Path):
        self.out, self.log, self.run, self.begun = folder / "out", folder / "log", None, 0
        self.place = layout("smoke", str(self.out))
        self.processes: set[psutil.Process] = set()

    def begin(self) -> None:
        self.run, self.begun = start(self.out, self.log), self.begun + 1

    def living(self) -> list[psutil.Process]:
        """The processes of the run as it stands, its kernels last."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.run.pid)
            found = [parent, *parent.children(recursive=True)]
            self.processes |= {*found}
            return found
        return []

    def running(self, module: str) -> list[psutil.Process]:
        return [process for process in self.living() if python(process) == module]

    def files(self) -> dict[Path, int]:
        """Everything that the run has written so far, and when."""
        found = {}
        for path in self.place.runs.rglob("*"):
            with suppress(OSError):
                found[path] = path.stat().st_mtime_ns
        return found

    def jobs_done(self) -> int:
        return len(list(self.place.done("x").parent.glob("*")))

    def halfway(self) -> list[bool]:
        """Of each training that has not ended, whether it has a checkpoint to go on from."""
        folders = [self.place.weights(name) for name in NETWORKS]
        ended = [(one / BEST).exists() and Weights.read(one / BEST).finished for one in folders]
        return [(one / BEST).exists() for one, over in zip(folders, ended, strict=True) if not over]

    def writes(self) -> Iterator[Path]:
        """The files that appear or change from now on, as they do; the run is begun again where it has ended."""
        before, ends = self.files(), time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            if self.run.poll() is not None:
                assert self.run.returncode, "the run has ended before the last kill"
                self.begin()
            now = self.files()
            yield from (path for path, when in now.items() if before.get(path) != when)
            before = now
            time.sleep(0.002)
        pytest.fail(f"nothing happens: {self.log.read_text()[-2000:]}")


@contextmanager
def nothing_left_running(graph: Graph) -> Iterator[None]:
    try:
        yield
    finally:
        graph.living()
        for process in graph.processes:
            with suppress(psutil.Error):
                process.kill()


def kill_one(module: str) -> Callable[[Graph, np.random.Generator], bool]:
    """Kill one of the run's processes of a module; False where there is none."""

    def kill(graph: Graph, rng: np.random.Generator) -> bool:
        found = graph.running(module)
        if found:
            found[rng.integers(len(found))].kill()
        return bool(found)

    return kill


def kill_group(graph: Graph, rng: np.random.Generator) -> bool:
    """Kill what a terminal's end would; kernels are in sessions of their own, and are orphaned."""
    graph.living()
    os.killpg(graph.run.pid, signal.SIGKILL)
    return True


def kill_all(graph: Graph, rng: np.random.Generator) -> bool:
    """As when the machine loses its power."""
    for process in graph.living():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return True


KILLS = {
    "papermill": kill_one("pdlib.workflow"),
    "Snakemake": kill_one("pdlib.reproduce"),
    "a kernel": kill_one("ipykernel_launcher"),
    "everything while a file is written": kill_all,
    "the process group": kill_group,
}


def wait(graph: Graph, jobs: int, victim: str, rng: np.random.Generator) -> Path:
    """Let the run go on until so many jobs are done and some files more are written, and kill; the last of the files.

    While networks are trained it is their files that count, so that a kill finds a training halfway.
    """
    count = int(rng.integers(*WRITES[jobs == 1]))
    for path in graph.writes():
        training = jobs == 1 and graph.halfway()
        count -= graph.jobs_done() >= jobs and (path.suffix == ".safetensors" or not training)
        writing = path.name.startswith(DRAFT) or "while" not in victim
        if count <= 0 and writing and KILLS[victim](graph, rng):
            return path
    raise AssertionError("the run has ended")


def test_twenty_kills_change_no_table(whole, tmp_path):
    rng, graph, hit, halfway = np.random.default_rng(20), Graph(tmp_path), Counter(), 0
    with nothing_left_running(graph):
        graph.begin()
        for jobs, victim in zip(AFTER_JOBS, cycle(KILLS)):
            path = wait(graph, jobs, victim, rng)
            halfway += any(graph.halfway())
            hit[victim] += 1
            about = f"{graph.jobs_done()} jobs done, at {path.parent.name}/{path.name}"
            print(f"kill {hit.total()}: {victim}, {about}, trainings halfway: {graph.halfway()}", flush=True)
            if victim not in ("papermill", "a kernel"):
                graph.run.wait()
        drafts = [path.name for path in graph.files() if path.name.startswith(DRAFT)]
        graph.run.wait()
        graph.begin()
        assert graph.run.wait() == 0, graph.log.read_text()[-4000:]
    told = ", ".join(f"{count} of {victim}" for victim, count in hit.items())
    print(f"{hit.total()} kills ({told}); {halfway} met a training halfway, {len(drafts)} a write; {graph.begun} runs")
    assert halfway and drafts, "kills have met both"
    expected, found = (tables(root) for root in (whole, graph.out))
    assert found.keys() == expected.keys() and len(found) >= 4
    assert [name for name in found if found[name] != expected[name]] == []
    for weights in layout("smoke", str(whole)).runs.rglob("*.safetensors"):
        assert (graph.out / weights.relative_to(whole)).read_bytes() == weights.read_bytes(), weights.name
