"""Cases in the layout of the WMH challenge 2017 (Kuijf et al. 2019): find, check, read, write back on the same grid.

Arrays are [Z, Y, X], slices first, reoriented to the closest canonical (RAS+) axes; spacing_mm has the same order.
"""

import glob
import gzip
import io
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

MAX_VOXELS = 512**3  # a header that claims more is refused before its voxels are read
MAX_OFFSET_BYTES = 2**27  # room for header extensions
GRID_TOLERANCE_MM = 0.1  # two grids are one when no corner voxel is further apart than this
LABEL_TOLERANCE = 1e-4  # rounding of a header's scale factor, as in 255 * float32(1 / 255)
BET_PERCENTILES = (2.0, 98.0)  # robust intensity range and the fraction of it where the
BET_FRACTION = 0.1  # head begins: Smith, Fast robust automated brain extraction, 2002, section 3.1

_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)
_OTHER_UNITS = {1: "metres", 3: "micrometres"}  # NIfTI's codes; 2 is mm, 0 unknown and taken for mm
_SILENT = logging.Logger("nibabel's repairs", level=logging.CRITICAL)


class CaseError(ValueError):
    """Unusable input. The message is one line: the offending file's path, a colon, the cause."""

    @classmethod
    def of(cls, path: Path | str, cause: object) -> "CaseError":
        return cls(f"{path}: {' '.join(str(cause).split())}")


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
class Grid:
    """The grid an image is stored on, by its own axes (i, j, k), so that a canonical array can be put back."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # [4, 4] stored voxel -> mm
    header: nib.Nifti1Header

    @property
    def orientation(self) -> np.ndarray:
        """nibabel's [3, 2] table: for each stored axis the canonical axis it follows, and its direction."""
        return io_orientation(self.affine)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(x, y, z) of the canonical array."""
        return tuple(self.shape[axis] for axis in self.orientation[:, 0].argsort())

    @property
    def canonical_affine(self) -> np.ndarray:
        """[4, 4] voxel (x, y, z) of the canonical array -> mm."""
        return self.affine @ inv_ornt_aff(self.orientation, self.shape)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        x, y, z = nib.affines.voxel_sizes(self.canonical_affine)
        return float(z), float(y), float(x)

    def to_canonical(self, stored: np.ndarray) -> np.ndarray:
        """Stored [I, J, K] -> canonical [Z, Y, X]."""
        return np.ascontiguousarray(apply_orientation(stored, self.orientation).transpose(2, 1, 0))

    def to_stored(self, array_zyx: np.ndarray) -> np.ndarray:
        """Canonical [Z, Y, X] -> stored [I, J, K]; the inverse of `to_canonical`."""
        return apply_orientation(array_zyx.transpose(2, 1, 0), ornt_transform(_CANONICAL, self.orientation))


@dataclass(frozen=True, eq=False)
class Volume:
    """One patient, read and normalised. Without an expert's mask, `mask` and `ignore` are None."""

    image: np.ndarray  # [2, Z, Y, X] float32: FLAIR, T1
    brain: np.ndarray  # [Z, Y, X] bool
    mask: np.ndarray | None  # [Z, Y, X] uint8, 1 = lesion
    ignore: np.ndarray | None  # [Z, Y, X] bool, other pathology (label 2)
    spacing_mm: tuple[float, float, float]  # (z, y, x)
    grid: Grid

    @property
    def lesion_ml(self) -> float:
        """Lesion volume in ml; NaN without a mask."""
        return float("nan") if self.mask is None else float(self.mask.sum() * np.prod(self.spacing_mm) / 1000)


