"""NIfTI files: read with every check, compare grids, write back on the grid that an image came from.

Arrays are [Z, Y, X], slices first, reoriented to the closest canonical (RAS+) axes; spacing_mm has the same order.
"""

import gzip
import io
import logging
import zlib
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from pdlib.memory import is_lack_of_memory
from pdlib.paths import open_regular, write_whole

MAX_VOXELS = 512**3  # a header that claims more is refused before its voxels are read
MAX_OFFSET_BYTES = 2**27  # room for header extensions
GRID_TOLERANCE_MM = 0.1  # two grids are one when no corner voxel is further apart than this
LABEL_TOLERANCE = 1e-4  # rounding of a header's scale factor, as in 255 * float32(1 / 255)
ZERO_TOLERANCE = 5e-7  # the same for a zero: 2 - 200 * float32(0.01) leaves 4e-8

_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])
_OTHER_UNITS = {1: "metres", 3: "micrometres"}  # NIfTI's codes; 2 is mm, 0 unknown and taken for mm
DICOM_SUFFIXES = {".dcm", ".ima"}
_SILENT = logging.Logger("nibabel's repairs", level=logging.CRITICAL)


class CaseError(ValueError):
    """Unusable input. The message is one line: the offending file's path, a colon, the cause."""

    @classmethod
    def of(cls, path: Path | str, cause: object) -> "CaseError":
        return cls(f"{printable(path)}: {printable(' '.join(str(cause).split()))}")


def printable(text: object) -> str:
    """The text in one line that any terminal, notebook or file takes: what cannot be shown is written as its code.

    A file name may hold line breaks, and bytes that are no UTF-8, which Python keeps as lone surrogates.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


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


def read_array(path: Path | str, role: str, *, finite: bool = True) -> tuple[np.ndarray, Grid]:
    """The voxels [Z, Y, X] float64 of a sound 3D file, and its grid.

    `role` says what the file is for, in the message about a missing one. finite: refuse NaN and Inf. Whatever goes
    wrong is a CaseError that names the file: a damaged header leads nibabel and numpy to errors of many types.
    """
    path = Path(path)
    try:
        if dicom := find_dicom(path):
            raise CaseError.of(path, f"DICOM; convert it first: dcm2niix -z y -o NEW_FOLDER {dicom.parent}")
        with open_regular(path) as stream:
            magic = stream.read(2)
            if not magic:
                raise CaseError.of(path, "empty file (0 bytes)")
            stream.seek(0)
            stored, header = _parse(path, gzip.GzipFile(fileobj=stream) if magic == b"\x1f\x8b" else stream)
        if finite and not np.isfinite(stored).all():
            raise CaseError.of(path, "holds NaN or Inf")
        return _on_its_grid(path, stored, header)
    except CaseError:
        raise
    except Exception as error:
        raise CaseError.of(path, _cause(error, role)) from None


def find_dicom(path: Path | str) -> Path | None:
    """The file where it is DICOM, and of a folder the first file, where that is; else None. OSError where unreadable.

    DICOM is known by its magic word, which stands behind a preamble, or by the suffixes that scanners give.
    """
    path = Path(path)
    if path.is_dir():
        path = min((one for one in path.iterdir() if one.is_file() and not one.name.startswith(".")), default=path)
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        magic = stream.read(132)[128:]
    return path if magic == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES else None


def same_grid(grid: Grid, other: Grid) -> bool:
    """Whether two grids have the same canonical shape, and their voxels lie in the same places."""
    return grid.canonical_shape == other.canonical_shape and _apart_mm(grid, other) <= GRID_TOLERANCE_MM


def read_description(path: Path | str) -> str:
    """A NIfTI header's description; empty where there is none, and for a file that cannot be read."""
    try:
        return nib.load(path).header["descrip"].item().decode(errors="replace")
    except (OSError, ValueError, KeyError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError):
        return ""


def write_volume(
    path: Path | str, array_zyx: np.ndarray, grid: Grid, dtype: np.dtype | type | str, description: str | None = None
) -> None:
    """Write a canonical [Z, Y, X] array as `dtype` on the grid it came from: axes, affine, form codes, voxel sizes.

    description: up to 79 ASCII characters for the header; None: the grid's own. The file appears whole or not at all.
    ValueError on a wrong shape; OSError names the file.
    """
    path, stored = Path(path), grid.to_stored(array_zyx)
    if stored.shape != grid.shape:
        raise ValueError(f"{path}: an array for stored shape {stored.shape} does not fit the grid {grid.shape}")
    header = grid.header.copy()
    header.set_data_dtype(dtype)
    header["cal_min"] = header["cal_max"] = header["vox_offset"] = 0
    if description is not None:
        header["descrip"] = description
    header.extensions.clear()
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    data = image_class(stored.astype(dtype), grid.affine, header).to_bytes()
    write_whole(path, gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)


