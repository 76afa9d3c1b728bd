"""Notebooks as jobs: a profile's parameters, checked against the notebook that takes them, and one papermill run.

`python -m pdlib.workflow NOTEBOOK EXECUTED PARAMETERS` runs one, parameters as JSON: the Snakefile's jobs call it.
`python -m pdlib.workflow folds PROFILE FOLDS` prints the test folds that `make reproduce FOLDS=...` runs.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import papermill
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from pdlib.methods import SCORED, jobs
from pdlib.paths import NOTEBOOKS, ROOT, Layout, output_root
from pdlib.profiles import Profile, load_profile

TRAINED_SECTIONS = ("seed", "data", "segmenters", "denoiser", "wolleb2021", "tdpm", "refine", "fundus")
IN_WORKFLOW = "PDLIB_WORKFLOW"  # set in the environment of the graph's jobs
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message holds its name, the executed copy and the traceback."""


def place_of(profile: Profile, out: str = "", fold: int | None = None) -> Layout:
    """Where a fold of a profile lies (None: the profile's own fold); with changed settings, apart from the profile's."""
    if not profile.changes:
        return Layout(output_root(out), profile.name, profile.fold if fold is None else fold)
    digest = hashlib.sha256(json.dumps(profile.changes, sort_keys=True).encode()).hexdigest()[:8]
    retrained = any(getattr(profile, part) != getattr(load_profile(profile.name), part) for part in TRAINED_SECTIONS)
    return Layout(output_root(out), profile.name, profile.fold if fold is None else fold, digest, retrained)


def needed(notebook: str, profile: Profile) -> list[str]:
    """The notebook runs whose data and networks a notebook stands on when it runs by itself."""
    rows, seeds = profile.comparison, profile.comparison.deep_ensemble_seeds
    methods = {
        "04_compare_methods": rows.methods,
        "05_sweep_t_prime": ["pd_ddpm"],
        "06_ensemble_size": ["pd_ddpm", *profile.members.agreement_methods],
        "07_preseg_accuracy": ["pd_ddpm"],
        "08_truncate_both_ends": ["pd_ddpm"],
        "10_fewer_calls": profile.fewer_calls.starts,
    }
    if notebook in ("11_claims", "13_all_folds"):
        return ["01_prepare_data", *SCORED]
    if notebook in ("01_prepare_data", "09_read_the_kernels"):
        return []
    return [
        "01_prepare_data",
        *jobs(methods.get(notebook, []), presegmenter=rows.presegmenter, deep_ensemble_seeds=seeds),
    ]


def chosen_folds(profile: str, asked: str) -> list[int]:
    """The test folds that FOLDS asks for: the profile's own where it is empty, "all", or a list such as "0 2".

    ValueError for what is no fold of the profile.
    """
    settings = load_profile(profile)
    known = [str(fold) for fold in range(settings["01_prepare_data"]["folds"])]
    folds = known if asked == "all" else asked.split() or [str(settings["common"]["fold"])]
    if unknown := [fold for fold in folds if fold not in known]:
        raise ValueError(
            f"FOLDS={asked}: profile {profile} has no fold {unknown[0]!r}: say all, or of {', '.join(known)}"
        )
    return [int(fold) for fold in folds]


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse keys that the notebook's parameters cell does not set: papermill alone would run the default instead."""
    unknown = sorted(set(parameters) - set(papermill.inspect_notebook(notebook)))
    if unknown:
        raise ValueError(f"{notebook.name}: unknown parameters {unknown}")


def run_notebook(name: str, executed: Path, parameters: dict) -> None:
    """Execute notebooks/NAME.ipynb with parameters; the executed copy stays at executed, also where a cell fails.

    One job at a time may write executed: a second one waits, so a job that outlived its workflow is not disturbed.
    NotebookFailed carries a readable traceback.
    """
    notebook = NOTEBOOKS / f"{name}.ipynb"
    check_parameters(notebook, parameters)
    executed.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(executed.with_suffix(".lock")), TemporaryDirectory() as sockets:
        # TCP ports are drawn before they are bound: kernels that start at the same time may draw the same one.
        kernel = {"transport": "ipc", "ip": f"{sockets}/socket"}
        try:
            papermill.execute_notebook(
                notebook,
                executed,
                parameters,
                cwd=NOTEBOOKS,
                progress_bar=False,
                stdout_file=sys.stdout,
                config=Config({"KernelManager": kernel}),
            )
        except PapermillExecutionError as error:
            trace = _COLOUR.sub("", "\n".join(error.traceback))
            raise NotebookFailed(
                f"{notebook.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n{trace}\n"
                f"The executed copy: {executed}"
            ) from None


def require(place: Layout, *jobs: str) -> None:
    """Make what a notebook stands on, where it is missing: the earlier notebooks run first, once.

    jobs are notebook runs of the graph beside that of the data, which is always asked for. RuntimeError in a job of the
    graph itself: it would wait for ever for the workflow that waits for it.
    """
    targets = [place.done(job) for job in ("01_prepare_data", *jobs)]
    missing = [target for target in targets if not target.exists()]
    if not missing:
        return
    if IN_WORKFLOW in os.environ:
        raise RuntimeError(f"{missing[0]}: missing, and the workflow runs this notebook all the same")
    data = json.loads(place.cases.read_text(encoding="utf-8")) if place.cases.exists() else {"phantom": True}
    settings = {
        "PROFILE": place.profile,
        "FOLDS": place.fold,
        "OUT": place.out,
        "DATA": "" if data["phantom"] else data["root"],
        "PYTHON": sys.executable,
        "READY": "",
        "TARGETS": " ".join(f"'{target}'" for target in targets),
    }
    print("running the earlier notebooks first ...", flush=True)
    command = ["make", "-C", str(ROOT), "reproduce", *(f"{key}={value}" for key, value in settings.items())]
    subprocess.run(command, check=True)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        if sys.argv[1] == "folds":
            print(*chosen_folds(*sys.argv[2:]))
        else:
            executed = Path(sys.argv[2])
            print(f"{executed.stem} starts", flush=True)
            run_notebook(sys.argv[1], executed, json.loads(sys.argv[3]))
    except (NotebookFailed, ValueError) as error:
        sys.exit(str(error))
