"""python -m pdlib: check a folder of cases, score a mask, segment patients."""

import argparse
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path

from pdlib.memory import is_lack_of_memory
from pdlib.paths import given_path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; OpenMP reads it once, when torch is imported
INTERRUPTED, OUR_FAULT = 130, 70  # exit codes: 128 + SIGINT, and sysexits' EX_SOFTWARE


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code.

    A refused input is one line on stderr and code 2 (`check`: 1), an interruption one line and 130, and a fault of the
    program itself one line and 70. PDLIB_TRACEBACK=1 adds the traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    try:
        code = command(**arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone, as in `check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("PDLIB_TRACEBACK") == "1":
            traceback.print_exc()
        if isinstance(error, (ValueError, OSError)) or is_lack_of_memory(error):
            return _end(_one_line(error), 1 if command is check else 2)
        advice = "please report it, with what PDLIB_TRACEBACK=1 adds"
        return _end(f"unexpected {type(error).__name__}: {_one_line(error)} ({advice})", OUR_FAULT)


def check(folder: Path, profile: str, folds: Path | None, as_json: bool) -> int:
    """Read every case of a folder as a run of the profile does; say what else looks wrong. 0: nothing is refused."""
    from pdlib.data import doctor
    from pdlib.data.wmh import CaseError, skipped_folders
    from pdlib.profiles import load_profile

    settings, cases = load_profile(profile).data, []
    say = (lambda line: None) if as_json else (lambda line: print(line, flush=True))
    try:
        skipped = skipped_folders(folder)
    except CaseError as error:
        if as_json:
            print(json.dumps(doctor.report(folder, [], [doctor.hopeless(folder, error)], []), indent=2))
            return 1
        raise
    for line in skipped:
        say(f"skipped   {line}")
    for one in doctor.examine(folder, clip_percentiles=settings.clip_percentiles):
        cases.append(one)
        for line in doctor.lines(one):
            say(line)
    general = doctor.conclude(folder, cases, folds, folds_wanted=(profile, settings.folds))
    report = doctor.report(folder, cases, general, skipped)
    for line in doctor.closing(report, general):
        say(line)
    if as_json:
        print(json.dumps(report, indent=2))
    return 1 if report["verdict"] == doctor.UNSOUND else 0


def score(reference: Path, prediction: Path) -> int:
    """Print the scores of a predicted mask against a reference as JSON; an undefined score is null."""
    from pdlib.data.wmh import read_score_pair
    from pdlib.evaluation.metrics import score_volume

    scores = score_volume(*read_score_pair(reference, prediction))
    defined = {name: float(value) if math.isfinite(value) else None for name, value in scores.items()}
    print(json.dumps(defined, indent=2))
    return 0


def segment(
    flair: Path | None,
    t1: Path | None,
    out: Path | None,
    folder: list[Path] | None,
    brain_mask: Path | None,
    **how: str | float | int | None,
) -> int:
    """Segment one patient's FLAIR and T1 into files in `out`, or every scan of a folder. 1: a scan of these failed."""
    alone = {"--flair": flair, "--t1": t1, "--out": out, "--brain-mask": brain_mask}
    given = [name for name, path in alone.items() if path is not None]
    if folder and given:
        raise ValueError(f"--folder IN OUT and {', '.join(given)} exclude each other")
    if not folder and (flair is None or out is None):
        raise ValueError("segment wants --flair FILE and --out DIR, or --folder IN OUT for many scans")
    return _segment_all(*folder, **how) if folder else _segment_one(flair, t1, out, brain_mask, **how)


def _segment_one(flair: Path, t1: Path | None, out: Path, brain_mask: Path | None, **how) -> int:
    from pdlib.data.folder import Scan
    from pdlib.inference.segment import segment_scan

    done = segment_scan(_ready(**how), Scan(out.name, flair, t1, brain_mask), out)
    for role, path in {"weights": done.weights, **done.files}.items():
        print(f"{role}: {path}")
    print(f"seconds: {done.seconds:.1f}")
    _print_memory()
    return 0


def _segment_all(root: Path, out: Path, **how) -> int:
    from pdlib.inference.batch import TABLE, segment_folder

    started = time.perf_counter()
    outcomes = segment_folder(_ready(**how), root, out)
    for one in outcomes:
        print(one.line)
    counts = {status: sum(one.status == status for one in outcomes) for status in ("done", "kept", "failed")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    print(f"table: {out / TABLE}")
    print(f"seconds: {time.perf_counter() - started:.1f}")
    _print_memory()
    return 1 if counts["failed"] else 0


def _ready(weights: str | None, device: str, **changes):
    """The networks, and how the options say to use them; before any scan is read."""
    from pdlib.inference.segment import Ready
    from pdlib.inference.trained import Changes

    return Ready.of(weights, Changes(**changes), device)


def _print_memory() -> None:
    """The most memory that the process has held; nothing where the system does not say."""
    from pdlib.inference.summary import peak_memory_mb

    if (peak := peak_memory_mb()) is not None:
        print(f"peak memory: {peak / 1000:.2f} GB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pdlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser(
        "check", help="read every case below a folder; say what is wrong with which, and what may help"
    )
    one.add_argument("folder", type=given_path, metavar="FOLDER", help="cases in the WMH layout, at any depth")
    one.add_argument("--profile", default="paper", help="whose settings to read with (default: %(default)s)")
    one.add_argument(
        "--folds",
        type=given_path,
        metavar="FILE",
        help="a table of subject and fold: is a patient in two of them? (default: folds.csv in FOLDER, where it is)",
    )
    one.add_argument("--json", dest="as_json", action="store_true", help="one object: verdict, counts, cases, findings")
    one.set_defaults(command=check)

    one = commands.add_parser("score", help="score a predicted mask against a reference; JSON on stdout")
    one.add_argument("reference", type=given_path, metavar="REFERENCE", help="NIfTI: 0, 1 lesion, 2 other (ignored)")
    one.add_argument(
        "prediction", type=given_path, metavar="PREDICTION", help="NIfTI on the same grid: nonzero is lesion"
    )
    one.set_defaults(command=score)

    about = "segment one patient, or a folder of them: mask, mean and uncertainty on the FLAIR's grid"
    one = commands.add_parser("segment", help=about, description=about)
    one.add_argument("--flair", type=given_path, metavar="FILE", help="NIfTI; of DICOM make it by dcm2niix")
    one.add_argument("--t1", type=given_path, metavar="FILE", help="NIfTI of the same session, on any grid")
    one.add_argument("--out", type=given_path, metavar="DIR", help="folder for the results")
    one.add_argument(
        "--folder",
        type=given_path,
        nargs=2,
        metavar=("IN", "OUT"),
        help="every folder below IN that holds a NIfTI file with FLAIR in its name, or pre/FLAIR.nii.gz as the WMH"
        " challenge has it, with the T1 (t1, t1w, 3dt1, mprage) and brain mask beside it; OUT/volumes.csv sums up. A"
        " complete result of the same files, networks and settings is kept",
    )
    one.add_argument(
        "--weights",
        metavar="DIR|PROFILE",
        help="trained networks: their folder, or a profile's name (default: of the best profile that has some)",
    )
    one.add_argument("--brain-mask", type=given_path, metavar="FILE", help="NIfTI, on any grid: nonzero is brain")
    as_trained = "(default: as the networks were trained)"
    one.add_argument("--threshold", type=float, metavar="P", help=f"probability of a lesion's voxel {as_trained}")
    one.add_argument("--members", type=int, metavar="N", help=f"of the ensemble: more take longer {as_trained}")
    one.add_argument("--calls", type=int, metavar="N", help=f"of the network, for a member of a slice {as_trained}")
    one.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    one.set_defaults(command=segment)
    return parser


def _end(line: str, code: int) -> int:
    print(f"pdlib: {line}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    named = isinstance(error, OSError) and error.filename is not None
    text = " ".join((f"{error.filename}: {error.strerror}" if named else str(error)).split())
    if is_lack_of_memory(error) and "out of memory" not in text:
        return f"out of memory ({text})" if text else "out of memory"
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