def find_cases(root: Path | str) -> list[Case]:
    """Every case at any depth below `root`, sorted by subject; extra raters' folders are no cases.

    A case is a folder that holds wmh.nii.gz or pre/FLAIR.nii.gz; one that lacks the other is refused when read.
    Raises CaseError, naming the folder, where `root` is no folder, cannot be listed, or holds no case.
    """
    root = Path(root)
    if not root.is_dir():
        raise CaseError.of(root, "not a folder" if root.exists() else "no such folder")
    cases = []
    for folder in _case_folders(root):
        below = folder.relative_to(root)
        absolute = Path(os.path.abspath(folder))
        cases.append(Case(below.as_posix() if below.parts else absolute.name, absolute.parent.name, folder))
    if not cases:
        raise CaseError.of(root, "no case found (no folder below holds wmh.nii.gz or pre/FLAIR.nii.gz)")
    return sorted(cases, key=lambda case: case.subject)


def read_cases(root: Path | str, *, clip_percentiles: tuple[float, float]) -> Iterator[tuple[Case, Volume | CaseError]]:
    """Read every case below `root` in full, one at a time: with each comes its volume, or why it is refused."""
    for case in find_cases(root):
        try:
            yield case, read_case(case, clip_percentiles=clip_percentiles)
        except CaseError as error:
            yield case, error


def read_case(case: Case, *, clip_percentiles: tuple[float, float]) -> Volume:
    """Read one case with the expert's mask. Raises CaseError naming the file and the cause."""
    values, mask_grid = _read(case.wmh, "mask")
    found = _as_labels(case.wmh, values)
    volume = read_images(case.flair, case.t1, clip_percentiles=clip_percentiles)
    _require_same_grid(case.wmh, mask_grid, case.flair, volume.grid)
    return replace(volume, mask=(found == 1).astype(np.uint8), ignore=found == 2)


def read_images(
    flair_path: Path | str,
    t1_path: Path | str,
    *,
    clip_percentiles: tuple[float, float],
    brain_mask_path: Path | str | None = None,
) -> Volume:
    """Read FLAIR and T1, each clipped to its `clip_percentiles` in the brain and z-scored there; zero outside.

    The brain is `brain_mask_path` (nonzero = brain) or, without one, `brain_mask` of the FLAIR.
    Raises CaseError naming the file and the cause.
    """
    flair_path, t1_path = Path(flair_path), Path(t1_path)
    flair, grid = _read(flair_path, "FLAIR")
    t1, t1_grid = _read(t1_path, "T1")
    _require_same_grid(t1_path, t1_grid, flair_path, grid)
    for path, array in ((flair_path, flair), (t1_path, t1)):
        if array.min() == array.max():
            raise CaseError.of(path, f"no contrast (every voxel is {array.flat[0]:g})")
    if brain_mask_path is None:
        brain = brain_mask(flair, percentiles=BET_PERCENTILES, fraction=BET_FRACTION)
    else:
        brain_mask_path = Path(brain_mask_path)
        values, mask_grid = _read(brain_mask_path, "brain mask")
        _require_same_grid(brain_mask_path, mask_grid, flair_path, grid)
        brain = values != 0
    if not brain.any():
        raise CaseError.of(brain_mask_path or flair_path, "empty brain (no voxel inside it)")
    image = np.zeros((2, *flair.shape), dtype=np.float32)  # [2, Z, Y, X]
    for channel, path, array in zip(image, (flair_path, t1_path), (flair, t1), strict=True):
        inside = normalise(array[brain], clip_percentiles=clip_percentiles)
        if inside is None:
            raise CaseError.of(path, "no contrast inside the brain")
        channel[brain] = inside
    return Volume(image, brain, None, None, grid.spacing_mm, grid)


def brain_mask(flair: np.ndarray, *, percentiles: tuple[float, float], fraction: float) -> np.ndarray:
    """The largest connected part above `fraction` of the robust range, in-plane holes filled. [Z, Y, X] -> bool.

    BET's threshold (Smith 2002): low + fraction * (high - low), where low and high are `percentiles` of the volume.
    """
    low, high = np.percentile(flair, percentiles)
    parts, _ = ndimage.label(flair > low + fraction * (high - low))
    sizes = np.bincount(parts.ravel())
    if len(sizes) == 1:
        return np.zeros(flair.shape, dtype=bool)
    return ndimage.binary_fill_holes(parts == 1 + sizes[1:].argmax(), structure=_IN_PLANE)


