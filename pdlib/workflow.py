"""One checked papermill run of a notebook, and the runs that it needs before it.

`python -m pdlib.workflow NOTEBOOK EXECUTED PARAMETERS` runs one, parameters as JSON: the Snakefile's jobs call it.
`pdlib.reproduce` runs the whole graph, `pdlib.graph` says what waits for what.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pdlib.graph import place_of
from pdlib.paths import NOTEBOOKS, ROOT, Layout, alone, write_whole
from pdlib.profiles import Profile, load_profile
from pdlib.progress import IN_WORKFLOW
from pdlib.sections.parameters import Parameters, require_allowed

LONGEST_SOCKET = 60  # bytes of a folder's name for sockets: a socket's whole path may have 103 on macOS, 107 on Linux
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message holds its name, the executed copy and the traceback."""


def check_parameters(notebook: Path, parameters: dict) -> None:
    """Refuse what the notebook cannot be run with, before a kernel starts. ValueError names the notebook.

    These are keys that its parameters cell does not set (papermill alone would run the default instead), a value of
    another type or out of its bounds, a profile or a fold that there is not, and a folder of data that is none.
    """
    from papermill import inspect_notebook

    if not isinstance(parameters, dict):
        raise ValueError(f"{notebook.name}: parameters {parameters!r}: should be names with their values")
    known = inspect_notebook(_as_it_is(notebook))
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{notebook.name}: unknown parameters {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        _require_runnable(require_allowed(known, parameters))
    except ValueError as error:
        raise ValueError("\n".join(f"{notebook.name}: {line}" for line in str(error).splitlines())) from None


def _require_runnable(given: Parameters) -> None:
    """ValueError where the profile, or what there is on disk, has not what the parameters name."""
    if "data" in given.model_fields_set and given.data and not os.path.isdir(given.data):
        raise ValueError(f"data: {given.data}: no such folder")
    if "profile" not in given.model_fields_set:
        return
    profile = load_profile(given.profile, given.changes)
    for fold in (given.fold, max(given.test_folds)):
        place_of(profile, given.out, fold)
    longest = max(given.t_primes or (0,))
    if longest > profile.chain.paper_steps:
        raise ValueError(f"t_primes: {longest}: exceeds chain.paper_steps {profile.chain.paper_steps}")


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

    _write_copies_whole()
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
        except RuntimeError as error:  # no word of a cell's: the kernel did not start, or something killed it
            told = f"{notebook.name}: {error} (short of memory?); the executed copy: {executed}"
            raise NotebookFailed(told) from None
    Told(executed.stem, bars_alone=False).write(last_words(executed))


@cache
def _write_copies_whole() -> None:
    """Papermill saves the executed copy at every cell: let it appear whole each time."""
    from papermill.iorw import LocalHandler, papermill_io

    class Whole(LocalHandler):
        def write(self, text: str, path: str) -> None:
            write_whole(Path(path), text)

    papermill_io.register(ROOT.anchor, Whole())


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
        "MEASURE": "0" if profile.reference else "1",  # what a lesson needs takes less time than its estimate is worth
    }
    inherited = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    here = Path(sys.executable)
    python = here.relative_to(ROOT) if here.is_relative_to(ROOT) else here
    print("running the earlier notebooks first ...", flush=True)
    command = ["make", "--no-print-directory", "reproduce", f"PYTHON={python}", "READY="]
    subprocess.run(command, check=True, cwd=ROOT, env=inherited | asked)


if __name__ == "__main__":
    name, executed, parameters = sys.argv[1:]
    try:
        run_notebook(name, Path(executed), json.loads(parameters))
    except (NotebookFailed, ValueError, OSError) as error:
        sys.exit(str(error))
