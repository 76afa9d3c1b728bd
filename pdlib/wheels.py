"""`make wheels`: a folder with all that a class without internet has to install, for several systems and Pythons.

What the user gives comes as it was typed, in the environment: PDLIB_FOLDER, PDLIB_SYSTEMS and PDLIB_PYTHONS.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdlib.paths import ROOT

SYSTEMS = {  # uv's name for what is resolved, and pip's for the wheels that fit
    "linux": (
        "x86_64-manylinux_2_28",
        (*(f"manylinux_2_{n}_x86_64" for n in range(28, 4, -1)), "manylinux2014_x86_64"),
    ),
    "macos": ("aarch64-apple-darwin", ("macosx_14_0_arm64",)),  # with what older ones run, and with universal2
}
OLDEST_MACOS = "14.0"  # that torch runs on
RELEASE = ".9"  # of a Python: some packages refuse the first ones
SOURCES = {"PIP_FIND_LINKS": "UV_FIND_LINKS", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_INDEX_URL": "UV_DEFAULT_INDEX"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
INSTALL = (  # typed in a clone
    "python3 -m venv .venv",
    ".venv/bin/python -m pip install --no-index --find-links {folder} -c constraints.txt -e . && touch .venv/.ready",
)


@dataclass(frozen=True)
class Wanted:
    """Which wheels, and where to. systems: of SYSTEMS; pythons: such as "3.12"."""

    folder: Path
    systems: tuple[str, ...]
    pythons: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Wanted":
        """Read an environment; what it leaves open is every system, this Python and runs/wheels. ValueError."""
        systems = tuple(given.get("PDLIB_SYSTEMS", "").split()) or tuple(SYSTEMS)
        pythons = tuple(given.get("PDLIB_PYTHONS", "").split()) or ("{}.{}".format(*sys.version_info),)
        if unknown := [name for name in systems if name not in SYSTEMS]:
            raise ValueError(f"SYSTEMS={' '.join(systems)}: no {unknown[0]!r}: choose of {', '.join(SYSTEMS)}")
        if wrong := [name for name in pythons if not re.fullmatch(r"3\.\d+", name)]:
            raise ValueError(f"PYTHONS={' '.join(pythons)}: {wrong[0]!r} is no version such as 3.12")
        return cls(Path(given.get("PDLIB_FOLDER") or ROOT / "runs" / "wheels").resolve(), systems, pythons)


def resolved(system: str, python: str) -> list[str]:
    """Every package, pinned, that the project takes on a system and a Python; markers are that system's own.

    What an editable install needs beside the packages is among them. ValueError where no packages fit together.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-platform", SYSTEMS[system][0], "--python-version", python + RELEASE]
    command += ["--index-strategy", "unsafe-best-match", "--constraint", "constraints.txt", "pyproject.toml", "-"]
    own = {uv: ",".join(os.environ[pip].split()) for pip, uv in SOURCES.items() if pip in os.environ}
    how = {"env": os.environ | own | {"MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS}, "capture_output": True, "text": True}
    done = subprocess.run(command, input="\n".join(project["build-system"]["requires"]), cwd=ROOT, **how)
    if done.returncode:
        raise ValueError(f"{system}, Python {python}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def fill(folder: Path, system: str, python: str, packages: Sequence[str]) -> None:
    """Download packages' wheels into a folder; those that come as source alone are made into wheels that fit anywhere.

    ValueError where a package has neither.
    """
    fits = [option for name in SYSTEMS[system][1] for option in ("--platform", name)]
    download = [*PIP, "download", "-qq", "--no-deps", "--python-version", python + RELEASE, *fits]
    if subprocess.run([*download, "--dest", str(folder), *packages]).returncode:
        raise ValueError(f"{system}, Python {python}: pip could not download every package: see above")
    for source in [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]:
        before = {*folder.glob("*.whl")}
        failed = subprocess.run([*PIP, "wheel", "-qq", "--no-deps", "--wheel-dir", str(folder), str(source)]).returncode
        bound = [made for made in {*folder.glob("*.whl")} - before if not made.stem.endswith("-none-any")]
        for made in (source, *bound):
            made.unlink()
        if failed or bound:
            raise ValueError(f"{source.name}: there is no wheel of it for {system}, Python {python}")


def main() -> int:
    """Fill the folder that the environment asks for; what cannot be had is told on stderr, and code 2."""
    try:
        wanted = Wanted.of(os.environ)
        wanted.folder.mkdir(parents=True, exist_ok=True)
        for system in wanted.systems:
            for python in wanted.pythons:
                packages = resolved(system, python)
                print(f"{system}, Python {python}: {len(packages)} packages ...", flush=True)
                fill(wanted.folder, system, python, packages)
    except (ValueError, OSError) as error:
        print(f"make wheels: {error}", file=sys.stderr)
        return 2
    wheels = [path.stat().st_size for path in wanted.folder.glob("*.whl")]
    print(f"{len(wheels)} wheels, {sum(wheels) / 1e9:.1f} GB, in {wanted.folder}. In a clone, without a network:")
    print(*(f"  {line.format(folder=shlex.quote(str(wanted.folder)))}" for line in INSTALL), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
