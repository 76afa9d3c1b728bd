"""What a run will cost on this machine: the updates and network calls of every job that is not done, times their price.

`python -m pdlib.study.cost CORES` prints it for the graph settings in PDLIB_COST (JSON): `make reproduce` calls it.
"""

import heapq
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from pdlib.data import phantom, wmh
from pdlib.data.wmh import Case
from pdlib.graph import graph, place_of
from pdlib.inference.window import Window
from pdlib.paths import CONFIGS, Layout
from pdlib.profiles import Profile, ProfileError, load_profile
from pdlib.study.run import spread_over
from pdlib.study.speed import Head, measure
from pdlib.study.work import Unit, missing, works

COPY = "PDLIB_COST_COPY"  # set in the processes that only keep the other cores busy
MOST_COPIES = 8
MOST_HEADS = 3  # subjects that are looked at
CROWDED = 0.75  # the share of the processor below which other programs are told of
START_SHARE = 2.5  # a job's papermill, kernel and imports beside others', of this process's imports by itself


@dataclass(frozen=True)
class Machine:
    """What a run meets: its subjects, what a unit of work takes, and how many jobs run at a time."""

    subjects: int
    slices: int
    prices: Mapping[Unit, float]
    slots: int
    share: float = 1.0  # of the processor that a job got while this was measured; the rest went to other programs

    def seconds(self, profile: Profile, jobs: Sequence[str]) -> dict[str, float]:
        """What each job takes by itself."""
        work = works(profile, self.subjects, self.slices)
        found = {job: sum(count * self.prices.get(unit, 0.0) for unit, count in work[job].items()) for job in jobs}
        if "01_prepare_data" in found:
            found["01_prepare_data"] /= profile.machine.workers
        return found


def wall_seconds(profile: Profile, seconds: Mapping[str, float], slots: int) -> float:
    """How long jobs take with so many at a time, each once those that it waits for are done."""
    jobs = graph(profile)
    waits = {job: {one for one in jobs[job] if one in seconds} for job in seconds}
    running, now, left = [], 0.0, dict(sorted(seconds.items(), key=lambda item: -item[1]))
    while left or running:
        for job in [job for job in left if not waits[job]]:
            if len(running) < slots:
                heapq.heappush(running, (now + left.pop(job), job))
        now, ended = heapq.heappop(running)
        for others in waits.values():
            others.discard(ended)
    return now


def cheaper(profile: Profile) -> dict[str, Profile]:
    """Other settings that leave the trained networks as they are, by what CHANGES= says."""
    rows = [name for name in profile.comparison.methods if name not in ("wolleb2021", "tdpm", "addpm_mask_only")]
    ways = [
        {"fundus": None},
        {"comparison": {"methods": rows}, "fewer_calls": {"starts": ["pd_ddpm", "ddpm"]}},
        {"sweep": {"t_primes": [t for t in (50, 300, 1000) if t in profile.sweep.t_primes]}},
        {"ensemble": {"size": 3}, "sweep": {"ensemble_size": 2}},
    ]
    found = {}
    for way in ways:
        try:
            found[json.dumps(way)] = load_profile(profile.name, _joined(profile.changes, way))
        except ProfileError:
            continue
    return found


def _joined(one: Mapping, other: Mapping) -> dict:
    """Two changes of a profile as one, section by section."""
    sections = {key: {**one.get(key, {}), **value} if value else value for key, value in other.items()}
    return {**one, **sections}


def look(profile: Profile, place: Layout, data: str) -> tuple[int, Head, float]:
    """How many subjects there are, what one looks like, and the seconds that writing or reading one takes."""
    started = time.perf_counter()
    if place.cases.exists() and place.folds.exists():
        about = json.loads(place.cases.read_text(encoding="utf-8"))
        cases = wmh.find_cases(about["root"])
        return len(cases), _head(profile, _some(cases)), _each(started, len(_some(cases)))
    if data:
        cases = wmh.find_cases(data)
        return len(cases), _head(profile, _some(cases)), _each(started, len(_some(cases)))
    recipe = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))["phantom"]
    how = {"grid_scale": profile.data.grid_scale, "label2_fraction": profile.data.label2_fraction}
    with TemporaryDirectory() as folder:
        written = phantom.write_case(Path(folder), 1, 0, seed=profile.seed, parameters=recipe, **how)
        seconds = _each(started, 1)
        head = _head(profile, [Case(written, "", Path(folder) / written)])
    per_site = profile.data.cases_per_site + profile.repeats.further_per_site
    return len(recipe["sites"]) * per_site, head, seconds


