"""Where things lie: the only file that knows the tree, and how a file appears in it: whole or not at all.

And how two processes that write in one place exclude each other.
"""

import errno
import json
import os
import secrets
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from socket import gethostname
from typing import BinaryIO

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pdlib"
CONFIGS = ROOT / "configs"
CLUSTERS = ROOT / "workflow" / "profiles"  # Snakemake profiles, a folder each
NOTEBOOKS = ROOT / "notebooks"
DOCS = ROOT / "docs"
STYLE = ROOT / "figures" / "paper.mplstyle"
PAPER_NUMBERS = ROOT / "results" / "paper.csv"
COMMITTED = ROOT / "weights"  # networks that a clone comes with, laid out as those of a run; scan/: of the profile scan
REFERENCE = "night"  # the profile whose networks lie at the top of weights/, and whose results README quotes
RUN_TIMES = ROOT / "results" / "run_times.csv"  # columns profile, notebook, seconds
SCALE = ROOT / "results" / "scale.csv"  # of `pdlib.study.scale`
FAULTS = ROOT / "results" / "faults.csv"  # of `make faults`
BENCHMARKS = ROOT / "results"  # bench_<question>_<device>.csv
BEST_FIRST = ("paper", "scan", "gpu", "night", "cpu")  # profiles whose networks `segment` takes unasked
QUESTIONS = ("ops", "step", "operators", "chain", "train")  # of `make bench`, in its order
SHARED_JOBS = ("01_prepare_data", "09_read_the_kernels", "13_all_folds")  # notebook runs that belong to no one fold
DRAFT, STALE_SECONDS = ".draft-", 3600  # how a file is called before it is whole; of an older one the writer is dead
PROFILE_JOBS = (  # and those that belong to the profile as it stands, where changed settings leave its networks alone
    "01_prepare_data",
    "02_train_segmenters",
    "03_train_ddpm",
    "09_read_the_kernels",
    "12_wolleb2021",
    "14_distillation",
    "15_latent",
    "16_start_matched",
    "17_tdpm_generator",
    "18_noise_level",
)


def given_path(text: str) -> Path:
    """A path as a user has typed it, for argparse. An empty one is refused: it would be the folder that one is in."""
    if not text or "\0" in text:
        raise ArgumentTypeError("an empty path, or one with a NUL")
    return Path(text)


