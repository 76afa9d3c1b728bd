"""A person's own scan, as it comes: what `wmh.read_images` refuses is repaired where it can be, with a note.

The T1 may be missing or lie on another grid, as the brain mask may; the skull may still be there; voxels may be NaN.
Arrays are canonical [Z, Y, X].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdlib.data.brain import MOST_DARK, dark_share, find_brain, has_dark_border, is_bright, plausibility
from pdlib.data.doubts import doubts
from pdlib.data.nifti import CaseError, Grid, as_mask, printable, read_array, same_grid
from pdlib.data.resample import mask_onto_grid, onto_grid
from pdlib.data.skull import extract_brain, shows_skull
from pdlib.data.wmh import Volume, normalise

LEAST_OVERLAP = 0.75  # of the brain in the other's field of view: one that misses a quarter is another examination's
WORTH_A_NOTE = 0.99  # of the brain: less in the T1's field of view is said
WHOLE_HEAD = 0.95  # of the FLAIR's head in the T1's field of view: then the T1's brain is the FLAIR's
MASK_HINT = "give --brain-mask FILE (NIfTI, nonzero is brain)"


@dataclass(frozen=True, eq=False)
class _Image:
    """An image on the FLAIR's grid, and on its own. covered: what of the FLAIR's grid lies in its field of view."""

    path: Path
    values: np.ndarray
    covered: np.ndarray
    own_values: np.ndarray
    own_grid: Grid
    notes: tuple[str, ...]


def read_scan(
    flair_path: Path | str,
    t1_path: Path | str | None,
    *,
    clip_percentiles: tuple[float, float],
    brain_mask_path: Path | str | None = None,
) -> Volume:
    """FLAIR and T1 on the FLAIR's grid, clipped and z-scored in the brain, zero outside; without a T1 its channel is 0.

    `Volume.notes` says what was repaired and what is doubtful. CaseError, naming the file, for what cannot be used.
    """
    flair = _read_image(Path(flair_path), "FLAIR")
    t1 = None if t1_path is None else _read_image(Path(t1_path), "T1", onto=flair)
    images = [flair] if t1 is None else [flair, t1]
    notes = tuple(note for one in images for note in one.notes)
    brain, found = _given(Path(brain_mask_path), flair) if brain_mask_path is not None else _found(flair, t1)
    if not brain.any():
        raise CaseError.of(brain_mask_path or flair.path, "empty brain (no voxel inside it)")
    notes += found + (("no T1 was given: the networks see the FLAIR alone",) if t1 is None else _fit(flair, t1, brain))
    image = np.zeros((2, *flair.values.shape), dtype=np.float32)  # [2, Z, Y, X]
    for channel, one in zip(image, images, strict=False):
        inside = brain & one.covered
        values = normalise(one.values[inside], clip_percentiles=clip_percentiles)
        if values is None:
            raise CaseError.of(one.path, f"no contrast inside the brain ({np.count_nonzero(inside)} voxels)")
        channel[inside] = values
    spacing_mm = flair.own_grid.spacing_mm
    notes += doubts(image, flair.values, brain, spacing_mm, has_t1=t1 is not None)
    return Volume(image, brain, None, None, spacing_mm, flair.own_grid, notes)


def _read_image(path: Path, role: str, onto: _Image | None = None) -> _Image:
    """Read an image, and bring it onto the grid of another. CaseError, naming the file, where it cannot be used."""
    values, grid = read_array(path, role, finite=False)
    notes, odd = (), ~np.isfinite(values)
    if odd.any():
        values[odd] = 0
        notes += (f"{np.count_nonzero(odd)} voxels of the {role} are NaN or infinite, and were taken for 0",)
    if values.min() == values.max():
        raise CaseError.of(path, f"no contrast (every voxel is {values.flat[0]:g})")
    if onto is None or same_grid(grid, onto.own_grid):
        if onto is not None and np.array_equal(values, onto.values):
            raise CaseError.of(path, f"the same image as the FLAIR, {printable(onto.path)}")
        return _Image(path, values, np.ones(values.shape, bool), values, grid, notes)
    resampled, covered = onto_grid(values, grid, onto.own_grid)
    if not covered.any():
        raise CaseError.of(path, f"does not overlap with the FLAIR, {printable(onto.path)}")
    notes += (
        f"the {role} was brought from its grid ({_about(grid)}) onto the FLAIR's ({_about(onto.own_grid)}) by the"
        " scanner's coordinates: it is not registered, so both should be of one session",
    )
    return _Image(path, resampled, covered, values, grid, notes)


def _given(path: Path, flair: _Image) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain mask of a file [Z, Y, X] bool on the FLAIR's grid, and notes on it."""
    values, grid = read_array(path, "brain mask")
    mask = as_mask(path, values)
    if same_grid(grid, flair.own_grid):
        return mask, plausibility(mask)
    brain = mask_onto_grid(mask, grid, flair.own_grid)
    before, after = (
        np.count_nonzero(one) * np.prod(on.spacing_mm) for one, on in ((mask, grid), (brain, flair.own_grid))
    )
    if after < LEAST_OVERLAP * before:
        raise CaseError.of(path, f"only {after / before:.0%} of it lie in the FLAIR, {printable(flair.path)}")
    note = f"the brain mask was brought from its grid ({_about(grid)}) onto the FLAIR's, by nearest neighbours"
    return brain, (note, *plausibility(brain))