def normalise(inside: np.ndarray, *, clip_percentiles: tuple[float, float]) -> np.ndarray | None:
    """Clip the brain's voxels [N] to their percentiles, then z-score them; None where nothing varies."""
    if not 0 <= clip_percentiles[0] < clip_percentiles[1] <= 100:
        raise ValueError(f"clip_percentiles must rise within 0..100, not {tuple(clip_percentiles)}")
    clipped = np.clip(inside, *np.percentile(inside, clip_percentiles))
    centred = clipped - clipped.mean()
    deviation = centred.std()
    return centred / deviation if deviation > 0 else None


def read_labels(path: Path | str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A mask file's labels [Z, Y, X] uint8 (0, 1 lesion, 2 other pathology) and spacing_mm. Raises CaseError."""
    path = Path(path)
    values, grid = _read(path, "mask")
    return _as_labels(path, values), grid.spacing_mm


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
            values, rater_grid = _read(path, "mask")
            _require_same_grid(path, rater_grid, case.flair, grid)
            found[observer] = _as_labels(path, values)
    return dict(sorted(found.items()))


def read_score_pair(
    reference: Path | str, prediction: Path | str
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A reference and a prediction on one grid: labels [Z, Y, X] uint8, mask [Z, Y, X] bool (nonzero), spacing_mm.

    Raises CaseError where the grids differ, the reference is no label map, or the prediction holds fractions.
    """
    reference, prediction = Path(reference), Path(prediction)
    values, grid = _read(reference, "reference")
    labels = _as_labels(reference, values)
    predicted, predicted_grid = _read(prediction, "prediction")
    _require_same_grid(prediction, predicted_grid, reference, grid)
    whole = np.rint(predicted)
    if predicted.min() < 0 or np.abs(predicted - whole).max() > LABEL_TOLERANCE:
        raise CaseError.of(prediction, "holds fractions or negative values, not a mask: threshold it first")
    return labels, whole != 0, grid.spacing_mm


def write_volume(path: Path | str, array_zyx: np.ndarray, grid: Grid, dtype: np.dtype | type | str) -> None:
    """Write a canonical [Z, Y, X] array as `dtype` on the grid it came from: axes, affine, form codes, voxel sizes.

    The file appears whole or not at all: it is written under another name, then renamed. ValueError on a wrong shape.
    """
    path, stored = Path(path), grid.to_stored(array_zyx)
    if stored.shape != grid.shape:
        raise ValueError(f"{path}: an array for stored shape {stored.shape} does not fit the grid {grid.shape}")
    header = grid.header.copy()
    header.set_data_dtype(dtype)
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
    header.extensions.clear()
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    data = image_class(stored.astype(dtype), grid.affine, header).to_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _case_folders(root: Path) -> Iterator[Path]:
    """Walk through links too, each real folder once."""

    def refuse(error: OSError) -> None:
        raise CaseError.of(error.filename, error.strerror)

    seen = set()
    for name, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        folder = Path(name)
        if "wmh.nii.gz" in files or os.path.lexists(folder / "pre" / "FLAIR.nii.gz"):
            folders.clear()
            yield folder
            continue
        fresh = {os.path.realpath(folder / below): below for below in sorted(folders, reverse=True)}
        folders[:] = [below for real, below in fresh.items() if real not in seen and below != "additional_annotations"]
        seen.update(fresh)


def _read(path: Path, role: str) -> tuple[np.ndarray, Grid]:
    """The voxels [Z, Y, X] float64 of a sound 3D file, and its grid."""
    stored, header = _load(path, role)
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise CaseError.of(path, "the affine is singular or not finite")
    if not np.isfinite(stored).all():
        raise CaseError.of(path, "holds NaN or Inf")
    grid = Grid(stored.shape, affine, header)
    return grid.to_canonical(stored), grid


def _load(path: Path, role: str) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Stored voxels and header of a sound NIfTI file, packed or not, whatever its name says."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(2)
            if not magic:
                raise CaseError.of(path, "empty file (0 bytes)")
            stream.seek(0)
            return _parse(path, gzip.GzipFile(fileobj=stream) if magic == b"\x1f\x8b" else stream)
    except FileNotFoundError:
        raise CaseError.of(path, f"missing {role} (no such file)") from None
    except EOFError:
        raise CaseError.of(path, "truncated gzip stream") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CaseError.of(path, f"broken gzip stream ({error})") from None
    except nib.spatialimages.HeaderDataError as error:
        raise CaseError.of(path, f"not a readable NIfTI header ({error})") from None
    except OSError as error:
        raise CaseError.of(path, error.strerror or error) from None


def _parse(path: Path, stream: BinaryIO) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Reads to the stream's end, past the voxels: only there does gzip compare its checksum."""
    raw = stream.read(nib.Nifti2Header.template_dtype.itemsize)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(raw)), None)
    if kind is None:
        raise CaseError.of(path, "not a NIfTI file")
    header = kind(raw[: kind.template_dtype.itemsize], check=False)
    fault = _header_fault(header)
    if fault:
        raise CaseError.of(path, fault)
    shape = header.get_data_shape()
    claimed = header.get_data_offset() + prod(shape) * header.get_data_dtype().itemsize
    raw += stream.read(max(claimed - len(raw), 0))
    if len(raw) < claimed:
        raise CaseError.of(path, f"data end early: the header claims {claimed} bytes, the file holds {len(raw)}")
    while stream.read(1 << 20):
        pass
    with np.errstate(all="ignore"):
        stored = header.data_from_fileobj(io.BytesIO(raw)).astype(np.float64)
    header.set_data_shape(shape[:3])
    return stored.reshape(shape[:3]), header


