"""The columns of a score, tables on disk, and the stamp that says what made them."""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import count, takewhile
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from pdlib.paths import write_whole

COLUMNS = (
    "method",  # a key of `methods.METHODS`, or "rater"
    "start",  # what the chain starts from: "noise", or which network: "best", "checkpoint_1", ..., "empty" for none
    "rule",  # how the chain steps: `methods.rule_key`
    "calls",  # how often one member's chain calls the denoiser
    "fold",
    "seed",
    "subject",
    "site",
    "split",
    "t_prime",
    "t_stop",
    "ensemble_size",
    "nfe",  # all network calls a slice, of all members, their starts and last networks
    "seconds",
    "metric",
    "value",
    "unit",
)
TEXT = ("method", "start", "rule", "subject", "site", "split", "metric", "unit")
WHOLE = ("calls", "fold", "seed", "t_prime", "t_stop", "ensemble_size", "nfe")
VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # as Linux calls them
OPTIONAL = {"start": "", "rule": "", "seconds": math.nan}
OPTIONAL |= dict.fromkeys(("calls", "t_prime", "t_stop", "ensemble_size", "nfe"))
SCORE = ("metric", "value", "unit")  # one column a metric on disk, where all scores of a subject by a row are a line
LINE = tuple(column for column in COLUMNS if column not in SCORE)
NOTHING, UNDEFINED = "", "nan"  # on disk: the row does not have that metric; it has, and its value is NaN
LARGEST = 200_000  # characters of a file; what a table has more goes on in <name>.2.csv, <name>.3.csv, ...
UNITS = {
    "dice": "1",
    "jaccard": "1",
    "hd95_mm": "mm",
    "hd95_voxel": "voxel",
    "lesion_recall": "1",
    "lesion_precision": "1",
    "lesion_f1": "1",
    "avd_percent": "%",
    "uncertainty": "1",
    "relative_uncertainty": "1",
    "entropy": "nat",
    "energy_distance": "1",
    "rater_dice": "1",
    "risk_area": "1",
    "risk_area_oracle": "1",
    "risk_area_random": "1",
    "calibration_error": "1",
    "dice_disc": "1",
    "dice_cup": "1",
}
PACKAGES = ("torch", "triton", "monai", "diffusers", "numpy", "scipy", "nibabel", "nilearn", "pandas", "matplotlib")
OUTPUTS = ("*.csv", "*.stamp.json", "*.png", "*.pdf", "*.md")


def score_rows(scores: Mapping[str, float], **about: object) -> pd.DataFrame:
    """One subject's scores, {metric: value}, as tidy rows of COLUMNS with the unit of each metric.

    about: the other columns by name. Those of OPTIONAL may be left out: a segmenter has no chain, and agreement is
    computed from members that were paid for elsewhere. ValueError: a metric without a unit in UNITS, a column too many
    or too few.
    """
    if unknown := sorted(set(scores) - set(UNITS)):
        raise ValueError(f"{unknown[0]}: a metric without a unit (known: {', '.join(UNITS)})")
    free = [column for column in COLUMNS if column not in ("metric", "value", "unit")]
    if wrong := sorted(set(about) - set(free)):
        raise ValueError(f"{wrong[0]}: no column of a score (they are {', '.join(free)})")
    if missing := [column for column in free if column not in {**OPTIONAL, **about}]:
        raise ValueError(f"{missing[0]}: a score has to say its {', '.join(missing)}")
    frame = pd.DataFrame({"metric": list(scores), "value": list(scores.values()), "unit": [UNITS[m] for m in scores]})
    return _typed(frame.assign(**OPTIONAL | about)[list(COLUMNS)])


