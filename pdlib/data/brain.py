"""Where the brain is in a FLAIR image, how plausible that is, and whether FLAIR and T1 look like what they are called.

Nothing here knows a file: what cannot be told is a ValueError, what was assumed or looks odd is a note, one sentence.
"""

import numpy as np
from scipy import ndimage

BET_PERCENTILES = (2.0, 98.0)  # robust intensity range and the fraction of it where the
BET_FRACTION = 0.1  # head begins: Smith, Fast robust automated brain extraction, 2002, section 3.1
BACKGROUND_ROUNDING = 1e-4  # what resampling leaves of a constant background, in units of the image's range
DARKER_SHARE = 0.05  # of the image darker than its border: then the border is no dark background
MOST_OF_VOLUME = 0.9  # a brain in its tightest box takes half of it, a slab through its middle pi / 4
LEAST_OF_VOLUME = 0.01
MOST_DARK = 0.4  # of a brain, by BET's threshold: more is air inside the mask
ODD_BORDER = 0.1  # of the in-plane border inside the brain
ODD_OUTSIDE = 0.01  # of the lesion volume outside the brain
SAME_IMAGE = 0.99  # correlation of FLAIR and T1 in the brain; two contrasts of one brain have 0.5 to 0.75
BRAIN_LITRES = (0.6, 2.2)  # volumes of a whole brain without skull and scalp, for which the rule below was tried
RIM_MM, CORE_MM = 6.0, (12.0, 25.0)  # depths below the brain's surface: mostly cortex, mostly white matter
SWAPPED = -0.15  # T1 - FLAIR, in standard deviations, of the core over the rim; two real cases 0.28, 0.90

_IN_PLANE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=bool)