def require_same_grid(path: Path, grid: Grid, other_path: Path, other: Grid) -> None:
    """Refuse `path` unless, by canonical axes, its voxels lie where those of `other_path` do."""
    if grid.canonical_shape != other.canonical_shape:
        raise CaseError.of(path, f"shape {grid.canonical_shape} differs from {other.canonical_shape} of {other_path}")
    if not _apart_mm(grid, other) <= GRID_TOLERANCE_MM:
        raise CaseError.of(path, f"affine differs from that of {other_path}")


def furthest_mm(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The largest distance between a corner of a grid of this shape under one affine [4, 4], and under the other."""
    corners = np.array(list(product(*((0, length) for length in shape))))  # [8, 3]
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(nib.affines.apply_affine(affine - other, corners), axis=1).max())


def _apart_mm(grid: Grid, other: Grid) -> float:
    return furthest_mm(grid.canonical_affine, other.canonical_affine, grid.canonical_shape)


def as_labels(path: Path, values: np.ndarray) -> np.ndarray:
    """Labels 0, 1 (lesion) and 2 (other pathology) as uint8; CaseError for anything else."""
    return _whole(path, values, "labels other than 0, 1, 2", most=2).astype(np.uint8)


def as_mask(path: Path, values: np.ndarray) -> np.ndarray:
    """Where a mask file is not zero, as bool; CaseError where it holds fractions or negative values."""
    return _whole(path, values, "not a mask, threshold it first: holds fractions or negative values") != 0


def _whole(path: Path, values: np.ndarray, fault: str, most: float = np.inf) -> np.ndarray:
    """The one check of every mask: whole numbers from 0 to `most`, but for the rounding of a header's scale factor."""
    whole = np.rint(values)
    wrong = np.abs(values - whole) > np.where(whole == 0, ZERO_TOLERANCE, LABEL_TOLERANCE)
    wrong |= (whole < 0) | (whole > most)
    if wrong.any():
        raise CaseError.of(path, f"{fault} ({', '.join(f'{value:g}' for value in np.unique(values[wrong])[:3])})")
    return whole


def _on_its_grid(path: Path, stored: np.ndarray, header: nib.Nifti1Header) -> tuple[np.ndarray, Grid]:
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise CaseError.of(path, "the affine is singular or not finite")
    grid = Grid(stored.shape, affine, header)
    if not all(0 < size < float("inf") for size in grid.spacing_mm):
        raise CaseError.of(path, f"voxel sizes {grid.spacing_mm} are not positive and finite")
    return grid.to_canonical(stored), grid


def _cause(error: Exception, role: str) -> str:
    match error:
        case _ if is_lack_of_memory(error):
            return "out of memory while it was read"
        case FileNotFoundError():
            return f"missing {role} (no such file)"
        case IsADirectoryError():
            return "is a folder, not a file"
        case EOFError():
            return "truncated gzip stream"
        case gzip.BadGzipFile() | zlib.error():
            return f"broken gzip stream ({error})"
        case OSError():
            return error.strerror or str(error)
        case nib.spatialimages.HeaderDataError():
            return f"not a readable NIfTI header ({error})"
        case _:
            return f"not a readable NIfTI file ({type(error).__name__}: {error})"


def _parse(path: Path, stream: BinaryIO) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Stored voxels and header of a NIfTI stream, packed or not, whatever the file's name says.

    Reads to the stream's end, past the voxels: only there does gzip compare its checksum.
    """
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
    held = io.BytesIO(raw)
    held.seek(0, io.SEEK_END)
    while held.tell() < claimed and (piece := stream.read(min(1 << 24, claimed - held.tell()))):
        held.write(piece)
    if held.tell() < claimed:
        raise CaseError.of(path, f"data end early: the header claims {claimed} bytes, the file holds {held.tell()}")
    while stream.read(1 << 20):
        pass
    held.seek(0)
    with np.errstate(all="ignore"):
        stored = header.data_from_fileobj(held).astype(np.float64)
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
    offset = float(header["vox_offset"])  # before check_fix, which makes it a whole number
    if not abs(offset) <= MAX_OFFSET_BYTES:
        return f"voxels begin at byte {offset:g}, not within the first {MAX_OFFSET_BYTES}"
    header.check_fix(logger=_SILENT)
    if header.get_data_offset() < header.single_vox_offset:
        return "the voxels are not in this file (the header of an .hdr and .img pair)"
    if header.get_data_dtype().kind not in "iuf":
        return f"voxels of type {header.get_value_label('datatype')} are not plain numbers"
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) % 8)
    if unit:
        return f"voxel sizes are in {unit}, not mm"
    return None
