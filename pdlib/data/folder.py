"""The scans of a folder: each sub-folder with a FLAIR, found by the names that people and archives give.

A file is a FLAIR where a part of its name says so (parts are letters and digits between other characters, as in
`sub-01_FLAIR`, `T2-flair`, `flair3d`), a T1 where one part is t1, t1w, 3dt1 or mprage, without contrast agent, and a
brain mask where the parts name both. Masks, labels and results are passed over. A case of the WMH challenge's layout is
its pre/FLAIR and pre/T1.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pdlib.data.nifti import CaseError, find_dicom
from pdlib.data.wmh import HOUSEKEEPING

T1_NAME = re.compile(r"(3d)?t1(w|3d|mprage)?|mprage")
CONTRAST = {"ce", "gd", "gad", "post", "contrast", "t1c", "t1ce", "t1gd"}
NO_SCAN = {"mask", "seg", "dseg", "segmentation", "lesion", "lesions", "label", "labels", "wmh", "roi"}
NO_SCAN |= {"mean", "uncertainty", "result"}
NIFTI = (".nii", ".nii.gz")
OTHER_RATERS = "additional_annotations"  # of the WMH challenge


@dataclass(frozen=True)
class Scan:
    """The files of one scan, by what they are. fault: why it cannot be used; "" where nothing is known against it."""

    name: str
    flair: Path | None
    t1: Path | None = None
    brain_mask: Path | None = None
    fault: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """Role -> file, of those that there are."""
        named = {"FLAIR": self.flair, "T1": self.t1, "brain mask": self.brain_mask}
        return {role: Path(path) for role, path in named.items() if path is not None}


def find_scans(root: Path | str, out: Path | str | None = None) -> list[Scan]:
    """Every scan at any depth below `root`, sorted by name, which is the folder's path from there; none below `out`.

    A folder with several images of one kind comes with a fault, and so does one sub-folder of `root` without a FLAIR
    anywhere in it that holds a T1 or DICOM. CaseError, naming the folder, where it is none or holds no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise CaseError.of(root, "not a folder" if root.exists() else "no such folder")
    here = os.path.realpath(root)
    seen, found = {here} | ({os.path.realpath(out)} if out else set()), {}
    for name, folders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        scan = _scan(root, folder, files)
        if scan is not None:
            found.setdefault(folder.relative_to(root).parts[:1], []).append(scan)
        folders[:] = [] if scan is not None and not scan.fault else _to_enter(folder, folders, seen)
        seen.update(os.path.realpath(folder / one) for one in folders)
    if len(found) > 1 and all(one.flair is None for one in found.get((), [])):
        found.pop((), None)  # stray images beside the folders of the scans
    scans = [scan for patient in found.values() for scan in ([one for one in patient if one.flair] or patient[:1])]
    if not scans:
        raise CaseError.of(root, "no scan found (no folder here or below holds a NIfTI file with FLAIR in its name)")
    return sorted(scans, key=lambda one: one.name)


def _scan(root: Path, folder: Path, files: list[str]) -> Scan | None:
    """The scan that a folder holds; None where it holds no images."""
    below = folder.relative_to(root)
    name = below.as_posix() if below.parts else root.resolve().name
    pre = folder / "pre"
    if (pre / "FLAIR.nii.gz").exists():
        t1 = pre / "T1.nii.gz"
        return Scan(name, pre / "FLAIR.nii.gz", t1 if t1.exists() else None)
    images = sorted(file for file in files if file.lower().endswith(NIFTI) and not file.startswith("."))
    kinds = {kind: [file for file in images if _kind(file) == kind] for kind in ("FLAIR", "T1", "brain mask")}
    several = [f"several {kind} images ({', '.join(named)})" for kind, named in kinds.items() if len(named) > 1]
    if several and kinds["FLAIR"]:
        return Scan(name, folder / kinds["FLAIR"][0], fault=f"{folder}: {several[0]}: leave one of them here")
    if kinds["FLAIR"]:
        return Scan(name, *(folder / named[0] if named else None for named in kinds.values()))
    if kinds["T1"]:
        return Scan(name, None, fault=f"{folder}: no FLAIR among its images ({', '.join(images)})")
    dicom = find_dicom(folder) if files and not images else None
    if dicom is not None:
        return Scan(name, None, fault=f"{folder}: DICOM; convert it first: dcm2niix -z y -o NEW_FOLDER {folder}")
    return None


def _kind(file: str) -> str | None:
    """FLAIR, T1 or brain mask by a file's name; None for anything else."""
    parts = set(re.split(r"[^a-z0-9]+", re.sub(r"\.nii(\.gz)?$", "", file.lower())))
    if "brainmask" in parts or {"brain", "mask"} <= parts:
        return "brain mask"
    if parts & NO_SCAN:
        return None
    if any("flair" in part for part in parts):
        return "FLAIR"
    return "T1" if any(T1_NAME.fullmatch(part) for part in parts) and not parts & CONTRAST else None


def _to_enter(folder: Path, below: Iterable[str], seen: set[str]) -> list[str]:
    """The folders in a folder that may hold scans and were not entered yet."""
    odd = HOUSEKEEPING | {OTHER_RATERS}
    fit = [name for name in below if not name.startswith(".") and name not in odd]
    return [name for name in sorted(fit) if os.path.realpath(folder / name) not in seen]
