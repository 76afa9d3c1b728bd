"""`make reproduce`: what was asked, checked at once; then one graph of notebook runs for each test fold.

What the user gives comes as it was typed, in the environment: PDLIB_PROFILE, PDLIB_FOLDS, PDLIB_DATA, PDLIB_OUT_FOLDER,
PDLIB_CHANGES, PDLIB_CORES, PDLIB_CLUSTER, PDLIB_TARGETS, PDLIB_DRY and PDLIB_MEASURE. No shell reads it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pdlib.graph import graph, place_of, rule_name
from pdlib.paths import CLUSTERS, ROOT, Layout, alone, write_whole
from pdlib.profiles import Profile, asked_changes, load_profile
from pdlib.sections.text import read_yaml

REAL_DATA = "real-data"  # where runs on a user's data go unasked: never over the committed phantom results


@dataclass(frozen=True)
class Asked:
    """What a user asks for.

    Args:
        profile: every setting.
        folds: the test folds, one graph each.
        pooled: whether all folds are pooled at the end, as they are with every job of each.
        data: the folder of the cases, absolute; empty for the phantom.
        cases: how many lie there.
        out: the output root, absolute.
        cores: how many there are for jobs; on a cluster, how many jobs at a time, None: as its profile says.
        cluster: the folder of a Snakemake profile that runs the jobs elsewhere, absolute; None: they run here.
        targets: jobs of the graph; none: all of them.
        dry: only tell what would run.
        measured: first measure the machine, and tell what the run will cost.
    """

    profile: Profile
    folds: tuple[int, ...]
    pooled: bool
    data: str
    cases: int
    out: Path
    cores: int | None
    cluster: Path | None
    targets: tuple[str, ...]
    dry: bool
    measured: bool

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Asked":
        """Read an environment. ValueError, one line, for what cannot be run."""
        given = {key: given.get(f"PDLIB_{key}", "") for key in KEYS}
        profile = load_profile(given["PROFILE"] or "cpu", asked_changes(given["CHANGES"]))
        data = _folder("DATA", given["DATA"])
        cases = _count_cases(data) if data else 0
        profile.repeats.require_phantom(data)
        out = Path(_folder("OUT", given["OUT_FOLDER"] or (REAL_DATA if data else ".")))
        _require_writable(out)
        cluster = _cluster(given["CLUSTER"])
        if cluster and "$" in str(out):
            raise ValueError(f"OUT={out}: on a cluster Snakemake takes $ for a variable: choose another folder")
        return cls(
            profile,
            tuple(chosen_folds(profile, given["FOLDS"])),
            given["FOLDS"].strip() == "all" and not given["TARGETS"].strip(),
            data,
            cases,
            out,
            None if cluster and not given["CORES"] else _cores(given["CORES"]),
            cluster,
            _targets(given["TARGETS"], profile),
            given["DRY"] not in ("", "0"),
            given["MEASURE"] != "0",
        )

    def place(self, fold: int) -> Layout:
        """Where a fold of it lies."""
        return place_of(self.profile, str(self.out), fold)


KEYS = ("PROFILE", "FOLDS", "DATA", "OUT_FOLDER", "CHANGES", "CORES", "CLUSTER", "TARGETS", "DRY", "MEASURE")


def chosen_folds(profile: Profile, asked: str) -> list[int]:
    """The test folds that FOLDS asks for: the profile's own where it is empty, "all", or a list such as "0 2".

    ValueError for what is no fold of the profile, and for "all" where each fold would test the same further subjects.
    """
    if asked.strip() == "all" and profile.repeats.further_per_site:
        raise ValueError(f"FOLDS=all: all folds of profile {profile.name} test the same further subjects: ask for one")
    known = [str(fold) for fold in range(profile.data.folds)]
    folds = known if asked.strip() == "all" else asked.split() or [str(profile.fold)]
    if unknown := [fold for fold in folds if fold not in known]:
        raise ValueError(
            f"FOLDS={asked}: profile {profile.name} has no fold {unknown[0]!r}: say all, or of {', '.join(known)}"
        )
    return [int(fold) for fold in folds]


def _folder(name: str, given: str) -> str:
    """A folder as it was given, absolute; "" stays. Notebooks are UTF-8, and cannot hold another name."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={given.encode(errors='backslashreplace').decode()}: not a UTF-8 name") from None
    return given and os.path.realpath(given)


def _count_cases(data: str) -> int:
    """How many cases lie in a folder; ValueError where it is none, or holds none. Their files are not read."""
    from pdlib.data.wmh import find_cases  # a typo elsewhere need not wait for scipy

    try:
        return len(find_cases(data))
    except ValueError as error:
        raise ValueError(f"DATA={error}") from None


def _require_writable(out: Path) -> None:
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"OUT={out}: {error.strerror}") from None
    if not os.access(out / "runs", os.W_OK):
        raise ValueError(f"OUT={out}: cannot be written to")


def _cores(given: str) -> int:
    if not given:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"CORES={given}: has to be a number of cores, at least 1")
    return int(given)


