"""Notebooks as jobs: what each stands on, what it reads of a profile, and one checked papermill run of it.

`python -m pdlib.workflow NOTEBOOK EXECUTED PARAMETERS` runs one, parameters as JSON: the Snakefile's jobs call it.
`pdlib.reproduce` runs the whole graph.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import reduce
from pathlib import Path
from socket import gethostname

from filelock import FileLock, Timeout
from pydantic import BaseModel

from pdlib.methods import CHAIN, SCORED, jobs, refine_name
from pdlib.paths import NOTEBOOKS, ROOT, Layout, committed_weights, output_root, write_whole
from pdlib.profiles import Profile, ProfileError, load_profile
from pdlib.progress import IN_WORKFLOW

LONGEST_SOCKET = 60  # bytes of a folder's name for sockets: a socket's whole path may have 103 on macOS, 107 on Linux
TRAINED_SECTIONS = (  # of the jobs in paths.PROFILE_JOBS
    *("seed", "repeats", "data", "segmenters", "denoiser", "wolleb2021", "tdpm"),
    *("distillation", "latent", "start_matched", "noise_level"),
)
_MACHINE = ("machine.device", "machine.precision", "machine.batch_size")
_CROPS = ("data.multiple", "data.t1_dropped")
_SAMPLED = ("seed", "repeats", *_CROPS, *_MACHINE, "ensemble", "chain", "comparison.presegmenter")
_READ = {  # the sections of the profile that a notebook reads: its jobs run again when one of them changes
    "00_tour": (*_SAMPLED, "sweep.t_primes", "comparison.deep_ensemble_seeds"),
    "01_prepare_data": (
        *("seed", "repeats"),
        *(f"data.{name}" for name in ("folds", "clip_percentiles", "cases_per_site", "grid_scale", "label2_fraction")),
    ),
    "02_train_segmenters": ("seed", *_CROPS, *_MACHINE, "ensemble", "segmenters.objective", "segmenters.fit"),
    "03_train_ddpm": (*_SAMPLED, "denoiser", "voxel_tolerance"),
    "04_compare_methods": (*_SAMPLED, "comparison", "tdpm.limits", "statistics"),
    "05_sweep_t_prime": (*_SAMPLED, "sweep", "statistics"),
    "06_ensemble_size": (*_SAMPLED, "members", "comparison.deep_ensemble_seeds", "statistics"),
    "07_preseg_accuracy": (*_SAMPLED, "preseg_accuracy", "statistics"),
    "08_truncate_both_ends": (*_SAMPLED, "truncation", "refine", "fundus", "comparison.methods", "statistics"),
    "09_read_the_kernels": (),
    "10_fewer_calls": (*_SAMPLED, "fewer_calls", "statistics"),
    "11_claims": ("seed", "comparison.presegmenter", "fewer_calls.few_calls", "statistics"),
    "12_wolleb2021": (*_SAMPLED, "denoiser.diffusion", "wolleb2021"),
    "14_distillation": (*_SAMPLED, "distillation"),
    "15_latent": (*_SAMPLED, "denoiser.diffusion.schedule", "latent"),
    "16_start_matched": (*_SAMPLED, "denoiser.diffusion", "segmenters.objective", "start_matched"),
    "17_tdpm_generator": (*_SAMPLED, "tdpm"),
    "18_noise_level": (*_SAMPLED, "noise_level"),
    "13_all_folds": (
        *("seed", "data.folds", "comparison.presegmenter", "fewer_calls.few_calls", "preseg_accuracy", "statistics"),
    ),
}
_BUILDS_ON = {  # trainings that look at these rows on validation subjects, with the first repeat's networks
    "14_distillation": [CHAIN],
    "15_latent": [CHAIN],
    "16_start_matched": [CHAIN],
    "17_tdpm_generator": ["ddpm"],
    "18_noise_level": [CHAIN],
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message holds its name, the executed copy and the traceback."""