def find_brain(flair: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The brain [Z, Y, X] bool in a FLAIR image [Z, Y, X] of any scale, and notes.

    Where the image's border is its dark end, as in an image from the scanner or one with zeros around the brain, the
    brain is `brain_mask`. Where a good part of the image is darker than the border, as in one that was z-scored and
    then cut out, the brain is what differs from the border's constant value. Raises ValueError where neither holds,
    and for a result that can be no brain.
    """
    if has_dark_border(flair):
        brain, notes = brain_mask(flair, percentiles=BET_PERCENTILES, fraction=BET_FRACTION), ()
    else:
        with np.errstate(all="ignore"):
            border = _border(flair)
            background = np.median(border)
            apart = np.abs(flair - background)
            rounding = BACKGROUND_ROUNDING * np.percentile(apart[apart > 0], BET_PERCENTILES[1])
            differs = apart > rounding
        if np.mean(np.abs(border - background) <= rounding) < 0.5:
            raise ValueError("cannot tell the brain: the image's border is neither its dark end nor constant")
        brain = _largest_part(differs)
        if dark_share(flair[brain]) > MOST_DARK:
            raise ValueError(f"cannot tell the brain from the air around it (the border is {background:g}, air darker)")
        notes = (f"assumed that {background:g}, the value of the border, is background and all else is brain",)
    if brain.mean() > MOST_OF_VOLUME:
        raise ValueError(f"cannot tell the brain: {brain.mean():.0%} of the volume would be brain")
    return brain, notes + plausibility(brain)


def has_dark_border(image: np.ndarray) -> bool:
    """Whether the border of an image [Z, Y, X] is its dark end; else a good part of the image is darker."""
    with np.errstate(all="ignore"):
        background = np.median(_border(image))
        apart = np.abs(image - background)
        scale = np.percentile(apart[apart > 0], BET_PERCENTILES[1])
        darker = np.count_nonzero(image < background - BET_FRACTION * scale)
        return darker <= DARKER_SHARE * np.count_nonzero(apart > BACKGROUND_ROUNDING * scale)


def brain_mask(flair: np.ndarray, *, percentiles: tuple[float, float], fraction: float) -> np.ndarray:
    """The largest connected part above `fraction` of the robust range, in-plane holes filled. [Z, Y, X] -> bool.

    BET's threshold (Smith 2002): low + fraction * (high - low), where low and high are `percentiles` of the volume.
    """
    return _largest_part(is_bright(flair, percentiles=percentiles, fraction=fraction))


def is_bright(
    values: np.ndarray, *, percentiles: tuple[float, float] = BET_PERCENTILES, fraction: float = BET_FRACTION
) -> np.ndarray:
    """Which values lie above BET's threshold, bool: all but air, in an image whose border is dark."""
    low, high = np.percentile(values, percentiles)
    return values > low + fraction * (high - low)


def plausibility(brain: np.ndarray) -> tuple[str, ...]:
    """Notes on a brain [Z, Y, X] bool that is oddly large or small, or reaches the image's border."""
    share, at_border = brain.mean(), _border(brain).mean()
    notes = ()
    if share > MOST_OF_VOLUME or 0 < share < LEAST_OF_VOLUME:
        notes += (f"the brain is {share:.2%} of the volume",)
    if at_border > ODD_BORDER:
        notes += (f"the brain reaches the image's border ({at_border:.0%} of it)",)
    return notes


def contrast_notes(image: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    """Notes where FLAIR and T1 look like one image, or like each other. image [2, Z, Y, X] z-scored in the brain."""
    correlation = float(np.mean(image[0][brain] * image[1][brain], dtype=float))
    if correlation > SAME_IMAGE:
        return (f"FLAIR and T1 look like the same image (correlation {correlation:.3f})",)
    contrast = core_contrast(image, brain, spacing_mm)
    if contrast < SWAPPED:
        return (f"FLAIR and T1 look swapped (white matter is brighter than cortex on FLAIR, by {-contrast:.2f})",)
    return ()


def is_whole_brain(brain: np.ndarray, spacing_mm: tuple[float, float, float]) -> bool:
    """Whether a brain [Z, Y, X] bool has the volume of one, without skull and scalp."""
    return BRAIN_LITRES[0] <= volume_litres(brain, spacing_mm) <= BRAIN_LITRES[1]


def volume_litres(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """The volume of a mask [Z, Y, X] in litres."""
    return float(np.count_nonzero(mask) * np.prod(spacing_mm) / 1e6)


def core_contrast(image: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """T1 - FLAIR of the brain's core less that of its rim, in standard deviations; NaN where it means nothing.

    White matter, most of the core, is brighter than the cortex on T1 and darker on FLAIR; CSF is dark on both and left
    out, and the median keeps lesions out. So it is positive, and negative when the two are swapped. It means
    nothing in a head that still has skull and scalp, or in a part of a brain.
    """
    if not is_whole_brain(brain, spacing_mm):
        return float("nan")
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    inside = brain[box]
    depth = _depth_mm(inside, spacing_mm)
    flair, t1 = (channel[box][inside] for channel in image)
    tissue = flair + t1 > np.percentile(flair + t1, 25)
    core = tissue & (depth > CORE_MM[0]) & (depth < CORE_MM[1])
    rim = tissue & (depth < RIM_MM)
    if not core.any() or not rim.any():
        return float("nan")
    return float(np.median((t1 - flair)[core]) - np.median((t1 - flair)[rim]))


def _depth_mm(inside: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """How far each voxel of a mask [Z, Y, X] lies from the outside: [voxels of the mask].

    distance_transform_edt's own distances, but for the 48 bytes a voxel that it takes to get there.
    """
    how = {"sampling": spacing_mm, "return_distances": False, "return_indices": True}
    nearest = ndimage.distance_transform_edt(inside, **how)
    squares = np.zeros(inside.shape)
    for there, here, side in zip(nearest, np.ogrid[tuple(map(slice, inside.shape))], spacing_mm, strict=True):
        apart = np.subtract(there, here, dtype=float)
        apart *= side
        squares += np.square(apart, out=apart)
    return np.sqrt(squares, out=squares)[inside]


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected part, with its in-plane holes filled."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    if len(sizes) == 1:
        return np.zeros(mask.shape, dtype=bool)
    return ndimage.binary_fill_holes(parts == 1 + sizes[1:].argmax(), structure=_IN_PLANE)


def dark_share(values: np.ndarray) -> float:
    """The share of a brain's voxels [N] that BET's threshold takes for air."""
    return float(np.mean(~is_bright(values)))


def _border(volume: np.ndarray) -> np.ndarray:
    """The voxels of the four sides of every slice; the first and the last slice may hold brain."""
    sides = volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1]
    return np.concatenate([side.ravel() for side in sides])
