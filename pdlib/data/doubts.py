"""What is doubtful about a person's own FLAIR and T1: contrasts that are not theirs, noise, values out of range.

Each doubt is a note, one sentence. The limits lie between what two patients and three painted heads have, and what an
image of another kind has. Arrays are [Z, Y, X]; images are z-scored in the brain.
"""

import numpy as np

from pdlib.data.brain import contrast_notes, core_contrast, is_whole_brain

NEGATIVE_SHARE = 1e-3  # of the brain: a scanner's magnitude image has none
NOISY = 0.5  # noise over the spread of the brain; 0.06 to 0.20 in sound images, 1 in noise alone
DARKEST = 5  # percent of the brain in one contrast: CSF
BRIGHT_CSF = 0.0  # what these have in the other contrast, in deviations: -1.5 to -3; on a T2 above 1
T1_LIKE = 0.27  # of the core over the rim, in deviations: -0.24 to 0.22 on FLAIR, 0.32 to 0.80 on T1
_LAPLACIAN = np.sqrt(20)  # deviation of the in-plane Laplacian of unit noise
_MAD = 1.4826  # a normal deviation in median absolute ones


def doubts(
    image: np.ndarray, flair: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float], *, has_t1: bool
) -> tuple[str, ...]:
    """Notes on the images [2, Z, Y, X] that networks would see and the FLAIR as it was read."""
    notes = ()
    if (share := np.mean(flair[brain] < 0)) > NEGATIVE_SHARE:
        notes += (f"{share:.1%} of the brain is negative in the FLAIR, which no scanner's image is",)
    named = dict(zip(("FLAIR", "T1") if has_t1 else ("FLAIR",), image, strict=False))
    for name, channel in named.items():
        if (noise := noise_share(channel, brain)) > NOISY:
            notes += (f"low contrast in the {name}: noise is {noise:.0%} of the brain's spread",)
    if has_t1:
        return notes + contrast_notes(image, brain, spacing_mm) + _csf_notes(image, brain, spacing_mm)
    core = -core_contrast(np.stack([image[0], np.zeros_like(image[0])]), brain, spacing_mm)
    if core > T1_LIKE:
        notes += (f"the FLAIR looks like a T1 (white matter is brighter than cortex, by {core:.2f})",)
    return notes


def noise_share(channel: np.ndarray, brain: np.ndarray) -> float:
    """The noise of an image [Z, Y, X] in parts of its standard deviation in the brain; NaN in a brain of rims.

    The noise is a robust deviation of the in-plane Laplacian, for anatomy is smoother than noise.
    """
    inner = np.zeros_like(brain)
    inner[:, 1:-1, 1:-1] = (
        brain[:, 2:, 1:-1] & brain[:, :-2, 1:-1] & brain[:, 1:-1, 2:] & brain[:, 1:-1, :-2] & brain[:, 1:-1, 1:-1]
    )
    if not inner.any():
        return float("nan")
    z, y, x = np.nonzero(inner)
    around = channel[z, y - 1, x] + channel[z, y + 1, x] + channel[z, y, x - 1] + channel[z, y, x + 1]
    second = around - 4 * channel[z, y, x]
    noise = _MAD * np.median(np.abs(second - np.median(second))) / _LAPLACIAN
    return float(noise / channel[brain].std())


def _csf_notes(image: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    """CSF is dark on FLAIR and on T1: what is darkest on one should not be bright on the other."""
    if not is_whole_brain(brain, spacing_mm):
        return ()
    notes = ()
    for (dark_in, dark), (bright_in, other) in (
        (("T1", image[1]), ("FLAIR", image[0])),
        (("FLAIR", image[0]), ("T1", image[1])),
    ):
        fluid = brain & (dark <= np.percentile(dark[brain], DARKEST))
        if (level := np.median(other[fluid])) > BRIGHT_CSF:
            what = "CSF, dark on the T1, is bright" if dark_in == "T1" else "what is dark on the FLAIR is bright"
            notes += (f"{what} on the {bright_in} (by {level:.1f}): is it a T2 or a proton density image?",)
    return notes