def place_of(profile: Profile, out: str = "", fold: int | None = None) -> Layout:
    """Where a fold of a profile lies (None: its own fold); with changed settings, apart from the profile's."""
    fold = profile.fold if fold is None else fold
    if not 0 <= fold < profile.data.folds:
        raise ProfileError(f"fold {fold}: profile {profile.name} has folds 0 to {profile.data.folds - 1}")
    if not profile.changes:
        return Layout(output_root(out), profile.name, fold)
    digest = hashlib.sha256(json.dumps(profile.changes, sort_keys=True).encode()).hexdigest()[:8]
    own = load_profile(profile.name)
    retrained = any(getattr(profile, part) != getattr(own, part) for part in TRAINED_SECTIONS)
    retrained |= "tdpm" in profile.rows - own.rows
    return Layout(output_root(out), profile.name, fold, digest, retrained)


def needed(notebook: str, profile: Profile) -> list[str]:
    """The notebook runs whose data and networks a notebook stands on when it runs by itself.

    A profile with a `reference` needs no training whose network the repository comes with.
    """
    methods = {
        "00_tour": [CHAIN, "ddpm", "deep_ensemble"],
        "04_compare_methods": profile.comparison.methods,
        "05_sweep_t_prime": [CHAIN],
        "06_ensemble_size": [CHAIN, "ddpm", "deep_ensemble", *profile.members.agreement_methods],
        "07_preseg_accuracy": [CHAIN],
        "08_truncate_both_ends": [CHAIN],
        "10_fewer_calls": profile.fewer_calls.starts,
    }
    if notebook in ("11_claims", "13_all_folds"):
        return ["01_prepare_data", *(() if profile.reference else SCORED)]
    if notebook in ("01_prepare_data", "09_read_the_kernels"):
        return []
    if notebook in _BUILDS_ON:
        first = profile.repeats.seeds[:1]
        return ["01_prepare_data", *_trainings(_BUILDS_ON[notebook], profile, first)]
    found = ["01_prepare_data", *_trainings(methods.get(notebook, []), profile)]
    if notebook == "07_preseg_accuracy" and profile.reference:  # earlier checkpoints are a training's own
        found.append(f"02_train_segmenters.{profile.comparison.presegmenter}_{profile.repeats.seeds[0]}")
    return list(dict.fromkeys(found))


def comes_along(job: str, profile: Profile) -> bool:
    """Whether the repository comes with the network that a training makes, and the profile takes it from there."""
    notebook, _, what = job.partition(".")
    made = {
        "02_train_segmenters": what,
        "03_train_ddpm": f"denoiser_{what}",
        "08_truncate_both_ends": refine_name(profile.chain.t_stop, False),
        "16_start_matched": f"start_matched_{what}",
        "18_noise_level": "noise_level",
    }
    return profile.reference is not None and notebook in made and committed_weights(made[notebook]).exists()


def _trainings(methods: Iterable[str], profile: Profile, seeds: Sequence[int] | None = None) -> list[str]:
    """The trainings that rows take, of some repeats; None: of all."""
    compared = profile.comparison
    how = {"presegmenter": compared.presegmenter, "deep_ensemble_seeds": list(compared.deep_ensemble_seeds)}
    found = jobs(list(methods), **how, seeds=list(profile.repeats.seeds if seeds is None else seeds))
    return [job for job in found if not comes_along(job, profile)]


def _before(training: str, profile: Profile) -> list[str]:
    """What a training waits for: a repeat's own networks, and what the first repeat has trained for all of them."""
    notebook, _, what = training.partition(".")
    if notebook != "16_start_matched":
        return needed(notebook, profile)
    first = f"{notebook}.{profile.repeats.seeds[0]}"
    own = ["01_prepare_data", *_trainings(_BUILDS_ON[notebook], profile, [int(what)])]
    return own if training == first else [*own, first]


