"""Heads from label maps: the tissues of a real anatomy at 1 mm, new lesions in its white matter, and another pose.

A label map (FreeSurfer's numbers, with skull and face) is a file that the user has; nothing of it is kept in the
repository. Arrays are [Z, Y, X] in RAS order. Lesions are those of the phantom (`phantom_lesions`), so that their sizes
follow the same law; `painting` gives a head its images, `write_case` writes it as a case in the challenge's layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import StrictFloat, StrictInt
from scipy import ndimage

from pdlib.data.nifti import CaseError, read_array
from pdlib.data.phantom_anatomy import TOUCHING, Anatomy, PhantomParameters, smooth_field
from pdlib.data.phantom_lesions import Lesions, lesion_sizes, place_lesions
from pdlib.data.recipe import Range, Recipe

MARGIN = 20  # voxels around the brain: room to turn it
CLOSE_MM = 5  # the brain's mask bridges sulci that wide
LEVEL_DEGREES = 4.0  # of the line from thalamus to caudate nucleus, over the horizon of axial slices
WHITE, CORTEX, INSULA, CINGULATE, SEPTUM = "white", "cortex", "insula", "cingulate", "septum"
CSF, VENTRICLES, PUTAMEN, CAUDATE, THALAMUS = "csf", "ventricles", "putamen", "caudate", "thalamus"
OUTER = "outer"  # what lies around the brain: brain extraction leaves some of it


class Tissue(Recipe):
    """A tissue: its numbers in the label maps, its levels, and the deviation of its texture, as a part of the level."""

    labels: tuple[StrictInt, ...]
    flair: Range
    t1: Range
    texture: StrictFloat


class NativeLesions(Recipe):
    """Lesions of the label maps themselves, and how often they count as lesions."""

    labels: tuple[StrictInt, ...]
    share: StrictFloat


class Insula(Recipe):
    """Cortex near the putamen."""

    from_putamen_mm: StrictFloat


class Cingulate(Recipe):
    """Cortex near the midline and the lateral ventricles."""

    from_midline_mm: StrictFloat
    from_ventricle_mm: StrictFloat


class Septum(Recipe):
    """What lies between the lateral ventricles, with these numbers, where the ways to both are together that short."""

    left: StrictInt
    right: StrictInt
    both_mm: StrictFloat


class Pose(Recipe):
    """How far a head is scaled, turned and smoothly deformed."""

    scale: Range
    rotation_degrees: StrictFloat
    warp_mm: StrictFloat
    warp_knots_mm: StrictFloat


class Look(Recipe):
    """How a head is painted: see configs/phantom_heads.yaml."""

    any: Range
    as_flair: StrictFloat
    cortex_field: StrictFloat
    white_field: StrictFloat
    field_knots_mm: StrictFloat
    fine_knots_mm: StrictFloat
    flair_lesion: Range
    t1_lesion: Range
    rim_flair: Range
    rim_mm: Range
    halo_gain: Range
    halo_mm: StrictFloat
    blur_mm: Range
    bias: StrictFloat
    bias_knots_mm: StrictFloat
    gamma: Range
    noise: Range
    stripped_mm: StrictFloat
    stripped_knots_mm: StrictFloat
    left_over_mm: Range
    left_over_from: StrictFloat


class HeadRecipe(Recipe):
    """All of configs/phantom_heads.yaml."""

    tissues: Mapping[str, Tissue]
    native_lesions: NativeLesions
    insula: Insula
    cingulate: Cingulate
    septum: Septum
    pose: Pose
    look: Look

    @cached_property
    def codes(self) -> dict[str, int]:
        """The number of each tissue in a `Head`; 0 is outside."""
        return {name: code for code, name in enumerate(self.tissues, start=1)}


class Head(NamedTuple):
    """A label map, cut to its brain, [Z, Y, X] at 1 mm.

    tissue: uint8, codes of `HeadRecipe.codes`; OUTER and 0 lie outside of the brain. native: bool, the map's own
    lesions. tilt: how far the head is tipped back, in radians, from the plane that axial slices are acquired in.
    """

    tissue: np.ndarray
    native: np.ndarray
    tilt: float


class Posed(NamedTuple):
    """A head in another pose with lesions of its own: tissue as a `Head`'s; brain: bool, the part that is brain."""

    tissue: np.ndarray
    brain: np.ndarray
    anatomy: Anatomy
    lesions: Lesions


