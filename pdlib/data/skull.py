"""Whether a scan still shows the skull, and the brain of one that does.

A brain extraction that comes as a package with its weights, downloads nothing and is under a free licence is deepbet
(MIT; Fisch et al. 2024, deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks). On
seven heads painted from label maps, 1 x 1 x 3 mm, its Dice with the true brain is .93 to .97 on FLAIR as on T1, .955 on
average; BET in Python (brainextractor) has .71 and .56 on one of them. Of these heads, whole and in slabs, and of their
brains, cut out tightly or with CSF, `shows_skull` takes none for the other.

Arrays are [Z, Y, X]; spacing_mm is (z, y, x).
"""

import nibabel as nib
import numpy as np
from scipy import ndimage

from pdlib.data.brain import (
    BET_FRACTION,
    BET_PERCENTILES,
    BRAIN_LITRES,
    brain_mask,
    has_dark_border,
    is_whole_brain,
    volume_litres,
)
from pdlib.data.nifti import Grid

WIDEST_CM2 = 200.0  # of an axial slice: brains have 140 to 165, heads 250 to 280
RING_MM, CENTRE_MM = (6.0, 16.0), 25.0  # depths below the surface: in a head skull and the CSF beneath it; brain
DARK_RING = 0.75  # of the centre's brightness: in heads the darkest part of the ring has .3 to .5, in brains 1
WIDE_SHARE = 0.3  # of the slices, the widest, are judged


def shows_skull(image: np.ndarray, spacing_mm: tuple[float, float, float]) -> bool:
    """Whether an image [Z, Y, X] is of a head, not of an extracted brain. Two of three signs decide.

    The foreground is larger than a brain; its widest slice is wider; and below its surface lies a dark ring, the skull.
    A single sign misleads: a slab of a head is small, an atrophic brain with its CSF has a dark rim.
    """
    if not has_dark_border(image):
        return False  # cut out, then shifted
    inside = brain_mask(image, percentiles=BET_PERCENTILES, fraction=BET_FRACTION)
    if not inside.any():
        return False
    areas = inside.sum(axis=(1, 2)) * spacing_mm[1] * spacing_mm[2] / 100  # cm2
    litres = areas.sum() * spacing_mm[0] / 1e4
    widest = np.argsort(areas)[-max(1, round(WIDE_SHARE * np.count_nonzero(areas))) :]
    signs = (litres > BRAIN_LITRES[1], areas.max() > WIDEST_CM2, _ring(image[widest], inside[widest], spacing_mm[1:]))
    return sum(signs) >= 2


def extract_brain(image: np.ndarray, grid: Grid) -> np.ndarray:
    """The brain [Z, Y, X] bool of a head on its grid, by deepbet. ValueError where there is none, or no deepbet."""
    try:
        from deepbet.bet import BrainExtraction
    except ImportError:
        raise ValueError("the skull cannot be removed without the package deepbet (pip install deepbet)") from None
    scan = nib.Nifti1Image(image.transpose(2, 1, 0).astype(np.float32), grid.canonical_affine)
    try:
        mask = BrainExtraction(no_gpu=True).run(scan)[1]
    except (AssertionError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"deepbet finds no brain ({' '.join(str(error).split())[:200]})") from None
    brain = np.asarray(mask.dataobj).transpose(2, 1, 0) > 0
    if not is_whole_brain(brain, grid.spacing_mm):
        litres, (low, high) = volume_litres(brain, grid.spacing_mm), BRAIN_LITRES
        raise ValueError(f"what deepbet takes for brain has {litres:.2f} litres, a whole brain {low} to {high}")
    return brain


def _ring(slices: np.ndarray, inside: np.ndarray, spacing_mm: tuple[float, float]) -> bool:
    """Whether a ring below the surface is darker than the centre. slices and inside (what is not air) [N, Y, X]."""
    framed = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
    depth = np.stack([ndimage.distance_transform_edt(one, sampling=spacing_mm) for one in framed])[:, 1:-1, 1:-1]
    centre = slices[depth > CENTRE_MM]
    if not centre.size:
        return False
    edges = np.arange(*RING_MM, 2.0)
    layers = [slices[(depth > start) & (depth <= start + 2.0)] for start in edges]
    floor = np.percentile(slices, BET_PERCENTILES[0])
    level = min(np.median(layer) for layer in layers if layer.size) - floor
    return bool(level < DARK_RING * (np.median(centre) - floor))
