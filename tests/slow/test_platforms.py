"""What constraints.txt pins can be installed on every system and Python that the pages name. Asks the package index."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pdlib.paths import ROOT

PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin")
MACOS = {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that torch has wheels for
UV = Path(shutil.which("uv") or ROOT / ".venv" / "bin" / "uv")


# "3.11" is 3.11.0: what its later releases need is refused
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_everything_resolves(platform, version, tmp_path):
    asked = ["--extra", "test", "--extra", "browser", "--extra", "slurm", "--constraint", ROOT / "constraints.txt"]
    target = ["--python-version", version, "--python-platform", platform, "--output-file", tmp_path / "found.txt"]
    command = [UV, "pip", "compile", ROOT / "pyproject.toml", "--quiet", "--no-header", *asked, *target]
    done = subprocess.run(command, env=os.environ | MACOS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch==2.13.0" in (tmp_path / "found.txt").read_text(encoding="utf-8")
