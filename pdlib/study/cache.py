"""Members kept on disk, keyed by the recipe that made them: a rerun draws only what is missing or has changed."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from filelock import FileLock

from pdlib.inference.slices import Timed
from pdlib.paths import replacing

NAME_CHARACTERS = 80  # of a subject that its file's name shows; a digest of the whole tells files apart


@dataclass(frozen=True)
class Drawn:
    """Members of a method for a subject, [E, Z, Y, X], with what all of them cost: network calls a slice, seconds."""

    values: np.ndarray
    calls: int
    seconds: float


def first_members(folder: Path, recipe: dict, count: int, draw: Callable[[range], Timed]) -> Drawn:
    """The first count members that are kept in folder under a recipe, which names its subject; missing ones are drawn.

    draw: members -> their values [E, Z, Y, X], with the calls and seconds of one of them. One process at a time.
    Members are kept in half precision and returned as a later run reads them.
    """
    path, text = folder / file_name(recipe["subject"]), json.dumps(recipe, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        stored = _load(path, text)
        have = len(stored.values) if stored else 0
        if have < count:
            fresh = draw(range(have, count))
            values = np.concatenate([stored.values, fresh.values]) if stored else fresh.values
            seconds = (have * (stored.seconds if stored else 0.0) + (count - have) * fresh.seconds) / count
            stored = _store(path, text, Timed(values, fresh.calls, seconds))
    return Drawn(stored.values[:count], stored.calls * count, stored.seconds * count)


def file_name(subject: str) -> str:
    """A file name for a subject, another for every other subject, on every file system."""
    digest = hashlib.sha256(subject.encode()).hexdigest()[:16]
    return f"{quote(subject, safe='')[:NAME_CHARACTERS]}-{digest}.npz"


def _store(path: Path, recipe: str, timed: Timed) -> Timed:
    values = timed.values.astype(np.float16)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, values=values, calls=timed.calls, seconds=timed.seconds, recipe=recipe)
    return Timed(values.astype(np.float32), timed.calls, timed.seconds)


def _load(path: Path, recipe: str) -> Timed | None:
    """What is kept at path under this recipe; None for another recipe, and for a file that cannot be read."""
    try:
        with np.load(path) as stored:
            if str(stored["recipe"]) != recipe:
                return None
            return Timed(stored["values"].astype(np.float32), int(stored["calls"]), float(stored["seconds"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
