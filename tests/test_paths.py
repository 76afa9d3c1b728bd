"""Files appear whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pdlib.paths import replacing, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from pdlib.paths import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["größer\n", "größer\n".encode()])
def test_write_whole_writes_utf8_as_it_is_into_a_folder_it_makes(tmp_path: Path, data):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, data)
    assert path.read_bytes() == "größer\n".encode()
    assert files(path.parent) == ["a.txt"]
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("name", ["mask.nii.gz", "Utrecht 1 #2.npz", "plain", ".hidden", "n" * 251 + ".csv"])
def test_the_temporary_lies_beside_with_the_same_suffixes(tmp_path: Path, name: str):
    path = tmp_path / name
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        assert temporary.suffixes == path.suffixes
        temporary.write_text("whole")
        assert not path.exists()
    assert files(tmp_path) == [name]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


@pytest.mark.fault("interrupted write or computation")
def test_a_failed_block_leaves_the_file_of_before_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert files(tmp_path) == ["a.txt"] and path.read_text() == "before"


@pytest.mark.fault("kill -9")
def test_a_process_killed_between_leaves_the_file_of_before(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_whole(path, "before")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "before"


@pytest.mark.fault("full disk")
def test_a_full_disk_names_the_final_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    assert files(tmp_path) == []


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "a", "text")
    assert caught.value.filename == str(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file" / "a", "text")


@pytest.mark.fault("unwritable folder")
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_names_the_final_file(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as caught:
        write_whole(tmp_path / "a.txt", "text")
    assert caught.value.filename == str(tmp_path / "a.txt")
