"""What a class without internet gets, by uv and pip themselves over a tiny project whose packages lie in a folder."""

import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO

import pytest

from pdlib import wheels
from pdlib.wheels import Wanted

PROJECT = """
[build-system]
requires = ["builder"]
[project]
name = "lesson"
version = "1"
requires-python = ">=3.11"
dependencies = ["network", "plain", "compiled", "mac-only; sys_platform == 'darwin'", "young; python_version >= '3.12'"]
[project.optional-dependencies]
test = ["no-such-package"]
"""
BACKEND = """
import zipfile
def build_wheel(folder, config=None, metadata=None):
    name = "plain-1-{tag}.whl"
    with zipfile.ZipFile(f"{{folder}}/{{name}}", "w") as wheel:
        wheel.writestr("plain.py", "")
        wheel.writestr("plain-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: plain\\nVersion: 1\\n")
        wheel.writestr("plain-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: {tag}\\n")
        wheel.writestr("plain-1.dist-info/RECORD", "")
    return name
"""
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"


def wheel(folder, name, version, tag="py3-none-any"):
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as made:
        made.writestr(f"{name}-{version}.dist-info/METADATA", METADATA.format(name.replace("_", "-"), version))
        made.writestr(f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")


def source(folder, tag):
    """A package that comes as source alone; its wheel gets a tag. No other package is needed to build it."""
    built = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    built += '[project]\nname = "plain"\nversion = "1"\n'
    files = {"pyproject.toml": built, "backend.py": BACKEND.format(tag=tag), "PKG-INFO": METADATA.format("plain", 1)}
    with tarfile.open(folder / "plain-1.tar.gz", "w:gz") as packed:
        for name, text in files.items():
            about = tarfile.TarInfo(f"plain-1/{name}")
            about.size = len(text)
            packed.addfile(about, BytesIO(text.encode()))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A project whose packages lie in a folder, and no other place to take any from."""
    root, folder = tmp_path / "root", tmp_path / "shop"
    root.mkdir(), folder.mkdir()
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "constraints.txt").write_text("network==2.0\n")
    for name, version in (("builder", "1"), ("network", "3.0"), ("mac_only", "1"), ("young", "1")):
        wheel(folder, name, version)
    wheel(folder, "network", "2.0+cpu", "cp311-cp311-manylinux_2_28_x86_64")
    wheel(folder, "network", "2.0", "cp311-none-macosx_14_0_arm64")
    for python in ("cp311", "cp312"):
        for system in ("manylinux_2_17_x86_64", "macosx_10_9_universal2", "musllinux_1_2_x86_64", "win_amd64"):
            wheel(folder, "compiled", "1", f"{python}-{python}-{system}")
    source(folder, "py3-none-any")
    monkeypatch.setattr(wheels, "ROOT", root)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "UV_INDEX", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    told = {"PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "UV_OFFLINE": "1"}
    for name, value in (told | {"UV_NO_CONFIG": "1", "PDLIB_FOLDER": str(tmp_path / "a stick" / "wheels")}).items():
        monkeypatch.setenv(name, value)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_system_gets_its_own_wheels(shop, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PDLIB_PYTHONS", "3.11")
    assert wheels.main() == 0
    out, err = capfd.readouterr()
    common = ["builder-1-py3-none-any.whl", "plain-1-py3-none-any.whl"]
    linux = [
        "compiled-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "network-2.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    ]
    macos = ["compiled-1-cp311-cp311-macosx_10_9_universal2.whl", "network-2.0-cp311-none-macosx_14_0_arm64.whl"]
    macos += ["mac_only-1-py3-none-any.whl"]
    assert names(tmp_path / "a stick" / "wheels") == sorted([*common, *linux, *macos])
    assert "linux, Python 3.11: 4 packages" in out and "macos, Python 3.11: 5 packages" in out and err == ""
    assert "7 wheels" in out and f"--find-links '{tmp_path}/a stick/wheels' -c constraints.txt -e ." in out


def test_markers_are_those_of_the_python_asked_for(shop):
    assert wheels.resolved("linux", "3.11") == ["builder==1", "compiled==1", "network==2.0+cpu", "plain==1"]
    wheel(shop, "network", "2.0", "cp312-cp312-manylinux_2_28_x86_64")
    assert wheels.resolved("linux", "3.12")[-1] == "young==1"


@pytest.mark.parametrize(
    ("systems", "python", "told"),
    [
        ("linux", "3.12", "linux, Python 3.12: "),  # of `network` there is none
        ("macos", "3.10", "macos, Python 3.10: "),  # which the project refuses
        ("windows", "3.11", "SYSTEMS=windows: no 'windows': choose of linux, macos"),
        ("linux", "3", "PYTHONS=3: '3' is no version such as 3.12"),
    ],
)
def test_what_cannot_be_had_is_told(shop, systems, python, told, monkeypatch, capfd):
    monkeypatch.setenv("PDLIB_SYSTEMS", systems)
    monkeypatch.setenv("PDLIB_PYTHONS", python)
    assert wheels.main() == 2
    assert f"make wheels: {told}" in capfd.readouterr().err


def test_a_wheel_built_here_is_kept_only_if_it_fits_anywhere(shop, tmp_path):
    source(shop, "cp311-cp311-linux_x86_64")
    with pytest.raises(ValueError, match=r"plain-1.tar.gz: there is no wheel of it for macos, Python 3.11"):
        wheels.fill(tmp_path / "full", "macos", "3.11", ["plain==1"])
    assert names(tmp_path / "full") == []


def test_unasked_every_system_gets_the_python_that_runs_here():
    wanted = Wanted.of({"PDLIB_FOLDER": "", "PDLIB_SYSTEMS": "", "PDLIB_PYTHONS": ""})
    assert wanted.systems == ("linux", "macos") and wanted.pythons == (f"3.{sys.version_info.minor}",)
    assert wanted.folder == wheels.ROOT / "runs" / "wheels"


def test_pip_s_own_sources_are_told_to_uv(monkeypatch):
    seen = []
    done = subprocess.CompletedProcess([], 0, stdout="a==1\nb==2\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **how: seen.append(how) or done)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a/cpu https://b")
    assert wheels.resolved("linux", "3.11") == ["a==1", "b==2"]
    assert seen[0]["env"]["UV_INDEX"] == "https://a/cpu,https://b"