def graph(profile: Profile) -> dict[str, list[str]]:
    """Every job of a fold, and the jobs that each waits for.

    A job is a notebook's name, with a dot and what it is for where the notebook runs several times. The tour, 04, 06
    and 07 wait for the points of the sweep, since they go on from its samples.
    """
    points = [f"05_sweep_t_prime.{t_prime}" for t_prime in profile.sweep.t_primes]
    starts = {f"10_fewer_calls.{start}": [start] for start in profile.fewer_calls.starts}
    found = {"01_prepare_data": []}
    for training in [job for notebook in SCORED for job in needed(notebook, profile)[1:]]:
        found.setdefault(training, _before(training, profile))
    found |= {point: needed("05_sweep_t_prime", profile) for point in points}
    found |= {job: ["01_prepare_data", *_trainings(start, profile)] for job, start in starts.items()}
    found |= {
        "00_tour": [*points, *needed("00_tour", profile)],
        "04_compare_methods": [*points, *needed("04_compare_methods", profile)],
        "05_sweep_t_prime": points,
        "06_ensemble_size": [*points, *needed("06_ensemble_size", profile)],
        "07_preseg_accuracy": [*points, *needed("07_preseg_accuracy", profile)],
        "08_truncate_both_ends": needed("08_truncate_both_ends", profile),
        "09_read_the_kernels": [],
        "10_fewer_calls": list(starts),
        "11_claims": list(SCORED),
    }
    return found


def sections_read(job: str, profile: Profile) -> dict:
    """The settings that a job reads, by their paths in the profile."""
    notebook, _, what = job.partition(".")
    paths = _READ[notebook]
    if notebook == "02_train_segmenters":
        architecture = what.rpartition("_")[0]
        own = ("probabilistic_objective",) if architecture == "probabilistic_unet" else ()
        paths += tuple(f"segmenters.{name}" for name in (architecture, *own))
    elif what and notebook == "05_sweep_t_prime":  # one point reads no list of points
        paths = tuple("sweep.ensemble_size" if path == "sweep" else path for path in paths)
    found = {path: _plain(reduce(getattr, path.split("."), profile)) for path in paths}
    if what and notebook == "10_fewer_calls":
        del found["fewer_calls"]["starts"]
    return found


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def cells_digest(notebook: Path) -> str:
    """A digest of a notebook's code: the same whatever outputs and whatever text it was saved with."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse keys that the notebook's parameters cell does not set: papermill alone would run the default instead."""
    from papermill import inspect_notebook

    known = inspect_notebook(_as_it_is(notebook))
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{notebook.name}: unknown parameters {', '.join(unknown)}; it has {', '.join(known)}")


def _as_it_is(path: Path) -> str:
    """A path for papermill, which fills in parameters where it sees braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


class Told:
    """What a job tells the log while it runs: each line of a `progress.LogBar` or of stderr, with the job's name."""

    def __init__(self, job: str, bars_alone: bool):
        self.job, self.bars_alone = job, bars_alone

    def write(self, text: str) -> None:
        """Take what a cell has just written. Lines that return no carriage are no bar's."""
        for line in text.split("\r")[1:] if self.bars_alone else re.split(r"[\r\n]+", text):
            if line.strip():
                print(f"{self.job}: {line.rstrip()}", flush=True)

    def flush(self) -> None:
        """Nothing waits."""


