"""The phantom's lesions: their sizes, where they lie, how raters draw them and how FLAIR and T1 show them, at 1 mm."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from pdlib.data.phantom_anatomy import TOUCHING, Anatomy, PhantomParameters, smooth_field


class Lesions(NamedTuple):
    """Lesion maps [Z, Y, X] at 1 mm: the reference, what the image shows (contrast), and each extra rater's."""

    reference: np.ndarray
    shown: np.ndarray
    raters: tuple[np.ndarray, ...]


def quantile_draw(u: float, quantiles: Sequence[float]) -> float:
    """The value at level u in [0, 1] of a law given by equally spaced quantiles, interpolated in the logarithm."""
    return float(np.exp(np.interp(u, np.linspace(0, 1, len(quantiles)), np.log(quantiles))))


def lesion_sizes(rng: np.random.Generator, level: float, p: PhantomParameters) -> np.ndarray:
    """Sizes in mm3, largest first, of the lesions of a case whose volume has the rank `level` in [0, 1].

    Two-part log-normal. The small part is scaled down where it exceeds its expected share of the volume; the large part
    is scaled to make up the rest.
    """
    volume = 1000 * quantile_draw(level, p.case_volume_quantiles_ml)
    count = quantile_draw(np.clip(level + p.count_scatter * rng.standard_normal(), 0, 1), p.case_count_quantiles)
    n_large = max(1, round(p.large_weight * count))
    small = rng.lognormal(*p.small_log_mm3, max(1, round(count)) - n_large)
    large = rng.lognormal(*p.large_log_mm3, n_large)
    means = (mu + sigma**2 / 2 for mu, sigma in (p.small_log_mm3, p.large_log_mm3))
    part = np.array([1 - p.large_weight, p.large_weight]) * np.exp(list(means))
    small *= min(1, part[0] / part.sum() * volume / small.sum())
    large *= (volume - small.sum()) / large.sum()
    return np.sort(np.maximum(np.concatenate([small, large]).round(), 1).astype(int))[::-1]


def _best_voxels(score: np.ndarray, count: float) -> np.ndarray:
    """The `count` voxels of lowest finite score, as a mask of the score's shape; at least one."""
    count = min(max(round(count), 1), int(np.isfinite(score).sum()))
    chosen = np.zeros(score.size, bool)
    chosen[np.argpartition(score.ravel(), count - 1)[:count]] = True
    return chosen.reshape(score.shape)


def place_lesions(
    rng: np.random.Generator, anatomy: Anatomy, sizes: np.ndarray, blocked: np.ndarray, p: PhantomParameters
) -> Lesions:
    """Draw each lesion as the `size` best voxels of a blob score; the image shows a slightly larger or smaller
    version of it, each rater draws another one.

    Lesions beside the ventricles hug the wall (bands and caps), deep ones are ellipsoids. Reference lesions never touch
    each other. `blocked` [Z, Y, X] bool is closed to them.
    """
    shape = anatomy.wm.shape
    allowed = (anatomy.wm > 0.5) & (anatomy.cortex_mm > p.cortex_margin_mm) & (anatomy.ventricle_mm > 0) & ~blocked
    beside = np.flatnonzero(allowed & (anatomy.ventricle_mm < 1.5))
    deep = np.flatnonzero(allowed & (anatomy.ventricle_mm > 3.5))
    deep_weight = np.exp(-anatomy.ventricle_mm.ravel()[deep] / p.deep_decay_mm)
    deep_weight = np.cumsum(deep_weight, dtype=np.float64)
    noises = [smooth_field(rng, shape, p.boundary_knots_mm) for _ in range(1 + len(p.raters))]
    amounts = [p.boundary_noise, *(rater.boundary_noise for rater in p.raters)]
    reference = np.zeros(shape, bool)
    shown = np.zeros(shape, np.float32)
    drawn = tuple(np.zeros(shape, bool) for _ in p.raters)
    grown = np.zeros(shape, bool)
    large = np.exp(p.large_log_mm3[0])
    for size in sizes:
        chance = p.near_ventricle_large if size > large else p.near_ventricle_small
        near = rng.random() < chance
        radius = (3 * size / (4 * np.pi)) ** (1 / 3)
        for _ in range(30):
            if near:
                seed = beside[rng.integers(len(beside))]
            else:
                seed = deep[np.searchsorted(deep_weight, rng.random() * deep_weight[-1])]
            if not grown.flat[seed] and (near or anatomy.ventricle_mm.flat[seed] > radius + 2):
                break
        else:
            continue
        centre = np.unravel_index(seed, shape)
        half = int((2.6 if near else 1.9) * radius + 3)
        box = tuple(slice(max(c - half, 0), c + half + 1) for c in centre)
        offset = np.stack(
            np.meshgrid(
                *(np.arange(b.start, min(b.stop, n)) - c for b, n, c in zip(box, shape, centre, strict=True)),
                indexing="ij",
            )
        ).astype(np.float32)
        stretch = np.exp(rng.normal(0, 0.3, 3)).astype(np.float32)
        distance = np.sqrt(sum((offset[i] * stretch[i]) ** 2 for i in range(3))) / radius
        if near:
            distance = 0.55 * distance + np.abs(anatomy.ventricle_mm[box]) / (0.8 * radius + 0.5)
        distance[~allowed[box] | grown[box]] = np.inf

        scores = [distance + np.float32(a) * noise[box] for a, noise in zip(amounts, noises, strict=True)]
        mine = _best_voxels(scores[0], size)
        reference[box] |= mine
        contrast = max(1 + p.lesion_contrast_scatter * rng.standard_normal(), 0.3)
        seen = _best_voxels(scores[0], size * np.exp(p.image_log_size_jitter * rng.standard_normal()))
        np.maximum(shown[box], np.float32(contrast) * seen, out=shown[box])
        for rater, score, target in zip(p.raters, scores[1:], drawn, strict=True):
            factor = np.exp(rater.log_size_bias + rater.log_size_jitter * rng.standard_normal())
            theirs = _best_voxels(score, size * factor)
            if rng.random() > np.exp(-size / rater.missed_size_mm3):
                target[box] |= theirs
        grown[box] |= ndimage.binary_dilation(mine, TOUCHING)
    return Lesions(reference, shown, drawn)


