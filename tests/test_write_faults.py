"""Every kind of file that is kept, and what may happen while it is written: the last good one stays.

Each is met by a full disk, a folder that cannot be written to, an interruption, and a kill before and after the fsync.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from papermill.iorw import papermill_io

from pdlib.data.nifti import write_volume
from pdlib.data.wmh import Grid
from pdlib.evaluation.records import read_table, write_table
from pdlib.inference.slices import Timed
from pdlib.paths import DRAFT, write_whole
from pdlib.report.style import save_figure
from pdlib.study.cache import file_name, first_members
from pdlib.training.weights import load_weights, write_weights
from pdlib.workflow import _write_copies_whole

SMALL, LARGE = 2_000, 400_000  # bytes, about; a disk that is full holds a tenth of the second
DISK = 200_000
RNG = np.random.default_rng(0)


def table(path: Path, size: int) -> None:
    write_table(path, pd.DataFrame({"name": ["x" * 99] * (size // 100)}), {"device": "cpu"})


def picture(path: Path, size: int) -> None:
    figure = Figure(figsize=(size**0.5 / 100,) * 2, dpi=100)
    figure.add_axes((0, 0, 1, 1)).imshow(RNG.random((int(size**0.5),) * 2))
    save_figure(figure, path.with_suffix(""))


def weights(path: Path, size: int) -> None:
    write_weights(path, {"a": torch.zeros(size // 4)}, {"kind": "segmenter"})


def members(path: Path, size: int) -> None:
    recipe = {"subject": "a", "size": size}
    first_members(path.parent, recipe, 1, lambda members: Timed(RNG.random((1, 1, 1, size), np.float32), 1, 1.0))


def volume(path: Path, size: int) -> None:
    noise = RNG.integers(0, 250, (size // 100, 10, 10))
    write_volume(path, noise, Grid((10, 10, size // 100), np.eye(4), nib.Nifti1Header()), np.uint8)


def executed(path: Path, size: int) -> None:
    _write_copies_whole()
    papermill_io.write("x" * size, str(path))


WRITERS = {
    "text.json": lambda path, size: write_whole(path, "x" * size),
    "table.csv": table,
    "picture.png": picture,
    "best.safetensors": weights,
    file_name("a"): members,
    "mask.nii.gz": volume,
    "executed.ipynb": executed,
}
by_writer = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=[one.split("-")[0] for one in WRITERS])


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A disk of its own, as small as DISK; without the right to mount one its tests are skipped."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here ({mounted.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def folder(disk) -> Path:
    shutil.rmtree(disk / "run", ignore_errors=True)
    (disk / "run").mkdir()
    return disk / "run"


def state(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for locks, which stay, and for drafts of writers that were killed."""
    files = [path for path in folder.iterdir() if path.suffix != ".lock" and not path.name.startswith(DRAFT)]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.fault("full disk")
@by_writer
def test_a_full_disk_is_one_line_with_the_file_and_the_last_good_one_stays(folder, name, write):
    write(folder / name, SMALL)
    before = state(folder)
    with pytest.raises(OSError, match=r"[Nn]o space left") as caught:
        write(folder / name, LARGE)
    assert f"{folder}/{name.split('.')[0]}" in str(caught.value) and "\n" not in str(caught.value)
    assert state(folder) == before and not list(folder.glob(f"{DRAFT}*")), "and no space is lost"
    write(folder / name, SMALL)


@pytest.mark.fault("unwritable folder")
@by_writer
def test_a_read_only_disk_is_one_line_with_the_file_and_the_last_good_one_stays(folder, name, write):
    write(folder / name, SMALL)
    before = state(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder.parent)], check=True)
    try:
        with pytest.raises(OSError, match="Read-only") as caught:
            write(folder / name, SMALL + 100)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder.parent)], check=True)
    assert f"{folder}/{name.split('.')[0]}" in str(caught.value) and "\n" not in str(caught.value)
    assert state(folder) == before


@pytest.mark.fault("interrupted write or computation")
@by_writer
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_and_a_lack_of_memory_leave_the_last_good_file(tmp_path, monkeypatch, name, write, error):
    write(tmp_path / name, SMALL)
    before = state(tmp_path)

    def interrupted(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(error):
        write(tmp_path / name, SMALL + 100)
    assert state(tmp_path) == before and not list(tmp_path.glob(f"{DRAFT}*"))


@pytest.mark.fault("kill -9")
@by_writer
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_leaves_the_last_good_file_and_the_next_write_goes_through(tmp_path, name, write, moment):
    write(tmp_path / name, SMALL)
    before = state(tmp_path)
    assert killed_at(moment, lambda: write(tmp_path / name, SMALL + 100)) == signal.SIGKILL
    assert state(tmp_path) == before and list(tmp_path.glob(f"{DRAFT}*"))
    write(tmp_path / name, SMALL + 100)
    assert state(tmp_path) != before


def killed_at(moment: str, write: Callable[[], None]) -> int:
    """The signal that ends a process which writes, and is killed when it comes to a function of `os`."""
    child = os.fork()
    if not child:
        setattr(os, moment, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
        try:
            write()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.fault("kill -9")
def test_what_a_kill_leaves_behind_goes_with_a_later_write(tmp_path):
    path = tmp_path / "a.csv"
    killed_at("fsync", lambda: write_whole(path, "half"))
    (draft,) = tmp_path.iterdir()
    write_whole(path, "whole")
    assert draft.exists(), "its writer may live"
    os.utime(draft, (0, 0))
    write_whole(path, "whole")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("kill -9")
def test_what_stays_after_a_kill_can_be_read(tmp_path, record_property):
    record_property("faults", 2)
    table(tmp_path / "table.csv", SMALL)
    weights(tmp_path / "best.safetensors", SMALL)
    for name, write in (("table.csv", table), ("best.safetensors", weights)):
        killed_at("fsync", lambda write=write, name=name: write(tmp_path / name, LARGE))
    assert len(read_table(tmp_path / "table.csv")) == SMALL // 100
    assert load_weights(tmp_path / "best.safetensors").tensors["a"].shape == (SMALL // 4,)