def run_notebook(name: str, executed: Path, parameters: dict, *, folder: Path | None = None) -> None:
    """Execute a notebook with parameters; the executed copy stays at executed, also where a cell fails.

    folder: where NAME.ipynb lies; None: in notebooks/. While it runs the log hears of its progress and its warnings, at
    the end its last words. One job at a time may write executed: a second one waits, so a job that outlived its
    workflow is not disturbed. NotebookFailed carries a readable traceback.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    notebook, executed = (folder or NOTEBOOKS) / f"{name}.ipynb", Path(executed).absolute()
    check_parameters(notebook, parameters)
    with alone(executed.with_suffix(".lock"), executed.stem), socket_folder() as sockets:
        # TCP ports are drawn before they are bound: kernels that start at the same time may draw the same one.
        kernel = {"transport": "ipc", "ip": f"{sockets}/s"}
        # Without the widgets' state a copy is shown by its pictures; with it, nbconvert loads scripts from the net.
        # Streams are joined: of a bar the last state alone is kept. A kernel is interrupted at its end, which it would
        # call an error.
        client = {"store_widget_state": False, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}
        try:
            papermill.execute_notebook(
                _as_it_is(notebook),
                _as_it_is(executed),
                parameters,
                cwd=NOTEBOOKS,
                progress_bar=False,
                stdout_file=Told(executed.stem, bars_alone=True),
                stderr_file=Told(executed.stem, bars_alone=False),
                coalesce_streams=True,
                config=Config({"KernelManager": kernel, "NotebookClient": client}),
            )
        except PapermillExecutionError as error:
            trace = _COLOUR.sub("", "\n".join(error.traceback))
            raise NotebookFailed(
                f"{notebook.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n{trace}\n"
                f"The executed copy: {executed}"
            ) from None
    Told(executed.stem, bars_alone=False).write(last_words(executed))


def last_words(executed: Path) -> str:
    """What the last cell of an executed notebook printed: its conclusion."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    told = [output for cell in cells[-1:] for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in told)


@contextmanager
def socket_folder() -> Iterator[str]:
    """A new folder that only this user can enter, with a name short enough for sockets whatever TMPDIR is."""
    wanted = [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for base in (base for base in wanted if len(os.fsencode(base)) <= LONGEST_SOCKET and os.access(base, os.W_OK)):
        with tempfile.TemporaryDirectory(dir=base, prefix="pdlib") as folder:
            yield folder
        return
    raise OSError(f"no folder for sockets: none of {', '.join(wanted)} is short and can be written to")


def require(place: Layout, profile: Profile, jobs: Sequence[str]) -> None:
    """Make what a notebook stands on, where it is missing: the earlier notebooks run first, once.

    jobs are jobs of the graph. In a job of the graph itself nothing is made: the graph has made what the job waits for,
    and a run within it would wait for ever for the workflow that waits for it.
    """
    missing = [job for job in jobs if not place.done(job).exists()]
    if not missing or IN_WORKFLOW in os.environ:
        return
    data = json.loads(place.cases.read_text(encoding="utf-8")) if place.cases.exists() else {"given": False}
    asked = {
        "PROFILE": profile.name,
        "FOLDS": str(place.fold),
        "OUT": str(place.out),
        "DATA": data["root"] if data["given"] else "",
        "CHANGES": json.dumps(profile.changes),
        "TARGETS": " ".join(missing),
    }
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    here = Path(sys.executable)
    python = here.relative_to(ROOT) if here.is_relative_to(ROOT) else here
    print("running the earlier notebooks first ...", flush=True)
    command = ["make", "--no-print-directory", "reproduce", f"PYTHON={python}", "READY="]
    subprocess.run(command, check=True, cwd=ROOT, env=inherited | asked)


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file. While another process holds it, say which one and wait; that of a dead process is no obstacle.

    doing: what the others are told that this process does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_name(f"{path.name}.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{doing}: waiting for {_told(holder)}", flush=True)
        lock.acquire(poll_interval=0.5)
    about = {"pid": os.getpid(), "host": gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "doing": doing}
    try:
        write_whole(holder, json.dumps(about))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _told(holder: Path) -> str:
    try:
        return "{doing} (process {pid} on {host}, since {since})".format(**json.loads(holder.read_text("utf-8")))
    except (OSError, ValueError, KeyError):
        return "another run, which is just starting or ending"


if __name__ == "__main__":
    name, executed, parameters = sys.argv[1:]
    try:
        run_notebook(name, Path(executed), json.loads(parameters))
    except (NotebookFailed, ValueError, OSError) as error:
        sys.exit(str(error))