def place_stroke(rng: np.random.Generator, anatomy: Anatomy, p: PhantomParameters) -> np.ndarray:
    """A stroke-like region [Z, Y, X] bool that crosses the cortex: the challenge's "other pathology", label 2."""
    tissue = anatomy.gm + anatomy.wm > 0.5
    seeds = np.flatnonzero((anatomy.gm > 0.5) & (anatomy.ventricle_mm > 12))
    centre = np.unravel_index(seeds[rng.integers(len(seeds))], tissue.shape)
    size = 1000 * rng.uniform(*p.stroke_ml)
    distance = 0.25 * smooth_field(rng, tissue.shape, p.patch_knots_mm)
    radius = (3 * size / (4 * np.pi)) ** (1 / 3)
    axes = np.ogrid[tuple(slice(n) for n in tissue.shape)]
    distance += np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))).astype(np.float32) / radius
    distance[~tissue] = np.inf
    return distance <= np.partition(distance.ravel(), int(size))[int(size)]


def paint(
    rng: np.random.Generator,
    anatomy: Anatomy,
    lesions: Lesions,
    stroke: np.ndarray,
    gm_flair_shift: float,
    flair_lesion: float,
    p: PhantomParameters,
) -> tuple[np.ndarray, np.ndarray]:
    """FLAIR and T1 [Z, Y, X] float32 at 1 mm without noise, white matter = 1: tissue, lesions, then distractors.

    The distractors are bright on FLAIR alone; a lesion is dark on T1 as well.
    """
    shape = anatomy.gm.shape
    gm, wm, csf, ventricle_mm, _ = anatomy
    texture = 1 + p.white_matter_texture * smooth_field(rng, shape, p.texture_knots_mm)
    flair = texture * (wm + (rng.uniform(*p.flair_gm) + gm_flair_shift) * gm) + rng.uniform(*p.flair_csf) * csf
    texture = 1 + 0.5 * p.white_matter_texture * smooth_field(rng, shape, p.texture_knots_mm)
    t1 = texture * (wm + rng.uniform(*p.t1_gm) * gm) + rng.uniform(*p.t1_csf) * csf

    def patches() -> np.ndarray:
        return np.clip(smooth_field(rng, shape, p.patch_knots_mm) - p.patch_threshold, 0, 1)

    alpha = ndimage.gaussian_filter(lesions.shown, p.edge_mm, truncate=3)
    halo = p.halo_gain * ndimage.gaussian_filter(lesions.shown, p.halo_mm, truncate=2)
    dirty = rng.uniform(*p.dirty_gain) * patches() * wm
    rim = np.exp(-np.maximum(ventricle_mm, 0) / rng.uniform(*p.rim_mm)) * np.clip(0.5 + patches() * 1.5, 0, 1)
    flair += (halo + dirty + rng.uniform(*p.rim_gain) * rim) * (wm + gm)
    flair += rng.uniform(*p.cortex_gain) * patches() * gm + rng.uniform(*p.flow_gain) * patches() * csf
    t1 -= p.dirty_t1_loss * (dirty + halo)
    flair += alpha * (flair_lesion - flair) * (wm + gm)
    t1 += alpha * (rng.uniform(*p.t1_lesion) - t1) * (wm + gm)
    if stroke.any():
        alpha = ndimage.gaussian_filter(stroke.astype(np.float32), p.edge_mm, truncate=3)
        flair += alpha * (rng.uniform(*p.stroke_flair) - flair)
        t1 += alpha * (rng.uniform(*p.stroke_t1) - t1)
    return flair, t1
