"""`make lab` is for this machine and for whoever has its token: a server is started and asked."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pdlib.paths import ROOT

LISTEN, SECONDS = "0A", 120
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1, as /proc has them


@pytest.fixture
def server(tmp_path):
    """What JupyterLab tells of itself in its runtime folder, and its process."""
    (tmp_path / "config").mkdir()
    allowed = "c.ServerApp.allow_root = True\n"  # where the tests run as root
    (tmp_path / "config" / "jupyter_server_config.py").write_text(allowed, encoding="utf-8")
    folders = {f"JUPYTER_{name.upper()}_DIR": str(tmp_path / name) for name in ("config", "data", "runtime")}
    own = {"BROWSER": "true", "GIT_DIR": str(tmp_path / "none"), "PDLIB_FOLDER": str(tmp_path), "HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JUPYTER_")} | folders | own
    command = [sys.executable, "-m", "pdlib.lab"]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + SECONDS
    while not (found := list((tmp_path / "runtime").glob("jpserver-*.json"))) and process.poll() is None:
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert found, (tmp_path / "log").read_text()
    time.sleep(0.5)  # it may still be writing
    yield json.loads(found[0].read_text(encoding="utf-8"))
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


def answer(url: str, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's list of sockets")
def test_the_lab_listens_to_this_machine_alone_and_wants_its_token(server):
    sockets = {os.readlink(one) for one in Path(f"/proc/{server['pid']}/fd").iterdir() if one.is_symlink()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    own = [line[1].split(":") for line in lines if line[3] == LISTEN and f"socket:[{line[9]}]" in sockets]
    assert f"{server['port']:04X}" in {port for _, port in own} and {address for address, _ in own} <= LOOPBACK
    assert len(server["token"]) >= 32 and not server["password"]
    contents = f"http://127.0.0.1:{server['port']}/api/contents"
    assert answer(contents) == 403 == answer(contents, "0" * 48) and answer(contents, server["token"]) == 200
