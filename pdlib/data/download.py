"""The WMH challenge's data from DataverseNL, file by file: `python -m pdlib.data.download FOLDER --accept-licence`.

pooch keeps what it has verified and fetches what is missing, each file whole or not at all; a file is what a broken
download goes on from. One request lists all files with their sizes and SHA-1 (Dataverse's native API).
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from pdlib.data.nifti import printable
from pdlib.paths import given_path
from pdlib.progress import tqdm

SERVER, DATASET = "https://dataverse.nl", "doi:10.34894/AECRSD"
LICENCE = """The WMH challenge 2017, doi:10.34894/AECRSD, is under CC BY-NC 4.0: not for commercial use; to cite:
Kuijf et al., IEEE Transactions on Medical Imaging 38(11), 2019, doi:10.1109/TMI.2019.2905770."""
READ = frozenset({"wmh.nii.gz", "result.nii.gz", "FLAIR.nii.gz", "T1.nii.gz"})  # what the project opens
LARGE = "3DT1.nii.gz"  # half of all bytes
TRAINING = ("training/", "additional_annotations/")
CONNECTIONS = 3
PATIENCE = (10, 60)  # seconds to connect, and of silence
LONGEST_WAIT = 120  # seconds that a server's Retry-After is followed
ATTEMPTS = 5  # at a file or a list that arrives cut or changed, and of a request that is turned away
PAUSE = 2  # seconds, after a list that arrived so
SPARE = 1.05  # of the bytes to come, that have to be free
_LEFT = re.compile(r"tmp[a-z0-9_]{8}")  # what pooch was writing when it was killed


class DownloadError(ValueError):
    """The listing, or a file in it, cannot be used or had; the message names it."""


class _Checksum(BaseModel):
    type: str
    value: str = Field(pattern="^[0-9a-fA-F]{40}$")


class _DataFile(BaseModel):
    id: int
    filename: str = Field(min_length=1)
    filesize: int = Field(ge=0)
    checksum: _Checksum


class _Entry(BaseModel):
    directoryLabel: str = ""
    dataFile: _DataFile


class _Version(BaseModel):
    files: list[_Entry]


class _DataSet(BaseModel):
    latestVersion: _Version


class _Listing(BaseModel):
    data: _DataSet


class Remote(BaseModel):
    """A file on the server: its place below the folder, address, bytes and SHA-1."""

    model_config = ConfigDict(frozen=True)
    place: str
    url: str
    size: int
    sha1: str


class _Patient(Retry):
    """Waits as long as the server asks, within reason."""

    def get_retry_after(self, response) -> float | None:
        wait = super().get_retry_after(response)
        return None if wait is None else min(wait, LONGEST_WAIT)


def open_session() -> requests.Session:
    """A session that comes back to a server that is busy."""
    session = requests.Session()
    session.headers["User-Agent"] = "pdlib (reproduces a paper; fetches each file once)"
    again = _Patient(total=ATTEMPTS, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=CONNECTIONS))
    return session


def address(server: str) -> str:
    """Where a server's list of files is."""
    return f"{server}/api/datasets/:persistentId/?persistentId={DATASET}"


def listing(session: requests.Session, server: str = SERVER) -> list[Remote]:
    """Every file of the data set. DownloadError where there is no such list, or a file in it would leave the folder."""
    try:
        entries = _Listing.model_validate(_arrived(session, address(server))).data.latestVersion.files
    except ValidationError as error:
        first = error.errors()[0]
        cause = f"{'.'.join(map(str, first['loc'])) or 'the answer'}: {first['msg']}"
    except requests.JSONDecodeError as error:
        cause = f"not JSON: {error}"
    except requests.ConnectionError as error:
        cause = f"the server cannot be reached, is there a network? {error}"
    except requests.RequestException as error:
        cause = str(error)
    else:
        return _remotes(entries, server)
    raise DownloadError(f"{address(server)}: no list of files ({' '.join(cause.split())[:300]})")


def _arrived(session: requests.Session, url: str) -> object:
    """What a JSON answer holds. One that arrives cut is asked for again; a refusal is the session's to try again."""
    for left in reversed(range(ATTEMPTS)):
        with session.get(url, timeout=PATIENCE, stream=True) as answer:
            answer.raise_for_status()
            try:
                return answer.json()
            except requests.RequestException:
                if not left:
                    raise
        time.sleep(PAUSE)


def _remotes(entries: Iterable[_Entry], server: str) -> list[Remote]:
    """Entries of the list as files; DownloadError for one that cannot be checked or would leave the folder."""
    found = {}
    for entry in entries:
        file = entry.dataFile
        place = _inside(entry.directoryLabel, file.filename)
        if file.checksum.type.upper().replace("-", "") != "SHA1":
            raise DownloadError(f"{place}: listed with a {file.checksum.type} checksum, not a SHA-1")
        if place in found:
            raise DownloadError(f"{place}: listed twice")
        url = f"{server}/api/access/datafile/{file.id}"
        found[place] = Remote(place=place, url=url, size=file.filesize, sha1=file.checksum.value.lower())
    return list(found.values())