def _found(flair: _Image, t1: _Image | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain [Z, Y, X] bool on the FLAIR's grid, without its skull, and notes on it. CaseError where none is told.

    Of a head it is the brain of a T1 without skull, or else what deepbet finds in the T1, which it was trained on; in
    the FLAIR where there is no T1 that shows as much of the head.
    """
    skull, source = shows_skull(flair.values, flair.own_grid.spacing_mm), flair
    if skull and t1 is not None and t1.covered[is_bright(flair.values)].mean() >= WHOLE_HEAD:
        source = t1
    own_skull = skull and (source is flair or shows_skull(source.own_values, source.own_grid.spacing_mm))
    try:
        if own_skull:
            brain, notes = extract_brain(source.own_values, source.own_grid), ()
        else:
            brain, notes = find_brain(source.own_values)
    except ValueError as error:
        shown = "it shows the skull: " if own_skull else ""
        raise CaseError.of(source.path, f"{shown}{error}; {MASK_HINT}") from None
    if not same_grid(source.own_grid, flair.own_grid):
        brain = mask_onto_grid(brain, source.own_grid, flair.own_grid)
    name = "FLAIR" if source is flair else "T1"
    if own_skull:
        notes += (f"the FLAIR shows the skull: deepbet found the brain in the {name}; look whether it is one",)
    elif skull:
        notes += (f"the FLAIR shows the skull: the brain is that of the {name}, which shows none",)
    return brain, notes


def _fit(flair: _Image, t1: _Image, brain: np.ndarray) -> tuple[str, ...]:
    """Notes on how the T1 lies on the FLAIR. CaseError, naming both, where it misses too much of the brain."""
    share = float(t1.covered[brain].mean())
    if share < LEAST_OVERLAP:
        raise CaseError.of(t1.path, f"shows only {share:.0%} of the brain in the FLAIR, {printable(flair.path)}")
    notes = ()
    if share < WORTH_A_NOTE:
        notes += (f"the T1 shows {share:.0%} of the brain; elsewhere it is taken for its mean",)
    if has_dark_border(t1.own_values) and dark_share(t1.values[brain & t1.covered]) > MOST_DARK:
        notes += ("much of the brain is dark on the T1: do FLAIR and T1 lie on each other?",)
    return notes


def _about(grid: Grid) -> str:
    """Voxels and their size, x by y by z."""
    shape, size = "x".join(map(str, grid.canonical_shape)), "x".join(f"{mm:.3g}" for mm in grid.spacing_mm[::-1])
    return f"{shape}, {size} mm"
