"""FLAIR and T1 painted on a head (`data.heads`): a level for each tissue, smooth fields, rims, halos and lesions.

As SynthSeg does it (Billot et al. 2023, Medical Image Analysis 86, 102789), but for the heads whose levels keep to
those of FLAIR and T1: a share of them that the recipe names. Arrays are [Z, Y, X] float32 at 1 mm.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pdlib.data.heads import CINGULATE, CORTEX, INSULA, WHITE, HeadRecipe, Posed
from pdlib.data.phantom_anatomy import smooth_field

T1_RIM = -0.4  # of a rim's or halo's gain on FLAIR, what T1 loses
COARSE = 2  # a halo is that smooth: it is blurred on every second voxel


@dataclass(frozen=True, eq=False)
class Painted:
    """Images of a head at 1 mm, white matter about 1, and the brain that brain extraction leaves of it."""

    flair: np.ndarray
    t1: np.ndarray
    brain: np.ndarray
    noise: float  # of the scanner, in units of white matter


def paint_head(rng: np.random.Generator, head: Posed, recipe: HeadRecipe) -> Painted:
    """Draw a look and paint a head with it, without the scanner's bias and noise."""
    look, shape, shown = recipe.look, head.tissue.shape, head.lesions.shown
    plain = rng.random() < look.as_flair
    white, grey = (np.isin(head.tissue, [recipe.codes[name] for name in names]) for names in _FIELDS)
    blur, gamma, halo = rng.uniform(*look.blur_mm), rng.uniform(*look.gamma), rng.uniform(*look.halo_gain)
    rim = rng.uniform(*look.rim_flair) * np.exp(
        -np.float32(1 / rng.uniform(*look.rim_mm)) * np.maximum(head.anatomy.ventricle_mm, 0)
    )
    rim *= np.clip(0.6 + 0.6 * smooth_field(rng, shape, look.field_knots_mm), 0, 1.5)
    beside = white * (rim + np.float32(halo) * _halo(shown, look.halo_mm))
    lesion = ndimage.gaussian_filter((shown > 0).astype(np.float32), blur, truncate=3)
    contrast = np.where(shown > 0, shown, 1)
    lesion_levels = {"flair": rng.uniform(*look.flair_lesion), "t1": rng.uniform(*look.t1_lesion)}
    channels = {}
    for name, gain in (("flair", 1.0), ("t1", T1_RIM)):
        ranges = [getattr(tissue, name) if plain else look.any for tissue in recipe.tissues.values()]
        levels = np.array([0, *(rng.uniform(*one) for one in ranges)], np.float32)
        levels /= levels[recipe.codes[WHITE]]
        textures = levels * np.array([0, *(tissue.texture for tissue in recipe.tissues.values())], np.float32)
        image = levels[head.tissue]
        image *= 1 + smooth_field(rng, shape, look.field_knots_mm) * (
            look.white_field * white + look.cortex_field * grey
        )
        image += textures[head.tissue] * smooth_field(rng, shape, look.fine_knots_mm)
        image += np.float32(gain) * beside
        image += lesion * (1 + np.float32(lesion_levels[name] - 1) * contrast - image)
        image = ndimage.gaussian_filter(image, blur, truncate=3)
        channels[name] = np.maximum(image, 0) ** np.float32(gamma)
    return Painted(**channels, brain=_stripped(rng, head.brain, recipe), noise=rng.uniform(*look.noise))


_FIELDS = ((WHITE,), (CORTEX, INSULA, CINGULATE))


def _halo(shown: np.ndarray, halo_mm: float) -> np.ndarray:
    """What lies around lesions, [Z, Y, X] float32."""
    coarse = ndimage.gaussian_filter(shown[::COARSE, ::COARSE, ::COARSE], halo_mm / COARSE)
    return np.kron(coarse, np.ones((COARSE,) * 3, np.float32))[tuple(slice(n) for n in shown.shape)]


def _stripped(rng: np.random.Generator, brain: np.ndarray, recipe: HeadRecipe) -> np.ndarray:
    """A brain mask whose edge is off here and there, and which holds some of what lies around the brain."""
    look = recipe.look
    inside = ndimage.distance_transform_edt(brain) - ndimage.distance_transform_edt(~brain)
    edge = look.stripped_mm * smooth_field(rng, brain.shape, look.stripped_knots_mm)
    patches = np.clip(smooth_field(rng, brain.shape, look.stripped_knots_mm) - look.left_over_from, 0, 1)
    return inside > edge - np.float32(rng.uniform(*look.left_over_mm)) * patches
