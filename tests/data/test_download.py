"""The download against a server on this machine that speaks Dataverse's API and misbehaves."""

import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace

import pytest

from pdlib.data import download

PHILIPS = (
    "training/Amsterdam/Philips_VU .PETMR_01./160/pre"  # the real name of a folder: a space, a full stop at its end
)
FILES = {  # place: content
    "training/Utrecht/0/wmh.nii.gz": b"labels" * 50_000,
    "training/Utrecht/0/pre/FLAIR.nii.gz": b"flair" * 40_000,
    "training/Utrecht/0/pre/3DT1.nii.gz": b"large" * 100,
    "training/Utrecht/0/orig/FLAIR.nii.gz": b"raw" * 100,
    f"{PHILIPS}/T1.nii.gz": b"t1" * 30_000,
    "additional_annotations/observer_o3/training/Utrecht/0/result.nii.gz": b"rater" * 100,
    "test/Utrecht/1/pre/T1.nii.gz": b"test" * 100,
    "readme.txt": b"hello",
}
LIST = "the list"
USUAL = [place for place in FILES if "3DT1" not in place and "/orig/" not in place][:4]


class Server(ThreadingHTTPServer):
    """Serves LIST, and FILES by number. faults: of a place, what goes wrong at the first requests, one by one."""

    daemon_threads = True

    def __init__(self):
        self.faults, self.asked, self.entries, self.turned_away = {}, Counter(), None, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address):
        """Whoever asked has gone: socketserver would print that, into what a test reads."""

    def listed(self):
        files = self.entries if self.entries is not None else [entry(*one) for one in enumerate(FILES.items())]
        return json.dumps({"data": {"latestVersion": {"files": files}}}).encode()