def _inside(label: str, name: str) -> str:
    """A file's place, below any folder on any system; DownloadError for one that would lie elsewhere."""
    parts = [*(part for part in label.split("/") if part), name]
    odd = any(part in (".", "..") or re.search(r'[\\/:*?"<>|\x00-\x1f]', part) for part in parts)
    place = "/".join(parts)
    if odd or label.startswith("/") or PureWindowsPath(place).drive or PurePosixPath(place).is_absolute():
        raise DownloadError(f"{printable(Path(label) / name)}: a file with this name would not stay in its folder")
    return place


def wanted(files: Iterable[Remote], *, all_parts: bool = False, large: bool = False) -> list[Remote]:
    """Those that the project reads: of the training cases (or all), without the scans in orig/; large: 3DT1 as well."""
    names = READ | {LARGE} if large else READ
    return [
        file
        for file in files
        if (all_parts or file.place.startswith(TRAINING))
        and file.place.rsplit("/", 1)[-1] in names
        and "orig" not in file.place.split("/")
    ]


def fetch(
    files: Sequence[Remote], folder: Path, session: requests.Session, progress: Callable[[int], None]
) -> dict[str, str]:
    """Fetch what is missing or differs from its SHA-1; the files that could not be had, each with the cause.

    progress is told of bytes, of kept files at once; fewer than none where a file has to be fetched again.
    DownloadError where the disk has no room.
    """
    pooch.get_logger().setLevel("WARNING")
    registry = {file.place: f"sha1:{file.sha1}" for file in files}
    store = pooch.create(
        folder, "", registry=registry, urls={file.place: file.url for file in files}, retry_if_failed=ATTEMPTS
    )
    missing = [file for file in files if not _kept(folder / file.place, file)]
    to_come = sum(file.size for file in missing)
    folder.mkdir(parents=True, exist_ok=True)
    if to_come * SPARE > (free := shutil.disk_usage(folder).free):
        raise DownloadError(f"{folder}: {to_come / 1e9:.1f} GB are to come, and {free / 1e9:.1f} GB are free")
    progress(sum(file.size for file in files) - to_come)
    for place in {(folder / file.place).parent for file in missing}:  # pooch's own making of them is no thread's match
        place.mkdir(parents=True, exist_ok=True)
    failed = {}
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        running = {pool.submit(_fetch_one, store, file, session, progress): file for file in missing}
        for done in as_completed(running):
            if error := done.exception():
                if not isinstance(error, OSError | ValueError):
                    raise error
                failed[running[done].place] = " ".join(str(error).split())[:300]
    return failed


def _kept(path: Path, file: Remote) -> bool:
    """Whether a file is there, whole; what a killed download left beside it is removed."""
    for left in path.parent.glob("tmp*") if path.parent.is_dir() else ():
        if _LEFT.fullmatch(left.name):
            left.unlink()
    return path.is_file() and path.stat().st_size == file.size and pooch.file_hash(path, "sha1") == file.sha1


def _fetch_one(store: pooch.Pooch, file: Remote, session: requests.Session, progress: Callable[[int], None]) -> None:
    def download(url: str, target: str, _: pooch.Pooch) -> None:
        arrived = 0
        try:
            with session.get(url, timeout=PATIENCE, stream=True) as answer, open(target, "wb") as out:
                answer.raise_for_status()
                for chunk in answer.iter_content(2**16):
                    arrived += out.write(chunk)
                    progress(len(chunk))
                    if arrived > file.size:
                        break
            if arrived != file.size:
                raise ValueError(f"{file.place}: {arrived} bytes or more arrived, {file.size} are listed")
        except BaseException:
            progress(-arrived)
            raise

    store.fetch(file.place, downloader=download)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch; 0 where all is there, 1 where a file is missing, 2 where nothing was tried."""
    parser = argparse.ArgumentParser(prog="python -m pdlib.data.download", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=given_path)
    parser.add_argument("--accept-licence", action="store_true", help="that of the data, shown without this")
    parser.add_argument("--with-test", action="store_true", help="the 110 test cases as well")
    parser.add_argument("--with-3dt1", action="store_true", help="the 3D T1 scans as well, which nothing here reads")
    parser.add_argument("--server", default=SERVER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    print(LICENCE)
    if not given.accept_licence:
        print("Nothing was fetched: say --accept-licence (make data ACCEPT=1) if you do.", file=sys.stderr)
        return 2
    session = open_session()
    try:
        if given.folder.exists() and not given.folder.is_dir():
            raise DownloadError(f"{given.folder}: is a file, not a folder")
        files = wanted(listing(session, given.server), all_parts=given.with_test, large=given.with_3dt1)
        if not files:
            raise DownloadError(f"{address(given.server)}: the list holds no file of the challenge")
        total = sum(file.size for file in files)
        with tqdm(total=total, unit="B", unit_scale=True, desc=f"{len(files)} files") as bar:
            failed = fetch(files, given.folder, session, bar.update)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for place, cause in sorted(failed.items()):
        print(f"missing: {place}: {cause}", file=sys.stderr)
    print(f"{len(files) - len(failed)} of {len(files)} files are there, each as its SHA-1 says", end="")
    print("; the same command goes on with the others" if failed else f": {given.folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
