"""The data doctor: every case of a folder read as a run reads it, and what else looks wrong in its files.

A finding is an error where a run refuses the case or the folds cannot be used, a warning where something is probably
wrong, and a note where something is worth knowing. What a run accepts is accepted here: the reader alone decides that.
Peak memory: MEMORY times the voxels of a case's largest file as float64, and nothing that grows with the cases but
110 kB for each.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pdlib.data import wmh
from pdlib.data.doctor_folds import fold_findings
from pdlib.data.doctor_headers import Odd, beside_the_flair, header_oddities, read_header
from pdlib.data.doctor_images import Doubles, mask_oddities, orig_oddities, size_oddities
from pdlib.data.doctor_remedies import ERROR, NOTE, SEVERITIES, WARNING, Finding, about, remedy_of
from pdlib.data.doubts import doubts
from pdlib.data.nifti import CaseError, printable, read_array

SOUND, DOUBTFUL, UNSOUND = "sound", "doubtful", "unsound"  # nothing but notes, a warning, an error
MEMORY = 10
UNLIKE = 0.05  # of a voxel's side, against those of the site's other cases
ENOUGH = 4  # cases of a site, to say what is usual there
_COPY = re.compile(r"the same (?:FLAIR|T1) as (.*): one patient under two names")


@dataclass(frozen=True)
class Examined:
    """One case: what was found, and what a table would say of it, None where it was refused."""

    case: str
    site: str
    folder: str
    accepted: bool
    findings: tuple[Finding, ...]
    shape_zyx: tuple[int, int, int] | None = None
    spacing_mm_zyx: tuple[float, float, float] | None = None
    lesion_ml: float | None = None
    doubles: tuple[str, ...] = ()  # earlier cases that look like this one


def examine(root: Path | str, *, clip_percentiles: tuple[float, float]) -> Iterator[Examined]:
    """Every case below `root`, one after the other. Raises CaseError where the folder holds none."""
    doubles = Doubles()
    for case, read in wmh.accept_cases(root, clip_percentiles=clip_percentiles):
        yield _refused(case, read) if isinstance(read, CaseError) else _accepted(case, read, doubles)
        del read  # before the next case is read


def _refused(case: wmh.Case, error: CaseError) -> Examined:
    file, _, cause = str(error).partition(": ")
    for path in (case.flair, case.t1, case.wmh, case.folder):
        if str(error).startswith(f"{printable(path)}: "):
            file, cause = printable(path), str(error).removeprefix(f"{printable(path)}: ")
            break
    first = Finding(printable(case.subject), file, ERROR, cause, remedy_of(cause))
    more = tuple(_finding(case, path, odd) for path, odd in _headers(case))
    twins = tuple(_COPY.findall(cause))
    return Examined(first.case, printable(case.site), printable(case.folder), False, (first, *more), doubles=twins)


def _accepted(case: wmh.Case, volume: wmh.Volume, doubles: Doubles) -> Examined:
    files = {"flair": case.flair, "t1": case.t1, "wmh": case.wmh}
    said = [(files[one.file], (one.severity, note, one.remedy)) for note in volume.notes for one in [about(note)]]
    found, twins = said + _headers(case), []
    try:
        found += [(case.flair, odd) for odd in size_oddities(volume)]
        found += [(case.wmh, odd) for odd in mask_oddities(volume)]
        found += _doubts(case, volume) + orig_oddities(case, volume)
        twins = doubles.find(printable(case.subject), volume)
    except Exception as error:  # a look that fails must not end the survey, nor refuse what a run takes
        what = f"not looked at in full ({type(error).__name__}: {printable(error)})"
        found.append((case.folder, (NOTE, what, "look at the case in a viewer")))
    remedy = "if it is one patient under two names keep one of them; if a file was copied, put the right one there"
    found += [(case.folder, (WARNING, f"{how} of {other}", remedy)) for other, how in twins]
    return Examined(
        printable(case.subject),
        printable(case.site),
        printable(case.folder),
        True,
        tuple(_finding(case, path, odd) for path, odd in found),
        volume.mask.shape,
        volume.spacing_mm,
        volume.lesion_ml,
        tuple(other for other, _ in twins),
    )


def _headers(case: wmh.Case) -> list[tuple[Path, Odd]]:
    headers = {path: read_header(path) for path in (case.flair, case.t1, case.wmh)}
    flair = headers[case.flair]
    found = [(path, odd) for path, header in headers.items() if header for odd in header_oddities(header)]
    for path in (case.t1, case.wmh):
        if flair is not None and headers[path] is not None:
            found += [(path, odd) for odd in beside_the_flair(headers[path], flair)]
    return found


def _doubts(case: wmh.Case, volume: wmh.Volume) -> list[tuple[Path, Odd]]:
    """What `segment` would doubt of the images, but for what the reader has said already."""
    flair = read_array(case.flair, "FLAIR")[0]
    notes = doubts(volume.image, flair, volume.brain, volume.spacing_mm, has_t1=True)
    fresh = [(about(note), note) for note in notes if note not in volume.notes]
    return [(case.t1 if one.file == "t1" else case.flair, (one.severity, note, one.remedy)) for one, note in fresh]


def _finding(case: wmh.Case, path: Path, odd: Odd) -> Finding:
    severity, what, remedy = odd
    return Finding(printable(case.subject), printable(path), severity, printable(what), remedy)


def conclude(
    root: Path | str, cases: list[Examined], folds: Path | None, *, folds_wanted: tuple[str, int]
) -> list[Finding]:
    """What only all cases together tell: odd voxel sizes within a site, missing originals, the folds, too few cases.

    folds: a table of subject and fold; None: folds.csv in `root`, where there is one. folds_wanted: a profile's name,
    and how many folds it makes.
    """
    found, root = _unlike_their_site(cases), Path(root)
    accepted = [one for one in cases if one.accepted]
    if len(accepted) < folds_wanted[1]:
        what = "too few to train on: profile {} makes {} folds".format(*folds_wanted)
        found.append(Finding("", printable(root), NOTE, what, "add cases, or name a profile that makes fewer folds"))
    lacking = sum(not (Path(one.folder) / "orig").is_dir() for one in accepted)
    if lacking:
        what = f"{lacking} of {len(accepted)} cases have no orig/, so whether pre/ is corrected for bias cannot be told"
        found.append(Finding("", printable(root), NOTE, what, "nothing, if the images come from pre/ of the challenge"))
    table = folds or (root / "folds.csv" if (root / "folds.csv").exists() else None)
    if table is None:
        return found
    names = [[one.case for one in cases if one.accepted is is_it] for is_it in (True, False)]
    doubles = [(one.case, other, not one.accepted) for one in cases for other in one.doubles]
    return found + fold_findings(table, *names, doubles)


def _unlike_their_site(cases: list[Examined]) -> list[Finding]:
    found = []
    for site in sorted({one.site for one in cases}):
        here = [one for one in cases if one.site == site and one.spacing_mm_zyx]
        sizes = np.array([one.spacing_mm_zyx for one in here])
        if len(here) < ENOUGH:
            continue
        usual = np.median(sizes, axis=0)
        unlike = (np.abs(sizes / usual - 1) > UNLIKE).any(axis=1)
        if unlike.sum() > len(here) / ENOUGH:
            continue  # nothing is usual here
        for one in (one for one, odd in zip(here, unlike, strict=True) if odd):
            zyx, most = (" x ".join(f"{mm:.3g}" for mm in of) for of in (one.spacing_mm_zyx, usual))
            what = f"voxels (z, y, x) of {zyx} mm, where most of {site} have {most} mm"
            found.append(
                Finding(one.case, one.folder, NOTE, what, "look which it is: another protocol, or a wrong header")
            )
    return found


def hopeless(root: Path | str, error: CaseError) -> Finding:
    """That a folder holds no cases, or cannot be listed."""
    cause = str(error).removeprefix(f"{printable(root)}: ")
    return Finding("", printable(root), ERROR, cause, "name a folder that holds cases: see data/README.md")


def report(root: Path | str, cases: list[Examined], general: list[Finding], skipped: list[str]) -> dict:
    """All of it as one object for JSON: verdict, counts, cases, findings, and what was passed over."""
    findings = [found for one in cases for found in one.findings] + general
    severities = Counter(one.severity for one in findings)
    counts = {"cases": len(cases), "accepted": sum(one.accepted for one in cases)}
    counts |= {"refused": len(cases) - counts["accepted"]} | {name: severities[name] for name in SEVERITIES}
    kept = ("case", "site", "accepted", "shape_zyx", "spacing_mm_zyx", "lesion_ml")
    return {
        "root": printable(root),
        "verdict": UNSOUND if severities[ERROR] else DOUBTFUL if severities[WARNING] else SOUND,
        "counts": counts,
        "cases": [{name: getattr(one, name) for name in kept} for one in cases],
        "findings": [asdict(one) for one in findings],
        "skipped": skipped,
    }


def lines(one: Examined) -> Iterator[str]:
    """A case in text: accepted or refused, then a line for each finding, its remedy behind an arrow."""
    first, rest = one.findings[:1], one.findings
    if one.accepted:
        shape, spacing = "x".join(map(str, one.shape_zyx)), "x".join(f"{mm:.3g}" for mm in one.spacing_mm_zyx)
        yield f"accepted  {one.case}  zyx {shape}  {spacing} mm  lesions {one.lesion_ml:.3f} ml"
    else:
        yield f"refused   {one.case}  {first[0].file}: {first[0].what}"
        yield f"{'':8}  -> {first[0].remedy}"
        rest = rest[1:]
    for found in rest:
        file = found.file.removeprefix(one.folder).lstrip("/\\")
        yield f"{'':8}  {found.severity}: {file + ': ' if file else ''}{found.what} -> {found.remedy}"


def closing(report: dict, general: list[Finding]) -> Iterator[str]:
    """The end of the text: what concerns the folder, then the counts and the verdict."""
    for found in general:
        subject = f"{found.case}  " if found.case else ""
        yield f"{found.severity:8}  {subject}{found.file}: {found.what} -> {found.remedy}"
    counts = report["counts"]
    yield "{accepted} accepted, {refused} refused".format(**counts)
    yield "{verdict}: {error} errors, {warning} warnings, {note} notes".format(verdict=report["verdict"], **counts)
