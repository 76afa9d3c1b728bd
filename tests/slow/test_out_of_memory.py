"""Memory that really runs out, in a process that may have no more of it: one line, and the last good state stays."""

import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from small_training import PLAN, train

from pdlib.__main__ import main
from pdlib.inference.segment import FILES
from pdlib.paths import layout
from pdlib.training.weights import Weights

MB = 2**20
ROOMS = (1, 5, 15, 25, 30, 35, 60, 90)  # megabytes that a process may have beside what it holds
BLOCKS = (64 * MB, 8 * MB, MB)  # bytes at a time of what has been freed
TAKEN: list[torch.Tensor] = []
LARGE = 384  # pixels of a crop: an update takes some hundred megabytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its RLIMIT_AS")


def starve(room: int) -> None:
    """Let this process have no more memory than so many megabytes beside what it holds; what it has freed but not given
    back to the system is taken first, for ever."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held, (_, most) = pages * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held, most))
    for size in BLOCKS:
        with suppress(RuntimeError):
            while True:
                TAKEN.append(torch.empty(size, dtype=torch.uint8))
    resource.setrlimit(resource.RLIMIT_AS, (held + room * MB, most))


def apart(work: Callable[[], int], told: Path) -> tuple[int, list[str]]:
    """The exit code of work in a process of its own, forked from this one, and what it says on stderr."""
    child = os.fork()
    if not child:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr, code = os.fdopen(2, "w", closefd=False), 99
        try:
            torch.set_num_threads(1)
            code = work()
        except MemoryError as error:
            print(error, file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, told.read_text().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.fault("out of memory")
def test_a_training_says_so_keeps_its_checkpoint_and_goes_on_from_it(tmp_path):
    folder, at = tmp_path / "small", PLAN.validate_every + 2

    def short_of_memory(done, losses):
        if done == at:
            starve(room=1)

    def fit(folder: Path, on_step: Callable) -> int:
        train(folder, on_step, LARGE)
        return 0

    code, said = apart(lambda: fit(folder, short_of_memory), tmp_path / "told")
    assert code == 99
    assert said == [f"training small: out of memory; it goes on from {folder / 'last.safetensors'}"]
    assert Weights.read(folder / "last.safetensors").card["done"] == PLAN.validate_every
    for path in (folder, tmp_path / "never short"):
        assert apart(lambda path=path: fit(path, lambda done, losses: None), tmp_path / "told")[0] == 0
    assert contents(folder) == contents(tmp_path / "never short")


@pytest.mark.fault("out of memory")
def test_segment_says_so_and_an_earlier_result_stays(finished, tmp_path, record_property):
    place, out = layout("smoke", str(finished)), tmp_path / "out"
    (flair, *_) = sorted(place.runs.glob("phantom-*/**/pre/FLAIR.nii.gz"))
    given = ["--flair", flair, "--t1", flair.with_name("T1.nii.gz"), "--weights", place.weights("x").parent]
    words = [*map(str, given), "--members", "2", "--calls", "2", "--device", "cpu", "--out"]
    assert main(["segment", *words, str(out)]) == 0
    before, codes = contents(out), []
    assert before.keys() == {*FILES.values()}

    def segment_in(room: int, folder: Path) -> int:
        starve(room)
        return main(["segment", *words, str(folder)])

    for room in ROOMS:
        for folder in (out, tmp_path / f"new {room}"):
            code, said = apart(lambda room=room, folder=folder: segment_in(room, folder), tmp_path / "told")
            codes.append(code)
            if code:
                assert code == 2 and said[-1].startswith("pdlib: ") and "out of memory" in said[-1].lower(), said
                assert contents(out) == before and (folder == out or not folder.exists())
            elif folder == out:
                before = contents(out)
    print(f"{len(codes)} runs of segment with little memory: {codes.count(2)} refused, {codes.count(0)} done")
    record_property("faults", codes.count(2))
    assert codes.count(2) >= 2