def open_regular(path: Path) -> BinaryIO:
    """A stream of a file's bytes. OSError where there is none; where it is a pipe or a device, which may never end."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OSError(errno.EINVAL, "a pipe or a device, not a regular file", str(path))
    return path.open("rb")


def measured_devices() -> list[str]:
    """Kinds of device, "cpu" and "cuda", that `make bench` has run on to its end."""
    return [
        device
        for device in ("cpu", "cuda")
        if all((BENCHMARKS / f"bench_{question}_{device}.csv").exists() for question in QUESTIONS)
    ]


@dataclass(frozen=True)
class Layout:
    """The folders of one test fold of a profile under an output root: runs (ignored by git), results and figures.

    Fold 0 lies at the top of each, fold k below fold_k there; the data and the folds at the top belong to all of them.

    Args:
        out: the output root.
        profile: its name.
        fold: the test fold.
        changed: tells runs with changed settings apart, empty for the profile as it stands; they lie below `changed`.
        own_networks: the changes concern the data or a training, so that networks are not those of the profile.
    """

    out: Path
    profile: str
    fold: int = 0
    changed: str = ""
    own_networks: bool = False

    @property
    def runs(self) -> Path:
        """Checkpoints, samples, executed notebooks."""
        return self._folder("runs")

    @property
    def results(self) -> Path:
        """Tidy CSV files, each with its stamp."""
        return self._folder("results")

    @property
    def figures(self) -> Path:
        """Pictures and tables, rebuilt from results."""
        return self._folder("figures")

    def _folder(self, kind: str) -> Path:
        changed = ("changed", self.changed) if self.changed else ()
        return self.out.joinpath(kind, self.profile, *changed, f"fold_{self.fold}" if self.fold else "")

    @property
    def shared(self) -> "Layout":
        """Where lies what all folds share: the layout of fold 0."""
        return replace(self, fold=0)

    @property
    def trained(self) -> "Layout":
        """Where data and networks are found: the profile's own, unless the changes concern them."""
        return self if self.own_networks else replace(self, changed="")

    @property
    def confirmation(self) -> Path:
        """The scores of subjects that the ledger alone is read from (`study.confirm`), where a profile has such."""
        return self.results / "confirmation"

    @property
    def cases(self) -> Path:
        """What the first notebook found: the data folder, its fingerprint and its preprocessing."""
        return self.trained.shared.runs / "cases.json"

    @property
    def folds(self) -> Path:
        """The subject-level folds."""
        return self.trained.shared.results / "folds.csv"

    def done(self, job: str) -> Path:
        """The mark that a notebook run has ended. Results alone say nothing: committed ones come without their run."""
        return self.of(job).runs / "done" / job

    def executed(self, job: str) -> Path:
        """The executed copy of a notebook run."""
        return self.of(job).runs / "notebooks" / f"{job}.ipynb"

    def of(self, job: str) -> "Layout":
        """Where a notebook run belongs, among changed settings and folds."""
        notebook = job.partition(".")[0]
        place = self.trained if notebook in PROFILE_JOBS else self
        return place.shared if notebook in SHARED_JOBS else place

    @property
    def book(self) -> Path:
        """The book that `make book` builds of the run: its sources and its HTML."""
        return self.runs / "book"

    def weights(self, name: str) -> Path:
        """The folder of one training."""
        return self.runs / "weights" / name

    def presegs(self, name: str) -> Path:
        """The folder of one segmenter's predictions."""
        return self.runs / "presegs" / name

    def samples(self, *names: str) -> Path:
        """The folder of one chain's sampled members."""
        return self.runs.joinpath("samples", *names)


def output_root(out: str = "") -> Path:
    """The folder below which a run writes: out, or else $PDLIB_OUT, or else the repository."""
    return Path(out or os.environ.get("PDLIB_OUT") or ROOT).resolve()


def layout(profile: str, out: str = "", fold: int = 0) -> Layout:
    """The layout of a fold of a profile, as it stands in configs/, under `output_root(out)`."""
    return Layout(output_root(out), profile, fold)


def weights_folder(profile: str) -> Path:
    """Where a profile's networks lie, those of fold 0: under $PDLIB_OUT or else the repository."""
    return layout(profile).weights("denoiser_0").parent


def committed_weights(name: str, profile: str = "") -> Path:
    """The weights file of a training that the repository comes with, whether or not there is one.

    profile: one whose networks lie in a folder of their own; those of the reference study lie at the top.
    """
    return COMMITTED / profile / name / "best.safetensors"


def committed_scores(profile: str = "") -> Path:
    """What the weights of a profile that the repository comes with have scored; profile as in `committed_weights`."""
    return ROOT / "results" / (f"weights_{profile}.csv" if profile else "weights.csv")


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file that appears whole or not at all, text as UTF-8; OSError names the file."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name in the same folder, with the same suffixes, for the block to write; then it becomes `path` at once.

    The folder is made if it is missing. When the block fails, the new file goes and the one of before stays. An OSError
    about the new file, a full disk for instance, names `path`. What killed writers have left in the folder goes, too.
    """
    path = Path(path)
    temporary = path.with_name(f"{DRAFT}{secrets.token_hex(6)}{''.join(path.suffixes[-2:])}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that is read-only even a file that is not there cannot be removed
            temporary.unlink()


def _sweep(folder: Path) -> None:
    for draft in folder.glob(f"{DRAFT}*"):
        with suppress(OSError):  # another writer may sweep at the same time
            if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                draft.unlink()


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
        print(f"{doing}: waiting for {_told(holder)}", file=sys.stderr, flush=True)
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