def _header_fault(header: nib.Nifti1Header) -> str | None:
    """What in a NIfTI header forbids its use as a 3D volume; None where nothing does. Repairs what nibabel repairs."""
    shape, pixdim = header.get_data_shape(), header["pixdim"][1:4].tolist()
    if len(shape) < 3 or any(length > 1 for length in shape[3:]):
        return f"not a 3D volume (shape {shape})"
    if min(shape) < 1:
        return f"no voxels (shape {shape})"
    if prod(shape) > MAX_VOXELS:
        return f"shape {shape} exceeds the limit of {MAX_VOXELS} voxels"
    if not all(0 < size < float("inf") for size in pixdim):
        return f"voxel sizes {pixdim} are not positive and finite"
    header.check_fix(logger=_SILENT)
    if header.get_data_dtype().kind not in "iuf":
        return f"voxels of type {header.get_value_label('datatype')} are not plain numbers"
    if not header["vox_offset"] <= MAX_OFFSET_BYTES:
        return f"voxels begin at byte {header['vox_offset']}, not within the first {MAX_OFFSET_BYTES}"
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) % 8)
    if unit:
        return f"voxel sizes are in {unit}, not mm"
    return None


def _require_same_grid(path: Path, grid: Grid, other_path: Path, other: Grid) -> None:
    """Refuse `path` unless, by canonical axes, its voxels lie where those of `other_path` do."""
    if grid.canonical_shape != other.canonical_shape:
        raise CaseError.of(path, f"shape {grid.canonical_shape} differs from {other.canonical_shape} of {other_path}")
    corners = np.array(list(product(*((0, length) for length in grid.canonical_shape))))  # [8, 3]
    apart = nib.affines.apply_affine(grid.canonical_affine - other.canonical_affine, corners)
    if np.linalg.norm(apart, axis=1).max() > GRID_TOLERANCE_MM:
        raise CaseError.of(path, f"affine differs from that of {other_path}")


def _as_labels(path: Path, values: np.ndarray) -> np.ndarray:
    labels = np.rint(values)
    wrong = (np.abs(values - labels) > LABEL_TOLERANCE) | (labels < 0) | (labels > 2)
    if wrong.any():
        some = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:3])
        raise CaseError.of(path, f"labels other than 0, 1, 2 ({some})")
    return labels.astype(np.uint8)