def find_heads(folder: Path | str) -> list[Path]:
    """The label maps of a folder, sorted; CaseError where there are fewer than two."""
    found = sorted(path for path in Path(folder).glob("*.nii*") if path.is_file())
    if len(found) < 2:
        raise CaseError.of(folder, f"{len(found)} label maps (*.nii, *.nii.gz); two or more are needed")
    return found


def read_head(path: Path | str, recipe: HeadRecipe) -> Head:
    """A label map at 1 mm, cut to its brain, without new lesions. CaseError, naming the file, where it is none."""
    path = Path(path)
    labels, grid = read_array(path, "label map")
    if not np.allclose(grid.spacing_mm, 1, atol=0.05):
        raise CaseError.of(path, f"voxels of {grid.spacing_mm} mm; label maps of 1 mm are needed")
    codes = np.zeros(int(labels.max()) + 1, np.uint8)
    for name, code in recipe.codes.items():
        known = [label for label in recipe.tissues[name].labels if label < len(codes)]
        codes[known] = code
    tissue = codes[labels.astype(np.int32)]
    missing = [name for name in (WHITE, CORTEX, VENTRICLES) if not (tissue == recipe.codes[name]).any()]
    if missing:
        raise CaseError.of(path, f"no voxel of {missing[0]}: labels of FreeSurfer are needed")
    solid = (tissue > 0) & ~np.isin(tissue, [recipe.codes[CSF], recipe.codes[OUTER]])
    solid = ndimage.binary_opening(solid, TOUCHING)
    box = _box(solid)
    labels, tissue, solid = labels[box], tissue[box], solid[box]
    brain, outer = _filled(solid), tissue == recipe.codes[OUTER]
    tissue = np.where(brain & ((tissue == 0) | outer), recipe.codes[CSF], np.where(brain | outer, tissue, 0))
    tissue = _with_regions(tissue.astype(np.uint8), brain, recipe)
    tissue[_septum(labels, recipe.septum) & (tissue == recipe.codes[WHITE])] = recipe.codes[SEPTUM]
    return Head(tissue, np.isin(labels, recipe.native_lesions.labels), _tilt(tissue, recipe))


def posed_head(rng: np.random.Generator, head: Head, level: float, recipe: HeadRecipe, p: PhantomParameters) -> Posed:
    """A head in another pose, with lesions of its own.

    level: the rank, in [0, 1], of its lesion volume. p: the phantom's, whose laws the lesions follow.
    """
    coordinates = _pose(rng, head.tissue.shape, head.tilt, recipe.pose)

    def moved(values: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(values, coordinates, order=0, cval=0)

    tissue, native = moved(head.tissue), moved(head.native.astype(np.uint8)) > 0
    brain = (tissue > 0) & (tissue != recipe.codes[OUTER])
    anatomy = _anatomy(tissue, brain, recipe)
    lesions = place_lesions(rng, anatomy, lesion_sizes(rng, level, p), ndimage.binary_dilation(native, TOUCHING), p)
    if rng.random() < recipe.native_lesions.share:
        raters = tuple(drawn | native for drawn in lesions.raters)
        lesions = Lesions(lesions.reference | native, np.maximum(lesions.shown, native), raters)
    return Posed(tissue, brain, anatomy, lesions)


def _filled(solid: np.ndarray) -> np.ndarray:
    """The brain around its tissues [Z, Y, X] bool: sulci and ventricles closed."""
    near = ndimage.distance_transform_edt(~np.pad(solid, CLOSE_MM)) <= CLOSE_MM
    closed = ndimage.distance_transform_edt(near) > CLOSE_MM
    return ndimage.binary_fill_holes(closed[(slice(CLOSE_MM, -CLOSE_MM),) * 3] | solid)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    found = np.argwhere(mask)
    low, high = found.min(axis=0) - MARGIN, found.max(axis=0) + MARGIN + 1
    return tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))


