"""A result's files replace no input, fit before the work begins, and appear together or not at all."""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from pdlib.inference.outputs import Outputs

NAMES = ("mask.nii.gz", "mean.nii.gz", "overlay.png")


def outputs(folder: Path) -> Outputs:
    return Outputs(folder, NAMES)


def fill(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def hard_link(link: Path, target: Path) -> None:
    link.hardlink_to(target)


LINKS = {"symbolic": Path.symlink_to, "hard": hard_link}


@pytest.mark.parametrize("role", ["FLAIR", "T1", "brain mask"])
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("linked", ["input", "output"])
def test_an_input_is_never_replaced_by_whatever_name(tmp_path, role, link, linked):
    out = tmp_path / "out"
    fill(out, "earlier")
    given = tmp_path / "given.nii.gz"
    if linked == "input":
        link(given, out / NAMES[1])
    else:
        given.write_text("scan")
        (out / NAMES[1]).unlink()
        link(out / NAMES[1], given)
    with pytest.raises(ValueError, match=f"{out / NAMES[1]}: is the {role} {given}"):
        outputs(out).refuse_harm({"FLAIR": tmp_path / "another", role: given})


def test_an_input_in_the_folder_of_the_outputs_is_never_replaced(tmp_path):
    (tmp_path / NAMES[0]).write_text("brain")
    with pytest.raises(ValueError, match="is the brain mask"):
        outputs(tmp_path / "below" / "..").refuse_harm({"brain mask": tmp_path / NAMES[0]})


def test_a_way_round_through_a_new_folder_leads_to_the_same_place(tmp_path):
    fill(tmp_path, "earlier")
    with outputs(tmp_path / "below" / "..").written(room=10) as temporary:
        fill(temporary, "new")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_a_file_of_no_earlier_result_is_never_replaced(tmp_path):
    (tmp_path / "mask.nii.gz").write_text("an expert's")
    with pytest.raises(ValueError, match=r"mask.nii.gz: belongs to no earlier result \(mean.nii.gz is missing\)"):
        outputs(tmp_path).refuse_harm({})


def test_what_is_no_file_is_never_replaced(tmp_path):
    fill(tmp_path, "earlier")
    (tmp_path / NAMES[2]).unlink()
    (tmp_path / NAMES[2]).mkdir()
    with pytest.raises(ValueError, match=r"overlay\.png: is not a file"):
        outputs(tmp_path).refuse_harm({})


def test_an_earlier_result_is_replaced(tmp_path):
    fill(tmp_path, "earlier")
    (tmp_path / "mine.txt").write_text("kept")
    outputs(tmp_path).refuse_harm({"FLAIR": tmp_path / "FLAIR.nii.gz"})
    with outputs(tmp_path).written(room=10) as temporary:
        fill(temporary, "new")
    assert contents(tmp_path) == {name: "new" for name in NAMES} | {"mine.txt": "kept"}


def test_missing_folders_are_made_and_go_with_a_failure(tmp_path):
    deep = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), outputs(deep).written(room=10):
        assert deep.is_dir()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    with outputs(deep).written(room=10) as temporary:
        fill(temporary, "new")
    assert contents(deep) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("before", ["earlier", None])
@pytest.mark.parametrize("failing", range(len(NAMES)))
def test_when_one_file_cannot_take_its_place_none_does(tmp_path, monkeypatch, before, failing):
    out = tmp_path / "out"
    if before:
        fill(out, before)
    replace = os.replace

    def fail(source, target):
        if Path(target) == out / NAMES[failing] and Path(source).parent.name != "earlier":
            raise OSError(errno.EIO, "Input/output error", str(source), None, str(target))
        replace(source, target)

    with pytest.raises(OSError, match="Input/output error") as caught, outputs(out).written(room=10) as temporary:
        fill(temporary, "new")
        monkeypatch.setattr(os, "replace", fail)
    assert caught.value.filename == str(out / NAMES[failing])
    assert contents(out) == dict.fromkeys(NAMES, before) if before else not out.exists()


def test_a_file_that_was_not_written_keeps_the_others_away(tmp_path):
    fill(tmp_path, "earlier")
    with pytest.raises(FileNotFoundError) as caught, outputs(tmp_path).written(room=10) as temporary:
        (temporary / NAMES[0]).write_text("new")
    assert caught.value.filename == str(tmp_path / NAMES[1])
    assert contents(tmp_path) == dict.fromkeys(NAMES, "earlier")


@pytest.mark.fault("interrupted write or computation")
def test_an_interruption_leaves_what_was(tmp_path):
    fill(tmp_path, "earlier")
    with pytest.raises(KeyboardInterrupt), outputs(tmp_path).written(room=10) as temporary:
        fill(temporary, "new")
        raise KeyboardInterrupt
    assert contents(tmp_path) == dict.fromkeys(NAMES, "earlier")


def a_file(tmp_path):
    (tmp_path / "out").write_text("")
    return tmp_path / "out", tmp_path / "out"


def below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out", tmp_path / "file"


def a_dangling_link(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    return tmp_path / "out", tmp_path / "out"


def read_only(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (tmp_path / "out").mkdir(mode=0o555)
    return tmp_path / "out", tmp_path / "out"


def not_creatable(tmp_path):
    if not Path("/proc/self").exists():
        pytest.skip("no /proc")
    return Path("/proc/out"), Path("/proc/out")


@pytest.mark.fault("unwritable folder")
@pytest.mark.parametrize("unfit", [a_file, below_a_file, a_dangling_link, read_only, not_creatable])
def test_an_unfit_folder_is_named_before_the_work(tmp_path, unfit):
    out, culprit = unfit(tmp_path)
    with pytest.raises(OSError) as caught, outputs(out).written(room=10):
        pytest.fail("the work began")
    assert caught.value.filename == str(culprit)


@pytest.mark.fault("full disk")
def test_a_full_device_is_named_before_the_work(tmp_path):
    """A limit on a file's size stands for a full device: both end a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, limits[1]))
    try:
        with outputs(tmp_path / "fits").written(room=2**21) as temporary:
            fill(temporary, "new")
        with pytest.raises(OSError) as caught, outputs(tmp_path / "out").written(room=2**21 + 1):
            pytest.fail("the work began")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_names_the_file_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError) as caught, outputs(tmp_path / "out").written(room=10) as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary / NAMES[1]))
    assert caught.value.filename == str(tmp_path / "out" / NAMES[1])


def test_two_results_for_one_folder_do_not_mix(tmp_path, capsys):
    begun, go_on = Event(), Event()

    def write(folder: Path, text: str, wait: bool) -> None:
        with outputs(folder).written(room=10) as temporary:
            begun.set()
            assert not wait or go_on.wait(60)
            fill(temporary, text)

    (tmp_path / "link").symlink_to(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write, tmp_path / "out", "first", True)
        assert begun.wait(60)
        begun.clear()
        second = pool.submit(write, tmp_path / "link" / "out", "second", False)
        assert not begun.wait(1) and not second.done()
        go_on.set()
        first.result(60), second.result(60)
    assert contents(tmp_path / "out") == dict.fromkeys(NAMES, "second")
    assert f"waiting for segment into {tmp_path / 'out'} (process {os.getpid()}" in capsys.readouterr().err


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, outputs(tmp_path / "out").written(room=10):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")
