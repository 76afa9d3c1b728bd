"""What is odd in a NIfTI header: where it places the voxels, in which order, and how large it says they are.

Affines are [4, 4], stored voxel (i, j, k) -> mm. Only the header is read, so a file of any size takes a kilobyte.
"""

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np

from pdlib.data.doctor_remedies import HEADER, NOTE, ONTO_FLAIR, WARNING
from pdlib.data.nifti import GRID_TOLERANCE_MM, furthest_mm
from pdlib.paths import open_regular

VOXEL_MM = (0.2, 8.0)  # finer than any clinical FLAIR or T1; thicker than any slice with its gap
VIEW_MM = (80.0, 500.0)  # a brain is 110 to 190 mm wide, high and long; no head coil sees half a metre
SIZE_TOLERANCE = 0.01  # between the voxel size that is written and that of the affine
SQUARE = 0.01  # cosine between two axes at right angles, at most
_SILENT = logging.Logger("nibabel's repairs", level=logging.CRITICAL)

Odd = tuple[str, str, str]  # severity, what, remedy


def read_header(path: Path) -> nib.Nifti1Header | None:
    """The header of a NIfTI file, packed or not; None where there is none to be had: the reader says why."""
    try:
        with open_regular(path) as stream:
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            raw = (gzip.GzipFile(fileobj=stream) if packed else stream).read(nib.Nifti2Header.template_dtype.itemsize)
        for kind in (nib.Nifti1Header, nib.Nifti2Header):
            if kind.may_contain_header(raw):
                header = kind(raw[: kind.template_dtype.itemsize], check=False)
                header.check_fix(logger=_SILENT)
                return header if len(header.get_data_shape()) >= 3 else None
    except Exception:  # a damaged header leads nibabel, numpy and zlib to errors of many types
        return None
    return None


def header_oddities(header: nib.Nifti1Header) -> list[Odd]:
    """What is odd about one header by itself."""
    affine = _affine(header)
    return [*_forms(header), *(_sizes(header, affine) if affine is not None else ())]


def beside_the_flair(header: nib.Nifti1Header, flair: nib.Nifti1Header) -> list[Odd]:
    """How the header of another image or mask departs from the FLAIR's: stored axes, voxel sizes, turn, shift."""
    affine, other = _affine(header), _affine(flair)
    if affine is None or other is None:
        return []
    found, (code, flairs) = [], ("".join(nib.aff2axcodes(one)) for one in (affine, other))
    if code != flairs:
        found.append(
            (
                NOTE,
                f"its axes are stored as {code}, the FLAIR's as {flairs}: read right, but mirrored or turned in a"
                " program that ignores headers",
                "nothing, where the two lie on each other in a viewer; else " + HEADER,
            )
        )
    canonical = [_canonical(one, affine_) for one, affine_ in ((header, affine), (flair, other))]
    (shape, place), (flair_shape, flair_place) = canonical
    if shape == flair_shape and not furthest_mm(place, flair_place, shape) <= GRID_TOLERANCE_MM:
        found.append((WARNING, f"against the FLAIR it is {_departure(place, flair_place)}", ONTO_FLAIR))
    return found


def _forms(header: nib.Nifti1Header) -> list[Odd]:
    """Whether the two ways to say where the voxels lie agree; the reader takes the sform, other programs the qform."""
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not sform and not qform:
        what = "neither sform nor qform says where left, front and top are: taken as left to right is i falling"
        return [(WARNING, what, HEADER)]
    if not (sform and qform):
        return []
    first = header.get_sform()
    if not np.isfinite(first).all():
        return []  # the reader refuses it
    try:
        second = header.get_qform()
    except Exception:
        second = None
    if second is None or not np.isfinite(second).all():
        what = "the qform is impossible; the sform was read, other programs may read the qform"
        return [(WARNING, what, "copy the sform into the qform (fslorient -copysform2qform)")]
    apart = furthest_mm(first, second, header.get_data_shape()[:3])
    if apart <= GRID_TOLERANCE_MM:
        return []
    axes = ["".join(map(str, nib.aff2axcodes(one))) for one in (first, second)]
    how = f"the axes are {axes[0]} by one, {axes[1]} by the other" if axes[0] != axes[1] else f"up to {apart:.3g} mm"
    return [
        (
            WARNING,
            f"sform and qform disagree ({how}); the sform was read, other programs may read the qform",
            "look which is right (text in the image, a known side), then copy it over the other"
            " (fslorient -copysform2qform or -copyqform2sform)",
        )
    ]


def _sizes(header: nib.Nifti1Header, affine: np.ndarray) -> list[Odd]:
    sizes = nib.affines.voxel_sizes(affine)
    written = np.array(header.get_zooms()[:3], dtype=float)
    views = sizes * header.get_data_shape()[:3]
    found = []
    if not np.allclose(sizes, written, rtol=SIZE_TOLERANCE, atol=0):
        found.append(f"voxel sizes are {_by(written)} mm as written, {_by(sizes)} mm by the affine")
    if not all(VOXEL_MM[0] <= size <= VOXEL_MM[1] for size in sizes):
        found.append(f"suspicious spacing: voxels of {_by(sizes)} mm")
    elif not all(VIEW_MM[0] <= view <= VIEW_MM[1] for view in views):
        found.append(f"suspicious spacing: the image is {_by(views)} mm large, a head is not")
    unit = affine[:3, :3] / sizes
    cosines = np.abs(unit.T @ unit - np.eye(3)).max()
    if not cosines <= SQUARE:
        found.append(f"its axes are not at right angles (cosine {cosines:.2g})")
    return [(WARNING, what, HEADER) for what in found]


def _affine(header: nib.Nifti1Header) -> np.ndarray | None:
    """The affine that the reader takes; None where it takes none."""
    try:
        with np.errstate(all="ignore"):
            affine = header.get_best_affine()
            usable = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
            sizes = nib.affines.voxel_sizes(affine)
            return affine if usable and np.isfinite(sizes).all() and sizes.min() > 0 else None
    except Exception:  # an impossible quaternion, which the reader refuses
        return None


def _canonical(header: nib.Nifti1Header, affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    axes, shape = nib.io_orientation(affine), header.get_data_shape()[:3]
    turned = tuple(shape[axis] for axis in axes[:, 0].argsort())
    return turned, affine @ nib.orientations.inv_ornt_aff(axes, shape)


def _departure(affine: np.ndarray, other: np.ndarray) -> str:
    """How one grid lies against another of its shape: in one phrase, the first that is true."""
    sizes, others = nib.affines.voxel_sizes(affine), nib.affines.voxel_sizes(other)
    if not np.allclose(sizes, others, rtol=1e-3):
        return f"of other voxels, {_by(sizes)} mm instead of {_by(others)} mm"
    turn = (affine[:3, :3] / sizes) @ np.linalg.inv(other[:3, :3] / others)
    degrees = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    if degrees > 0.05:
        return f"turned by {degrees:.2g} degrees"
    return f"shifted by ({', '.join(f'{mm:.3g}' for mm in affine[:3, 3] - other[:3, 3])}) mm"


def _by(numbers: np.ndarray) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
