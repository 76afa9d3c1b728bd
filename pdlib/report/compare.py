"""Whether a table or a figure is the one of before, and if not, how far it lies from it."""

import csv
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

# A history is drawn with all its digits and kept with six: that moves a line by less than 1/500 of a pixel, and some
# anti-aliased pixels by up to 4 of 255 levels. A line that moves by 1/30 of a pixel changes its edge by 8.
LEVELS = 8
POINTS = 0.01  # of a PDF's coordinates, 1/72 inch: as far, at the 200 pixels an inch of a PNG
_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_PAGE = re.compile(rb"/MediaBox \[(.*?)\]")


def difference(ours: Path, theirs: Path) -> str:
    """How far a file lies from one made before: nothing for tables alike to the byte, and for figures alike within
    LEVELS of a pixel's 255 (PNG) or POINTS of a coordinate (PDF).
    """
    if ours.read_bytes() == theirs.read_bytes():
        return ""
    try:
        return {".csv": _table, ".png": _picture, ".pdf": _drawing}.get(ours.suffix, _text)(ours, theirs)
    except (OSError, ValueError, csv.Error) as error:
        return f"cannot be read ({error})"


def _table(ours: Path, theirs: Path) -> str:
    """Of the columns that both have, the cells as they stand: no reader rounds them."""
    table, kept = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (ours, theirs))
    lost, new = (", ".join(sorted({*a} - {*b})) for a, b in ((kept, table), (table, kept)))
    said = [f"no longer: {lost}"] * bool(lost) + [f"new: {new}"] * bool(new)
    if len(table) != len(kept):
        return "; ".join([f"{len(table)} rows where there were {len(kept)}", *said])
    shared = [name for name in kept if name in table]
    apart = table[shared] != kept[shared]
    a, b = (pd.to_numeric(pd.Series(one[shared].to_numpy()[apart]), errors="coerce") for one in (table, kept))
    numbers = (a - b).abs() / b.abs()
    far = f", numbers by up to {numbers.max():.1e} of their size" if numbers.notna().any() else ""
    return "; ".join([*said, f"{len(a)} of {apart.size} cells differ{far}"])


def _text(ours: Path, theirs: Path) -> str:
    lines, others = (path.read_text(encoding="utf-8").splitlines() for path in (ours, theirs))
    apart = sum(a != b for a, b in zip(lines, others, strict=False)) + abs(len(lines) - len(others))
    return f"{apart} of {max(len(lines), len(others))} lines differ"


def _picture(ours: Path, theirs: Path) -> str:
    a, b = (np.asarray(Image.open(path).convert("RGBA"), dtype=int) for path in (ours, theirs))
    if a.shape != b.shape:
        return "{} x {} pixels where there were {} x {}".format(*a.shape[1::-1], *b.shape[1::-1])
    apart = np.abs(a - b).max(axis=2)
    share = (apart > LEVELS).mean()
    return f"{share:.2%} of the pixels, by up to {apart.max()} of 255 levels" if share else ""


def _drawing(ours: Path, theirs: Path) -> str:
    mine, others = (_numbers_and_words(path.read_bytes()) for path in (ours, theirs))
    if len(mine) != len(others):
        return f"{len(mine)} words of drawing where there were {len(others)}"
    pairs = [(a, b) for a, b in zip(mine, others, strict=True) if a != b]
    try:
        far = max((abs(float(a) - float(b)) for a, b in pairs), default=0.0)
    except ValueError:
        return f"{len(pairs)} of {len(mine)} words of drawing"
    return f"coordinates by up to {far:.3g} points" if far > POINTS else ""


def _numbers_and_words(pdf: bytes) -> list[bytes]:
    """What a PDF draws: the size of its pages, and the words of its streams."""
    found = [word for box in _PAGE.findall(pdf) for word in box.split()]
    for stream in _STREAM.findall(pdf):
        try:
            stream = zlib.decompress(stream)
        except zlib.error:
            pass
        found += stream.split()
    return found
