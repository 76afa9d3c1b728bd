"""Cases in the layout of the WMH challenge 2017 (Kuijf et al. 2019): find, check, read.

Arrays are [Z, Y, X], slices first, reoriented to the closest canonical (RAS+) axes; spacing_mm has the same order.
The files themselves are read in `nifti`, the brain is found in `brain`; what callers need of both is here too.
"""

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pdlib.data.brain import ODD_OUTSIDE, contrast_notes, find_brain, plausibility
from pdlib.data.nifti import MAX_VOXELS as MAX_VOXELS
from pdlib.data.nifti import CaseError, Grid, as_labels, as_mask, printable, read_array, require_same_grid
from pdlib.data.nifti import write_volume as write_volume

PHANTOM_FILES = frozenset({"phantom_settings.json", "phantom.json"})  # at a phantom's root, in each of its cases
HOUSEKEEPING = frozenset(  # of file systems and servers, beside what begins with a dot: deleted and earlier files
    {"lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "#recycle", "#snapshot", "~snapshot"}
    | {"@eaDir", "@Recycle", "@Recently-Snapshot"}
)


@dataclass(frozen=True)
class Case:
    """One patient's folder. `subject` is its path below the data root, `site` the name of the folder above it."""

    subject: str
    site: str
    folder: Path

    @property
    def flair(self) -> Path:
        return self.folder / "pre" / "FLAIR.nii.gz"

    @property
    def t1(self) -> Path:
        return self.folder / "pre" / "T1.nii.gz"

    @property
    def wmh(self) -> Path:
        return self.folder / "wmh.nii.gz"


@dataclass(frozen=True, eq=False)
class Volume:
    """One patient, read and normalised. Without an expert's mask, `mask` and `ignore` are None."""

    image: np.ndarray  # [2, Z, Y, X] float32: FLAIR, T1
    brain: np.ndarray  # [Z, Y, X] bool
    mask: np.ndarray | None  # [Z, Y, X] uint8, 1 = lesion
    ignore: np.ndarray | None  # [Z, Y, X] bool, other pathology (label 2)
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    grid: Grid
    notes: tuple[str, ...] = ()  # what was assumed while reading, and what looks odd; one sentence each

    @property
    def lesion_ml(self) -> float:
        """Lesion volume in ml; NaN without a mask."""
        return float("nan") if self.mask is None else float(self.mask.sum() * np.prod(self.spacing_mm) / 1000)


def find_cases(root: Path | str) -> list[Case]:
    """Every case at any depth below `root`, sorted by subject; extra raters' folders are no cases.

    A case is a folder that holds wmh.nii.gz or pre/FLAIR.nii.gz; one that lacks the other is refused when read. Hidden
    folders, a file system's own, and our phantoms (unless `root` lies in one) are passed over: `skipped_folders`.
    Raises CaseError, naming the folder, where `root` is no folder, cannot be listed, or holds no case.
    """
    found = _survey(root)
    if not found.cases:
        raise found.unreadable[0][1]
    return found.cases


def skipped_folders(root: Path | str) -> list[str]:
    """What `find_cases` passed over below `root`: one line each, folder and cause."""
    return _survey(root).skipped


def accept_cases(
    root: Path | str, *, clip_percentiles: tuple[float, float]
) -> Iterator[tuple[Case, Volume | CaseError]]:
    """Read all below `root` in full, one case at a time: with each comes its volume, or why a run would refuse it.

    Beside files that cannot be used, refused are: a folder that cannot be listed, a name that no UTF-8 table can hold,
    an extra rater's mask that does not fit, and a case whose FLAIR or T1 is that of an earlier one, since two copies
    of a patient would come into different folds.
    """
    found, seen = _survey(root), {}
    yield from found.unreadable
    for case in found.cases:
        try:
            _require_utf8(case)
            volume = read_case(case, clip_percentiles=clip_percentiles)
            read_raters(root, case, volume.grid)
            _require_new(case, volume, seen)
            yield case, volume
        except CaseError as error:
            yield case, error
        except Exception as error:  # one bad case must not end the survey
            yield case, CaseError.of(case.folder, f"cannot be read ({type(error).__name__}: {error})")


def read_case(case: Case, *, clip_percentiles: tuple[float, float]) -> Volume:
    """Read one case with the expert's mask. Raises CaseError naming the file and the cause."""
    values, mask_grid = read_array(case.wmh, "mask")
    found = as_labels(case.wmh, values)
    volume = read_images(case.flair, case.t1, clip_percentiles=clip_percentiles)
    require_same_grid(case.wmh, mask_grid, case.flair, volume.grid)
    lesion, notes = found == 1, volume.notes
    outside = np.count_nonzero(lesion & ~volume.brain)
    if outside > ODD_OUTSIDE * np.count_nonzero(lesion):
        notes += (f"{outside / np.count_nonzero(lesion):.0%} of the lesion volume lies outside the brain",)
    return replace(volume, mask=lesion.astype(np.uint8), ignore=found == 2, notes=notes)


def read_images(
    flair_path: Path | str,
    t1_path: Path | str,
    *,
    clip_percentiles: tuple[float, float],
    brain_mask_path: Path | str | None = None,
) -> Volume:
    """Read FLAIR and T1, each clipped to its `clip_percentiles` in the brain and z-scored there; zero outside.

    The brain is `brain_mask_path` (nonzero = brain) or, without one, what `brain.find_brain` finds in the FLAIR.
    `Volume.notes` says what that assumed, and where the two images look like one, or swapped.
    Raises CaseError naming the file and the cause.
    """
    flair_path, t1_path = Path(flair_path), Path(t1_path)
    flair, grid = read_array(flair_path, "FLAIR")
    t1, t1_grid = read_array(t1_path, "T1")
    require_same_grid(t1_path, t1_grid, flair_path, grid)
    for path, array in ((flair_path, flair), (t1_path, t1)):
        if array.min() == array.max():
            raise CaseError.of(path, f"no contrast (every voxel is {array.flat[0]:g})")
    if np.array_equal(flair, t1):
        raise CaseError.of(t1_path, f"the same image as the FLAIR, {flair_path}")
    brain, notes = _brain(flair_path, flair, grid, brain_mask_path)
    image = np.zeros((2, *flair.shape), dtype=np.float32)  # [2, Z, Y, X]
    for channel, path, array in zip(image, (flair_path, t1_path), (flair, t1), strict=True):
        inside = normalise(array[brain], clip_percentiles=clip_percentiles)
        if inside is None:
            found = f"{np.count_nonzero(brain)} voxels, from {brain_mask_path or flair_path}"
            raise CaseError.of(path, f"no contrast inside the brain ({found})")
        channel[brain] = inside
    notes += contrast_notes(image, brain, grid.spacing_mm)
    return Volume(image, brain, None, None, grid.spacing_mm, grid, notes)


def normalise(inside: np.ndarray, *, clip_percentiles: tuple[float, float]) -> np.ndarray | None:
    """Clip the brain's voxels [N] to their percentiles, then z-score them; None where nothing varies."""
    if not 0 <= clip_percentiles[0] < clip_percentiles[1] <= 100:
        raise ValueError(f"clip_percentiles must rise within 0..100, not {tuple(clip_percentiles)}")
    with np.errstate(all="ignore"):
        clipped = np.clip(inside, *np.percentile(inside, clip_percentiles))
        if clipped.min() == clipped.max():
            return None
        centred = clipped - clipped.mean()
        deviation = centred.std()
    return centred / deviation if 0 < deviation < np.inf else None


def read_labels(path: Path | str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A mask file's labels [Z, Y, X] uint8 (0, 1 lesion, 2 other pathology) and spacing_mm. Raises CaseError."""
    path = Path(path)
    values, grid = read_array(path, "mask")
    return as_labels(path, values), grid.spacing_mm


def read_raters(root: Path | str, case: Case, grid: Grid) -> dict[str, np.ndarray]:
    """Extra raters' labels of a case: observer -> [Z, Y, X] uint8 (0, 1, 2), sorted by name; {} where there are none.

    They lie at additional_annotations/OBSERVER/.../CASE/result.nii.gz, where OBSERVER begins with "observer_",
    additional_annotations stands in `root` or in a folder between it and the case, and CASE is the case's path from
    there; so an older copy's Utrecht/7 is found at OBSERVER/training/Utrecht/7. `grid` is the case's own. Raises
    CaseError naming the file, as `read_case` does for a mask, and where an observer has two files for the case;
    ValueError for a case that is not below `root`.
    """
    root, found = Path(root), {}
    below = case.folder.relative_to(root).parts
    for depth in range(len(below)):
        annotations = root.joinpath(*below[:depth], "additional_annotations")
        tail = glob.escape("/".join(below[depth:]))
        for path in sorted(annotations.glob(f"observer_*/**/{tail}/result.nii.gz")):
            observer = path.relative_to(annotations).parts[0]
            if observer in found:
                raise CaseError.of(path, f"a second mask of {case.subject} by {observer}")
            values, rater_grid = read_array(path, "mask")
            require_same_grid(path, rater_grid, case.flair, grid)
            found[observer] = as_labels(path, values)
    return dict(sorted(found.items()))


def read_score_pair(
    reference: Path | str, prediction: Path | str
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A reference and a prediction on one grid: labels [Z, Y, X] uint8, mask [Z, Y, X] bool (nonzero), spacing_mm.

    Raises CaseError where the grids differ, the reference is no label map, or the prediction holds fractions.
    """
    reference, prediction = Path(reference), Path(prediction)
    values, grid = read_array(reference, "reference")
    labels = as_labels(reference, values)
    predicted, predicted_grid = read_array(prediction, "prediction")
    require_same_grid(prediction, predicted_grid, reference, grid)
    return labels, as_mask(prediction, predicted), grid.spacing_mm


def _brain(
    flair_path: Path, flair: np.ndarray, grid: Grid, given: Path | str | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain [Z, Y, X] bool, given or found, and notes on it."""
    path = flair_path if given is None else Path(given)
    if given is None:
        try:
            brain, notes = find_brain(flair)
        except ValueError as error:
            raise CaseError.of(path, f"{error}; a brain mask would tell") from None
    else:
        values, mask_grid = read_array(path, "brain mask")
        require_same_grid(path, mask_grid, flair_path, grid)
        brain = as_mask(path, values)
        notes = plausibility(brain)
    if not brain.any():
        raise CaseError.of(path, "empty brain (no voxel inside it)")
    return brain, notes


def _require_utf8(case: Case) -> None:
    """Also of the folders above, which stand in notebooks and in the table of what a run was made from."""
    try:
        os.path.abspath(case.folder).encode()
    except UnicodeEncodeError:
        raise CaseError.of(case.folder, "the folder's name is not UTF-8: rename it") from None


def _require_new(case: Case, volume: Volume, seen: dict[bytes, str]) -> None:
    """Refuse a case that shares an image with one in `seen`, else add its images: digest -> subject."""
    digests = {}
    for name, channel in zip(("FLAIR", "T1"), volume.image, strict=True):
        digest = hashlib.sha256(f"{name} {channel.shape}".encode() + channel.tobytes()).digest()
        if digest in seen:
            raise CaseError.of(case.folder, f"the same {name} as {seen[digest]}: one patient under two names")
        digests[digest] = case.subject
    seen |= digests


@dataclass
class _Found:
    cases: list[Case] = field(default_factory=list)
    unreadable: list[tuple[Case, CaseError]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def _survey(root: Path | str) -> _Found:
    """Walk through links too, each real folder once."""
    root, found, errors, seen = Path(root), _Found(), [], set()
    if not root.is_dir():
        raise CaseError.of(root, "not a folder" if root.exists() else "no such folder")
    in_phantom = any((folder / name).exists() for folder in (root, *root.resolve().parents) for name in PHANTOM_FILES)
    for name, folders, files in os.walk(root, followlinks=True, onerror=errors.append):
        folder = Path(name)
        if not in_phantom and PHANTOM_FILES & set(files):
            found.skipped.append(f"{printable(folder)}: an embedded phantom, no patients")
            folders.clear()
        elif "wmh.nii.gz" in files or os.path.lexists(folder / "pre" / "FLAIR.nii.gz"):
            found.cases.append(_case(root, folder))
            folders.clear()
        else:
            folders[:] = _to_enter(folder, folders, seen, found)
    for error in errors:
        case, cause = _case(root, Path(error.filename)), CaseError.of(error.filename, error.strerror)
        if case.folder == root:
            raise cause
        found.unreadable.append((case, cause))
    if not found.cases and not found.unreadable:
        passed = f"; passed over: {'; '.join(found.skipped)}" if found.skipped else ""
        raise CaseError.of(root, f"no case found (no folder below holds wmh.nii.gz or pre/FLAIR.nii.gz{passed})")
    found.cases.sort(key=lambda case: case.subject)
    return found


def _case(root: Path, folder: Path) -> Case:
    below, absolute = folder.relative_to(root), Path(os.path.abspath(folder))
    return Case(below.as_posix() if below.parts else absolute.name, absolute.parent.name, folder)


def _to_enter(folder: Path, below: list[str], seen: set[str], found: _Found) -> list[str]:
    """The folders in `folder` that may hold cases and were not entered by another way; notes the others."""
    entered = []
    for name in below:
        if name.startswith(".") or name in HOUSEKEEPING:
            kind = "hidden" if name.startswith(".") else "the file system's own"
            found.skipped.append(f"{printable(folder / name)}: {kind}, not entered")
        elif name != "additional_annotations":
            entered.append(name)
    fresh = {os.path.realpath(folder / name): name for name in sorted(entered, reverse=True)}
    fresh = {real: name for real, name in fresh.items() if real not in seen}
    seen.update(fresh)
    return list(fresh.values())