def _tilt(tissue: np.ndarray, recipe: HeadRecipe) -> float:
    """The tilt of a `Head`, as its deep nuclei tell; 0 where they are missing."""
    places = [np.argwhere(tissue == recipe.codes[name]) for name in (THALAMUS, CAUDATE)]
    if not all(map(len, places)):
        return 0.0
    up, ahead, _ = places[1].mean(axis=0) - places[0].mean(axis=0)
    return float(np.arctan2(up, ahead) - np.deg2rad(LEVEL_DEGREES))


def _septum(labels: np.ndarray, p: Septum) -> np.ndarray:
    """Where the septum pellucidum and the fornix lie, which the maps call white matter: [Z, Y, X] bool."""
    sides = [labels == one for one in (p.left, p.right)]
    if not all(side.any() for side in sides):
        return np.zeros(labels.shape, bool)
    return sum(ndimage.distance_transform_edt(~side) for side in sides) <= p.both_mm


def _with_regions(tissue: np.ndarray, brain: np.ndarray, recipe: HeadRecipe) -> np.ndarray:
    """Insula and cingulate told from other cortex, whose FLAIR is less bright, by where they lie."""
    codes = recipe.codes
    cortex = tissue == codes[CORTEX]
    far_putamen = ndimage.distance_transform_edt(tissue != codes[PUTAMEN])
    far_ventricle = ndimage.distance_transform_edt(tissue != codes[VENTRICLES])
    middle = np.argwhere(brain)[:, 2].mean()
    far_middle = np.abs(np.arange(tissue.shape[2]) - middle)
    tissue = tissue.copy()
    tissue[cortex & (far_putamen <= recipe.insula.from_putamen_mm)] = codes[INSULA]
    near = (far_middle <= recipe.cingulate.from_midline_mm) & (far_ventricle <= recipe.cingulate.from_ventricle_mm)
    tissue[cortex & near] = codes[CINGULATE]
    return tissue


def _anatomy(tissue: np.ndarray, brain: np.ndarray, recipe: HeadRecipe) -> Anatomy:
    """What placing lesions needs to know of a head."""
    codes = recipe.codes
    white, ventricles = tissue == codes[WHITE], tissue == codes[VENTRICLES]
    csf = (tissue == codes[CSF]) | ventricles
    grey = brain & ~white & ~csf
    ventricle_mm = np.where(ventricles, -2, ndimage.distance_transform_edt(~ventricles)).astype(np.float32)
    open_ = ~grey & ((tissue != codes[CSF]) | (ventricle_mm < 4)) & brain
    cortex_mm = ndimage.distance_transform_edt(open_).astype(np.float32)
    return Anatomy(*(part.astype(np.float32) for part in (grey, white, csf)), ventricle_mm, cortex_mm)


def _pose(rng: np.random.Generator, shape: Sequence[int], tilt: float, p: Pose) -> np.ndarray:
    """Where each voxel of the new head, levelled and turned, lies in the old: [3, Z, Y, X] float32."""
    turn = np.array([[np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-p.rotation_degrees, p.rotation_degrees, 3))):
        i, j = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ step
    matrix = (turn / rng.uniform(*p.scale, 3)).astype(np.float32)
    centre = (np.array(shape, np.float32) - 1) / 2
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    coordinates = np.empty((3, *shape), np.float32)
    for axis in range(3):
        coordinates[axis] = p.warp_mm * smooth_field(rng, shape, p.warp_knots_mm) + centre[axis]
        for other in range(3):
            coordinates[axis] += matrix[axis, other] * (grid[other] - centre[other]).astype(np.float32)
    return coordinates