def write_table(path: str | os.PathLike, frame: pd.DataFrame, stamp: Mapping) -> pd.DataFrame:
    """Write frame to path (CSV), and its stamp with the table's SHA-256 to `<name>.stamp.json` beside it.

    Returns the kept table, its rows in the order given: a rank may turn on a digit that is not kept, so what is
    computed from the table in memory has to stand on this one.

    Known columns come first in the order of COLUMNS, the others by name; floats keep six significant digits, NaN is an
    empty field. Score rows (all of COLUMNS) are sorted, so that jobs finishing in another order write the same bytes,
    and a metric is a column of the file; other tables keep their order. A table of more than LARGEST characters is cut
    into several files, each with the header. Each file appears whole or not at all. OSError names the file.
    """
    path = Path(path)
    known = [column for column in COLUMNS if column in frame]
    frame = _typed(frame.reset_index(drop=True))[known + sorted(set(frame) - set(known))]
    kept = frame
    if _are_scores(frame):
        frame, kept = _wide(frame)
    texts = _cut(kept.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    for number, text in enumerate(texts, start=1):
        write_whole(_file(path, number), text)
    for stale in _files(path)[len(texts) :]:
        stale.unlink()
    stamped = {**stamp, "sha256": _sha256("".join(texts))}
    write_whole(_stamp_path(path), json.dumps(stamped, indent=2, sort_keys=True) + "\n")
    return read_table(path).set_axis(frame.index).sort_index()


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a table that `write_table` wrote, with the same column types. ValueError: no such table, or no CSV."""
    try:
        parts = [_read_csv(file) for file in _files(Path(path)) or [path]]
        frame = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
        return _typed(_long(frame) if {*LINE} <= {*frame} and not {*SCORE} & {*frame} else frame)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: not a readable table ({error})") from error


def read_stamp(path: str | os.PathLike) -> dict:
    """The stamp of the table at path. ValueError: none there, or the table is not the one that was stamped."""
    try:
        stamp = json.loads(_stamp_path(Path(path)).read_text(encoding="utf-8"))
        text = "".join(file.read_text(encoding="utf-8") for file in _files(Path(path)) or [Path(path)])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable stamp ({error})") from error
    if stamp.get("sha256") != _sha256(text):
        raise ValueError(f"{path}: the table was changed after it was stamped")
    return stamp


def stamp(
    *,
    root: str | os.PathLike,
    device: str,
    seed: int,
    data_fingerprint: str,
    phantom: bool,
    profile: str,
    changes: Mapping = MappingProxyType({}),
) -> dict:
    """Where numbers come from: code (git commit at root), packages, device, processor, seed, data, settings. No clock.

    phantom: whether the data are simulated, so that no table passes for one of patients. changes: the settings that
    differ from the profile's, nested as they are there.
    """
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = None
    return {
        "git": git_state(root),
        "packages": packages,
        "device": str(device),
        "processor": _processor(),
        "seed": int(seed),
        "data_fingerprint": data_fingerprint,
        "phantom": phantom,
        "profile": profile,
        "changes": dict(changes),
    }


def _processor() -> dict:
    """The kind of CPU and which of VECTORS it has, as far as the system tells: others compute with other roundings."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = {*told.get("flags", told.get("Features", "")).split()}
    name = told.get("model name", platform.processor())
    return {"name": name, "architecture": platform.machine(), "vectors": [one for one in VECTORS if one in has]}


def data_fingerprint(paths: Iterable[str | os.PathLike]) -> str:
    """SHA-256 over the bytes of files and their names relative to the folder they share; order does not matter.

    ValueError: no files, or one that cannot be read.
    """
    files = [Path(path).absolute() for path in paths]
    if not files:
        raise ValueError("data_fingerprint: no files")
    shared = Path(os.path.commonpath([file.parent for file in files]))
    total = hashlib.sha256()
    for name, file in sorted({(file.relative_to(shared).as_posix(), file) for file in files}):
        try:
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
        total.update(f"{content.hexdigest()} {name}\n".encode())
    return total.hexdigest()


def git_state(root: str | os.PathLike) -> dict:
    """The code at root: {sha, dirty}, or {sha: None, reason} where git knows none.

    Dirty means changed sources: tables and figures are what a run changes.
    """
    status = ["status", "--porcelain", "--", ":/", *(f":(top,exclude){pattern}" for pattern in OUTPUTS)]
    try:
        sha, changed = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--verify", "HEAD"], status)
        )
    except FileNotFoundError:
        return {"sha": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        return {"sha": None, "reason": error.stderr.strip() or "git failed"}
    return {"sha": sha, "dirty": bool(changed)}


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """In score rows whole numbers stay whole beside an empty field: a seed must not turn into 2.02e+07."""
    if not _are_scores(frame):
        return frame
    try:
        return frame.astype(dict.fromkeys(WHOLE, "Int64"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"score rows: one of {', '.join(WHOLE)} is not a whole number ({error})") from error


def _are_scores(frame: pd.DataFrame) -> bool:
    return set(COLUMNS) <= set(frame)


def _wide(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score rows in the order of the disk, and as they stand there: a line for each row of LINE, a column a metric."""
    if strange := sorted(set(frame.metric) - set(UNITS)):
        raise ValueError(f"{strange[0]}: a metric without a unit (known: {', '.join(UNITS)})")
    about = [column for column in frame if column not in SCORE]
    first = [*(column for column in about if column != "seconds"), "seconds"]  # seconds are no part of what a row is
    again = frame.groupby([*about, "metric"], dropna=False).cumcount().rename("again")  # of the same score, given twice
    frame = frame.join(again).sort_values([*first, "again", "metric"], kind="stable")
    line = frame.groupby([*about, "again"], dropna=False, sort=False).ngroup()
    cells = frame.assign(line=line, value=[f"{value:.6g}" for value in frame.value])
    scores = cells.pivot(index="line", columns="metric", values="value").fillna(NOTHING)
    lines = frame.loc[~line.duplicated(), about].reset_index(drop=True)
    return frame.drop(columns="again"), lines.join(scores[[metric for metric in UNITS if metric in scores]])


def _long(lines: pd.DataFrame) -> pd.DataFrame:
    """Score rows as `score_rows` gives them, from lines as they stand on disk."""
    metrics = sorted(column for column in lines if column in UNITS)
    cells, about = lines[metrics].to_numpy(dtype=str), lines.drop(columns=metrics)
    line, column = (cells != NOTHING).nonzero()
    frame = about.iloc[line].reset_index(drop=True)
    frame["metric"] = [metrics[i] for i in column]
    frame["value"] = cells[line, column].astype(float)
    frame["unit"] = [UNITS[metrics[i]] for i in column]
    return frame[[*COLUMNS, *(column for column in about if column not in COLUMNS)]]


def _read_csv(path: str | os.PathLike) -> pd.DataFrame:
    """An empty field is NaN in a column of numbers; in a column of text it is text, and so is "NA"."""
    columns = pd.read_csv(path, nrows=0).columns
    text = {column for column in columns if column in TEXT}
    if {*LINE} <= {*columns}:
        text |= {column for column in columns if column in UNITS}
    numbers = {column: [""] for column in columns if column not in text}
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=numbers)


def _cut(text: str) -> list[str]:
    """A CSV text as texts of at most LARGEST characters, or a line, each with the header."""
    header, *lines = text.splitlines(keepends=True)
    texts = [header]
    for line in lines:
        if len(texts[-1]) + len(line) > LARGEST and texts[-1] != header:
            texts.append(header)
        texts[-1] += line
    return texts


def _file(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def _files(path: Path) -> list[Path]:
    """The files of the table at path, in order; none where it is not there."""
    return list(takewhile(Path.exists, (_file(path, number) for number in count(1))))


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.stamp.json")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
