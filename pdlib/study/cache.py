"""Members kept on disk, keyed by the recipe that made them: a rerun draws only what is missing or has changed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from pdlib.inference.slices import Timed
from pdlib.paths import alone, replacing

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
    stored = _load(path, text)
    if stored is None or len(stored.values) < count:
        with alone(path.with_suffix(".lock"), f"members of {recipe['subject']}"):
            stored = _completed(path, text, count, draw)
    return Drawn(stored.values[:count], stored.calls * count, stored.seconds * count)


def _completed(path: Path, recipe: str, count: int, draw: Callable[[range], Timed]) -> Timed:
    """What is kept at path, after another process perhaps, with the members that are missing."""
    stored = _load(path, recipe)
    have = len(stored.values) if stored else 0
    if have >= count:
        return stored
    fresh = draw(range(have, count))
    values = np.concatenate([stored.values, fresh.values]) if stored else fresh.values
    seconds = (have * (stored.seconds if stored else 0.0) + (count - have) * fresh.seconds) / count
    return _store(path, recipe, Timed(values, fresh.calls, seconds))


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
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["recipe"]) != recipe:
                return None
            values, calls, seconds = stored["values"], stored["calls"], stored["seconds"]
            return Timed(values.astype(np.float32), int(calls), float(seconds)) if values.ndim == 4 else None
    except Exception:  # damage makes zip and NumPy raise almost anything
        return None
