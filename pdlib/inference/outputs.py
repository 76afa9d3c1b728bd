"""The files of one result: they replace no input, they are known to fit before the work, and all appear or none."""

import errno
import getpass
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pdlib.paths import alone

_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Outputs:
    """The files `names` of a result in `folder`, which need not exist yet."""

    folder: Path
    names: tuple[str, ...]

    def __post_init__(self):
        if ".." in self.folder.parts:  # `new/..` is there already, though not before `new` is made
            object.__setattr__(self, "folder", Path(os.path.realpath(self.folder)))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files will be."""
        return tuple(self.folder / name for name in self.names)

    def refuse_harm(self, inputs: Mapping[str, Path]) -> None:
        """Refuse to replace an input (role -> path), by whatever name or link, or a file that is no earlier result.

        The files of a result appear together, so one without the others comes from elsewhere: an expert's mask, say.
        ValueError, naming the file.
        """
        there = [path for path in self.paths if os.path.lexists(path)]
        for path in there:
            for role, given in inputs.items():
                if path.exists() and given.exists() and path.samefile(given):
                    raise ValueError(f"{path}: is the {role} {given} and would be replaced; choose another folder")
            if path.exists() and not path.is_file():
                raise ValueError(f"{path}: is not a file and cannot be replaced; choose another folder")
        if there and len(there) < len(self.names):
            absent = next(path for path in self.paths if path not in there)
            raise ValueError(
                f"{there[0]}: belongs to no earlier result ({absent.name} is missing) and would be replaced;"
                " move it away or choose another folder"
            )

    @contextmanager
    def written(self, room: int) -> Iterator[Path]:
        """A temporary folder for the block to write the files into; at the block's end they move to `folder`, all.

        Before the block, `room` bytes are written there for a test. When anything fails, no new file stays, and those
        of an earlier result are as they were. Every OSError names the folder, or the file in it. While another process
        of this machine writes a result there, this one says so and waits.
        """
        with alone(self._lock, f"segment into {self.folder}"), self._written(room) as temporary:
            yield temporary

    @property
    def _lock(self) -> Path:
        """A file for all that write into the folder: not in it, which is the user's, and may not even be there yet."""
        name = hashlib.sha256(os.path.realpath(self.folder).encode(errors="surrogateescape")).hexdigest()
        return Path(tempfile.gettempdir()) / f"pdlib-{getattr(os, 'getuid', getpass.getuser)()}" / f"{name[:32]}.lock"

    @contextmanager
    def _written(self, room: int) -> Iterator[Path]:
        made = [one for one in (self.folder, *self.folder.parents) if not os.path.lexists(one)]
        temporary = None
        try:
            _make(self.folder)
            with _naming(self.folder):
                temporary = Path(tempfile.mkdtemp(prefix=".segment-", dir=self.folder))
                _try_to_write(temporary / "room", room)
            with _naming(self.folder, temporary):
                yield temporary
                self._move_in(temporary)
        finally:
            if temporary and not any(temporary.glob("earlier/*")):
                shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # the first that holds something ends it
                for folder in made:
                    folder.rmdir()

    def _move_in(self, temporary: Path) -> None:
        earlier, placed = temporary / "earlier", []
        earlier.mkdir()
        try:
            for name, path in zip(self.names, self.paths, strict=True):
                if os.path.lexists(path):
                    os.replace(path, earlier / name)
                placed.append(path)
                os.replace(temporary / name, path)
        except BaseException:
            for path in placed:
                path.unlink(missing_ok=True)
            for path in earlier.iterdir():
                os.replace(path, self.folder / path.name)
            raise
        shutil.rmtree(earlier)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        above = (one for one in (folder, *folder.parents) if os.path.lexists(one) and not one.is_dir())
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(next(above, folder))) from error


def _try_to_write(path: Path, size: int) -> None:
    """Write bytes that no file system compresses, down to the device, and remove them."""
    block = os.urandom(_BLOCK_BYTES)
    with path.open("wb") as stream:
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
        stream.flush()
        os.fsync(stream.fileno())
    path.unlink()


@contextmanager
def _naming(folder: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError about a file in the temporary folder names its place in `folder`; without one it names `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        about = Path(os.fsdecode(error.filename)) if error.filename is not None else None
        if temporary is None or about is None:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        if about.is_relative_to(temporary):
            raise OSError(error.errno, error.strerror, str(folder / about.name)) from error
        raise