def _cluster(given: str) -> Path | None:
    """The folder of a Snakemake profile: one of workflow/profiles by its name, or any other."""
    if not given:
        return None
    folder = CLUSTERS / given if (CLUSTERS / given).is_dir() else Path(_folder("CLUSTER", given))
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"CLUSTER={given}: {folder / 'config.yaml'}: no such file")
    return folder


def _targets(given: str, profile: Profile) -> tuple[str, ...]:
    known, targets = [*graph(profile), "13_all_folds"], tuple(given.split())
    if unknown := [target for target in targets if target not in known]:
        raise ValueError(f"TARGETS={given}: no job {unknown[0]!r}: choose of {', '.join(known)}")
    return targets


def reproduce(asked: Asked) -> int:
    """Run what was asked for: one fold here, several one after the other, each in a process of its own; exit code."""
    if len(asked.folds) == 1 and not asked.pooled:
        return run_graph(asked)
    calls = [{"PDLIB_FOLDS": str(fold)} for fold in asked.folds]
    if asked.pooled:
        calls.append({"PDLIB_FOLDS": str(asked.profile.fold), "PDLIB_TARGETS": "13_all_folds"})
    for call in calls:
        code = subprocess.run([sys.executable, "-m", "pdlib.reproduce"], env=os.environ | call).returncode
        if code:
            return code
    return 0


def run_graph(asked: Asked) -> int:
    """One fold's graph, in this process: whoever holds the lock knows that no other workflow lives there.

    Snakemake's own lock is left out: a killed run leaves it behind, ours ends with its process.
    """
    (fold,) = asked.folds
    place, words = asked.place(fold), f"make reproduce PROFILE={asked.profile.name} FOLDS={fold}"
    config = place.runs / ".graph.json"
    if asked.data:
        print(f"{asked.cases} cases in {asked.data!r}", flush=True)
    if asked.dry:
        write_whole(config, json.dumps(graph_settings(asked)))
        return snakemake(asked, config)
    with alone(asked.out / "runs" / ".lock", words):
        write_whole(config, json.dumps(graph_settings(asked)))
        if asked.measured and not asked.cluster:
            tell_cost(asked)
        return snakemake(asked, config)


def graph_settings(asked: Asked) -> dict:
    """What the Snakefile is told."""
    about = {"profile": asked.profile.name, "changes": asked.profile.changes, "fold": asked.folds[0]}
    return about | {"out": str(asked.out), "data": asked.data}


def snakemake(asked: Asked, config: Path) -> int:
    """Run the Snakefile in this process; its exit code. Every path it sees is relative to the output root."""
    from snakemake.cli import main

    from pdlib import graph_log

    os.environ["PDLIB_GRAPH"] = str(config)
    here = replace(asked.place(asked.folds[0]), out=Path())
    targets = [str(here.done(job)) for job in asked.targets]
    os.chdir(ROOT)
    arguments = ["--snakefile", "Snakefile", "--directory", str(asked.out), "--nolock"]
    arguments += ["--rerun-incomplete", "--keep-going", *where_jobs_run(asked)]
    arguments += ["--dry-run", "--printshellcmds"] if asked.dry else ["--logger", graph_log.register()]
    try:
        main([*arguments, "--", *targets])
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def where_jobs_run(asked: Asked) -> list[str]:
    """Snakemake's arguments: this machine with one job at a time on its GPU, or a cluster with what each job wants."""
    if not asked.cluster:
        return ["--cores", str(asked.cores), "--resources", "gpu=1"]
    chosen = ["--jobs", str(asked.cores)] if asked.cores else []
    return ["--profile", str(asked.cluster), *chosen, *_wants(asked)]


def _wants(asked: Asked) -> list[str]:
    """What the notebooks.yaml beside a cluster's profile says that a job of each notebook wants, rule by rule."""
    table = asked.cluster / "notebooks.yaml"
    wants = read_yaml(table.read_text(encoding="utf-8")) if table.exists() else {}
    rules = {rule_name(job): wants.get(job.partition(".")[0], {}) for job in graph(asked.profile)}
    rules["all_folds"] = wants.get("13_all_folds", {})
    found = [f"{rule}:{name}={value}" for rule, wanted in rules.items() for name, value in wanted.items()]
    return ["--set-resources", *found] if found else []


def tell_cost(asked: Asked) -> None:
    """Measure the machine for some seconds and print what the graph will cost; no run fails because of it."""
    place = asked.place(asked.folds[0])
    jobs = asked.targets or graph(asked.profile)
    if all(place.done(job).exists() for job in jobs):
        return
    told = json.dumps(graph_settings(asked) | {"targets": asked.targets, "started": time.time()})
    environment = os.environ | {"OMP_NUM_THREADS": str(asked.profile.machine.threads), "PDLIB_COST": told}
    subprocess.run([sys.executable, "-m", "pdlib.study.cost", str(asked.cores)], env=environment, cwd=ROOT)


def main() -> int:
    """Run what the environment asks for; an input that cannot be used is one line on stderr and code 2."""
    try:
        return reproduce(Asked.of(os.environ))
    except (ValueError, OSError) as error:
        print(f"make reproduce: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