def entry(number, file, **changes):
    place, content = file
    folder, _, name = place.rpartition("/")
    about = {"id": number, "filename": name, "filesize": len(content)}
    about["checksum"] = {"type": "SHA-1", "value": hashlib.sha1(content).hexdigest()}
    return {"directoryLabel": folder, "dataFile": about | changes} if folder else {"dataFile": about | changes}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        listed = self.path.startswith("/api/datasets/")
        place = LIST if listed else list(FILES)[int(self.path.rsplit("/", 1)[1])]
        content, faults = self.server.listed() if listed else FILES[place], self.server.faults.get(place, [])
        fault = faults[self.server.asked[place]] if self.server.asked[place] < len(faults) else None
        self.server.asked[place] += 1
        if fault in (429, 503):
            self.server.turned_away.append(time.monotonic())
            self.send(b"busy", fault, {"Retry-After": "1"})
        elif fault == "gone":
            self.send(b"no such file", 404)
        elif fault == "redirect":
            self.send(b"", 303, {"Location": self.path})
        elif fault == "cut":
            self.send(content[: len(content) // 2], length=len(content))
            self.close_connection = True
        elif fault == "short":
            self.send(content[:-1])
        elif fault == "long":
            self.send(content + b"more")
        elif fault == "changed":
            self.send(b"X" + content[1:])
        elif fault == "stall":
            self.send(content[:10], length=len(content))
            time.sleep(1.5)
            self.close_connection = True
        elif fault == "silent":
            time.sleep(1.5)
            self.close_connection = True
        elif fault == "closed":
            self.close_connection = True
        elif fault == "tomorrow":
            self.send(b"busy", 503, {"Retry-After": "86400"})
        elif isinstance(fault, bytes):
            self.send(fault)
        else:
            self.send(content)

    def send(self, content, code=200, headers=None, length=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", (0.5, 0.5))
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


def run(server, folder, *options):
    return download.main([str(folder), "--server", server.address, "--accept-licence", *options])


def there(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_read_is_fetched_and_a_second_call_asks_for_no_file(server, tmp_path, capsys):
    assert run(server, tmp_path) == 0
    assert there(tmp_path) == {place: FILES[place] for place in USUAL}
    assert "4 of 4 files are there" in capsys.readouterr().out
    before = server.asked.copy()
    assert run(server, tmp_path) == 0 and server.asked - before == Counter({LIST: 1})


@pytest.mark.parametrize(
    ("option", "more"),
    [("--with-3dt1", "training/Utrecht/0/pre/3DT1.nii.gz"), ("--with-test", "test/Utrecht/1/pre/T1.nii.gz")],
)
def test_more_is_fetched_where_asked_for(server, tmp_path, option, more):
    assert run(server, tmp_path, option) == 0
    assert set(there(tmp_path)) == {*USUAL, more}


PASSING = [429, 503, "redirect", "cut", "short", "long", "changed", "stall", "silent", "closed"]


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize("place", [LIST, f"{PHILIPS}/T1.nii.gz"], ids=["list", "file"])
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_overcome(server, tmp_path, fault, place):
    server.faults = {place: [fault] * (2 if fault not in ("stall", "silent") else 1)}
    assert run(server, tmp_path) == 0
    assert there(tmp_path) == {place: FILES[place] for place in USUAL}
    assert all(later - earlier > 0.9 for earlier, later in pairwise(server.turned_away)), "it waits as it is asked to"


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize("place", [LIST, f"{PHILIPS}/T1.nii.gz"], ids=["list", "file"])
def test_a_server_that_asks_for_a_day_is_asked_again_sooner(server, tmp_path, place, monkeypatch):
    monkeypatch.setattr(download, "LONGEST_WAIT", 0.1)
    server.faults = {place: ["tomorrow"]}
    assert run(server, tmp_path) == 0 and there(tmp_path) == {place: FILES[place] for place in USUAL}


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_asked(server, tmp_path, capsys):
    (tmp_path / "data").write_text("mine")
    assert run(server, tmp_path / "data") == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / 'data'}: is a file, not a folder"
    assert (tmp_path / "data").read_text() == "mine" and not server.asked


def test_without_a_network_one_line_asks_for_it(tmp_path, capsys):
    assert download.main([str(tmp_path / "data"), "--accept-licence", "--server", "http://127.0.0.1:9"]) == 2
    assert "the server cannot be reached, is there a network?" in capsys.readouterr().err


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        (429, "too many 429 error responses", 3),
        (503, "too many 503 error responses", 3),
        ("closed", "RemoteDisconnected", 3),
        ("silent", "timed out", 3),
        ("stall", "timed out", 2),
        ("cut", "IncompleteRead", 2),
        ("short", "not JSON", 2),
        (b"<html>Down for maintenance</html>", "not JSON", 2),
        (b'{"status": "OK", "data": {}}', "data.latestVersion: Field required", 1),
        (b"[]", "the answer: Input should be", 1),
        (b'{"data": {"latestVersion": {"files": [{"label": "a"}]}}}', "files.0.dataFile: Field required", 1),
        (b'{"data": {"latestVersion": {"files": []}}}', "the list holds no file of the challenge", 1),
        ("gone", "404 Client Error", 1),
    ],
)
def test_without_a_list_one_line_names_its_address_and_the_cause_and_nothing_is_written(
    server, tmp_path, monkeypatch, capsys, fault, said, requests
):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults = {LIST: [fault] * 9}
    assert run(server, tmp_path / "data") == 2 and not (tmp_path / "data").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {server.address}/api/datasets/:persistentId/?persistentId=doi:10.34894/AECRSD: ")
    assert said in line and server.asked == Counter({LIST: requests})


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize(
    ("fault", "said"), [("changed", "hash"), ("short", "59999 bytes"), ("gone", "404"), ("cut", "")]
)
def test_a_fault_that_stays_costs_one_file_which_is_named(server, tmp_path, fault, said, capsys):
    bad = f"{PHILIPS}/T1.nii.gz"
    server.faults = {bad: [fault] * 99}
    assert run(server, tmp_path) == 1
    assert there(tmp_path) == {place: FILES[place] for place in USUAL if place != bad}, "nothing half, nothing wrong"
    out, err = capsys.readouterr()
    (line,) = (line for line in err.splitlines() if line.startswith("missing: "))
    assert line.startswith(f"missing: {bad}: ") and said.lower() in line.lower() and "3 of 4 files" in out
    server.faults = {}
    asked = server.asked.copy()
    assert run(server, tmp_path) == 0
    assert server.asked - asked == Counter({LIST: 1, bad: 1}), "the others are kept"


def test_a_file_that_was_changed_or_left_half_is_fetched_again(server, tmp_path):
    assert run(server, tmp_path) == 0
    changed, half = (tmp_path / place for place in USUAL[:2])
    changed.write_bytes(b"Y" + FILES[USUAL[0]][1:])
    half.write_bytes(FILES[USUAL[1]][:100])
    (half.parent / "tmpabcd1234").write_bytes(b"of a download that was killed")
    (half.parent / "tmp_notes.txt").write_bytes(b"the user's own")
    assert run(server, tmp_path) == 0
    own = {half.parent.relative_to(tmp_path).as_posix() + "/tmp_notes.txt": b"the user's own"}
    assert there(tmp_path) == {place: FILES[place] for place in USUAL} | own


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("training/..", "wmh.nii.gz"),
        ("/etc", "wmh.nii.gz"),
        ("training/Utrecht", "../wmh.nii.gz"),
        ("training\\..\\..", "wmh.nii.gz"),
        ("C:", "wmh.nii.gz"),
        ("training", "wmh.nii.gz\x00"),
        ("training/./Utrecht", "wmh.nii.gz"),
    ],
)
def test_a_name_that_would_leave_the_folder_ends_it_before_a_byte_is_fetched(server, tmp_path, folder, name, capsys):
    bad = entry(0, ("training/wmh.nii.gz", b"x"), filename=name)
    server.entries = [bad | {"directoryLabel": folder}]
    assert run(server, tmp_path / "data") == 2
    assert "would not stay in its folder" in capsys.readouterr().err
    assert not there(tmp_path)


@pytest.mark.fault("misbehaving server")
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry(0, ("training/wmh.nii.gz", b"x"), checksum={"type": "MD5", "value": "0" * 40})], "MD5 checksum"),
        ([entry(0, ("training/wmh.nii.gz", b"x"), filesize="many")], "no list of files"),
        ([entry(0, ("training/wmh.nii.gz", b"x"))] * 2, "listed twice"),
        ([entry(0, ("readme.txt", b"hello"))], "no file of the challenge"),
        ("busy", "no list of files"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(server, tmp_path, entries, said, capsys):
    server.entries = entries
    assert run(server, tmp_path) == 2 and said in capsys.readouterr().err


@pytest.mark.fault("full disk")
def test_a_full_disk_is_told_before_a_byte_is_fetched(server, tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    assert run(server, tmp_path) == 2
    assert "are to come" in capsys.readouterr().err and server.asked == Counter({LIST: 1})


def test_nothing_is_fetched_without_the_licence_and_no_server_is_told_in_one_line(tmp_path, capsys):
    assert download.main([str(tmp_path), "--server", "http://127.0.0.1:9"]) == 2
    out, err = capsys.readouterr()
    assert "CC BY-NC 4.0" in out and "--accept-licence" in err
    download_session = download.open_session()
    download_session.mount("http://", download.HTTPAdapter())
    with pytest.raises(download.DownloadError, match="no list of files"):
        download.listing(download_session, "http://127.0.0.1:9")
