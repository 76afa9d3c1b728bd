"""A simple head: an ellipsoid of a brain with ventricles and cortex, skull around it, scalp around that; [Z, Y, X]."""

import numpy as np

SEMI_MM = np.array([60.0, 85.0, 68.0])  # z, y, x: 1.45 litres


def head(
    spacing_mm=(4.0, 3.0, 3.0), *, flair: bool = True, skull: bool = True, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An image of a head, or without skull of an extracted brain, and the brain, bool. flair: or else a T1."""
    shape = np.rint(np.array([180.0, 240.0, 210.0]) / spacing_mm).astype(int)
    grid = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * size for n, size in zip(shape, spacing_mm, strict=True)), indexing="ij"
    )

    def within(grown_mm: float) -> np.ndarray:
        return sum((axis / (semi + grown_mm)) ** 2 for axis, semi in zip(grid, SEMI_MM, strict=True)) < 1

    folds = np.sin(grid[1] / 5) * np.sin(grid[2] / 5) * np.sin(grid[0] / 5) > 0.2
    levels = (1.1, 1.0, 0.2, 0.1, 0.6, 0.15) if flair else (0.65, 1.0, 0.2, 0.1, 1.3, 0.15)
    cortex, white, csf, bone, scalp, ventricle = levels
    image = np.zeros(shape)
    brain = within(0)
    if skull:
        image[within(16)] = scalp
        image[within(9)] = bone
        image[within(3)] = csf
    image[brain] = cortex
    image[brain & ~within(-4) & folds] = csf
    image[within(-7)] = white
    image[within(-45)] = ventricle
    noise = 0.03 * np.random.default_rng(seed).standard_normal((2, *shape))
    image = np.hypot(image + noise[0], noise[1]) * (brain | skull)
    return 300 * image, brain