def _some(cases: list[Case]) -> list[Case]:
    return spread_over(cases, MOST_HEADS)


def _each(started: float, count: int) -> float:
    return (time.perf_counter() - started) / count


def _head(profile: Profile, cases: list[Case]) -> Head:
    """The mean of some subjects."""
    volumes = [wmh.read_case(case, clip_percentiles=tuple(profile.data.clip_percentiles)) for case in cases]
    windows = [Window.around(volume.brain, profile.data.multiple) for volume in volumes]
    middle = sorted(range(len(cases)), key=lambda i: windows[i].height * windows[i].width)[len(cases) // 2]
    slices = round(np.mean([len(window.slices) for window in windows]))
    window, volume = windows[middle], volumes[middle]
    return Head(slices, window.height, window.width, volume.brain.shape, tuple(volume.spacing_mm))


def about(seconds: float) -> str:
    """A duration as far as an estimate can be trusted."""
    for limit, unit, step, name in (
        (90, 1, 10, "s"),
        (20 * 60, 60, 1, "min"),
        (90 * 60, 60, 5, "min"),
        (36 * 3600, 3600, 0.5, "h"),
        (math.inf, 86400, 1, "days"),
    ):
        if seconds < limit:
            return f"about {max(step, round(seconds / unit / step) * step):g} {name}"
    raise AssertionError


def report(profile: Profile, jobs: Sequence[str], machine: Machine) -> str:
    """What the jobs will cost, a line for each notebook, and which settings make it cheaper."""
    seconds = machine.seconds(profile, jobs)
    wall = wall_seconds(profile, seconds, machine.slots)
    lines = [f"{len(jobs)} jobs to run, {machine.slots} at a time on this machine: {about(wall)} in all"]
    if machine.share < CROWDED:
        lines.append(f"  as long as other programs run beside it; without them {about(wall * machine.share)}")
    notebooks, runs = Counter(), Counter(job.partition(".")[0] for job in jobs)
    for job, spent in seconds.items():
        notebooks[job.partition(".")[0]] += spent
    for name, spent in sorted(notebooks.items()):
        lines.append(f"  {name:24}{about(spent)}{f' in {runs[name]} runs' if runs[name] > 1 else ''}")
    for changes, other in cheaper(profile).items():
        theirs = machine.seconds(other, [job for job in jobs if job in graph(other)])
        less = wall - wall_seconds(other, theirs, machine.slots)
        if less > 0.05 * wall:
            lines.append(f"  {about(less)} less: CHANGES='{changes}'")
    if profile.name != "smoke":
        lines.append("  least, to see everything run: PROFILE=smoke")
    return "\n".join(lines)


def copies(slots: int) -> list[subprocess.Popen]:
    """Processes that measure the same at the same time: jobs that run beside each other slow each other."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "pdlib.study.cost", "1"]
    count = min(slots, MOST_COPIES) - 1
    return [subprocess.Popen(command, env=os.environ | {COPY: "1"}, **quiet) for _ in range(count)]


def main(cores: int, asked: Mapping) -> None:
    """Measure, and print the report."""
    profile = load_profile(asked["profile"], asked["changes"])
    place = place_of(profile, asked["out"], asked["fold"])
    jobs = missing(profile, place, asked["targets"])
    if not jobs:
        return
    import torch

    alone = profile.machine.gpus_per_job and torch.cuda.is_available()
    slots = 1 if alone else max(1, cores // profile.machine.threads)
    if COPY not in os.environ:
        print("measuring this machine for some seconds ...", flush=True)
    beside = [] if COPY in os.environ else copies(slots)
    try:
        start = time.time() - asked["started"]
        subjects, head, case = look(profile, place, asked["data"])
        units = {unit for job, work in works(profile, subjects, head.slices).items() if job in jobs for unit in work}
        before = time.process_time(), time.perf_counter()
        prices = measure(profile, head, units)
        got, passed = time.process_time() - before[0], time.perf_counter() - before[1]
        # Several threads, or a GPU, leave the processor idle of themselves.
        share = got / passed if profile.machine.threads == 1 and not alone else 1.0
        prices |= {("case", ""): case, ("start", ""): START_SHARE * start}
    finally:
        for one in beside:
            one.kill()
            one.wait()
    if COPY not in os.environ:
        print(report(profile, jobs, Machine(subjects, head.slices, prices, slots, share)), flush=True)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), json.loads(os.environ["PDLIB_COST"]))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"no estimate of the cost: {error}", flush=True)
