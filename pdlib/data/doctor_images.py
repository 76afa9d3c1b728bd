"""What is odd in the images of a case that could be read: its size, its lesions, its double, and orig/ beside pre/.

Images are those that networks see, z-scored in the brain, [Z, Y, X]. The limits were tried on 18 phantoms of three
sites and two patients, each sound, swapped, mirrored, copied and multiplied by smooth fields.
"""

import hashlib
from pathlib import Path

import numpy as np
from scipy import ndimage

from pdlib.data.brain import SWAPPED, core_contrast, volume_litres
from pdlib.data.doctor_headers import Odd
from pdlib.data.doctor_remedies import AGAIN, NOTE, WARNING
from pdlib.data.nifti import CaseError, printable, read_array, same_grid
from pdlib.data.wmh import Case, Volume

LITRES = (0.5, 7.0)  # of a brain or a head with its neck
WHOLE_LITRES = 0.6  # less is no whole brain, and says nothing about its lesions
LEAST_ML = 0.05  # of lesion: fewer voxels say nothing about its contrast
MOST_LESION = 0.2  # of the brain; real cases have up to 0.05
BRIGHTER = 0.4  # of lesions on FLAIR, median in deviations: 0.8 to 2.2; misplaced ones -0.7 to 1.0
CLEARLY = 0.3  # deviations between one reading of a case and another
CELLS = 24  # of a fingerprint, along each axis of the brain's box
DETAIL = 5  # cells, about: what is wider is every brain's
SAME_BRAIN = 0.9  # correlation of fingerprints: copies .88 to 1, two brains up to .75
SAME_SCAN = 0.85  # correlation in the brain; an image and its corrected self .97 to 1, FLAIR and T1 up to .75
SAME_LEVEL = 0.003  # spread of log(orig / pre) that rounding leaves
FLATTER = 0.01  # in entropy, of the corrected image
Prints = tuple[np.ndarray, ...]  # of FLAIR and T1
_AXES = ("bottom to top", "back to front", "left to right")


def size_oddities(volume: Volume) -> list[Odd]:
    """What is odd about the size of the head, or of the extracted brain."""
    if LITRES[0] <= (litres := volume_litres(volume.brain, volume.spacing_mm)) <= LITRES[1]:
        return []
    remedy = "compare the voxel size with the scanner's protocol, and look whether the image is whole"
    return [(WARNING, f"suspicious spacing: the head has {litres:.2g} litres by it", remedy)]


def mask_oddities(volume: Volume) -> list[Odd]:
    """What is odd about the mask of a case that was read, and about how its images and its mask go together."""
    lesion, brain = volume.mask == 1, np.count_nonzero(volume.brain)
    found = []
    if not lesion.any():
        what = "empty mask (no voxel is 1" + (", some are 2)" if volume.ignore.any() else ")")
        found.append((WARNING, what, "right for a patient without lesions; else export the mask again"))
    elif np.count_nonzero(lesion) > MOST_LESION * brain:
        share = np.count_nonzero(lesion) / brain
        remedy = "look whether it is a brain or tissue mask, or turned inside out"
        found.append((WARNING, f"the lesions are {share:.0%} as large as the brain", remedy))
    elif volume_litres(volume.brain, volume.spacing_mm) > WHOLE_LITRES and volume.lesion_ml > LEAST_ML:
        found += _lesion_contrast(volume, lesion)
    return found


def _lesion_contrast(volume: Volume, lesion: np.ndarray) -> list[Odd]:
    """Lesions are bright on FLAIR and, against that, dark on T1: whether mask, FLAIR and T1 say so of each other.

    As the mask lies, mirrored along each axis, and with FLAIR and T1 exchanged: the reading that fits best is named.
    Symmetry hides a mask that is mirrored left to right and lies over lesions all the same.
    """
    flair, t1 = volume.image

    def fit(mask: np.ndarray) -> float:
        return float(np.median(flair[mask]) - np.median(t1[mask]))

    fits = fit(lesion)
    mirrored = [fit(np.flip(lesion, axis)) for axis in range(3)]
    best = int(np.argmax(mirrored))
    contrast = core_contrast(volume.image, volume.brain, volume.spacing_mm)
    if contrast < SWAPPED:
        return []  # the reader has said so, by the white matter
    if np.isnan(contrast) and -fits > max(fits, *mirrored) + CLEARLY:  # a head with its skull
        what = f"FLAIR and T1 look swapped (lesions are brighter on the T1, by {-fits:.2f})"
        return [(WARNING, what, "look at both: if they are exchanged, exchange the two files")]
    if mirrored[best] > fits + CLEARLY:
        what = f"mirrored {_AXES[best]} the lesions would lie on brighter tissue (by {mirrored[best] - fits:.2f})"
        return [(WARNING, what, "lay the mask over the FLAIR; if it is mirrored, correct its header or its voxels")]
    if (bright := float(np.median(flair[lesion]))) < BRIGHTER:
        what = f"the lesions are hardly brighter than the brain on FLAIR ({bright:.2f} deviations)"
        return [(WARNING, what, "lay the mask over the FLAIR: it may be shifted or another patient's")]
    return []


class Doubles:
    """The cases seen so far, each by what its images and its mask hold, so that a copy is found under any name.

    A copy is found when it was scaled, given another type, corrected for bias, padded, mirrored or slightly resampled.
    Not found: a second scan of one patient, a warped or cropped copy, a copied T1 beside another patient's FLAIR.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Prints] = {}
        self._masks: dict[bytes, str] = {}

    def find(self, subject: str, volume: Volume) -> list[tuple[str, str]]:
        """(earlier subject, how it is the same): an image's double first, then the mask's. Remembers this one."""
        prints = tuple(fingerprint(channel, volume.brain) for channel in volume.image)
        mirrored = tuple(fingerprint(channel[..., ::-1], volume.brain[..., ::-1]) for channel in volume.image)
        mine = {"": prints, "mirrored, ": mirrored}
        found = [double for other, theirs in self._seen.items() if (double := _double(other, mine, theirs))]
        self._seen[subject] = prints
        lesion = volume.mask == 1
        if lesion.any():
            digest = hashlib.sha256(repr(lesion.shape).encode() + np.packbits(lesion).tobytes()).digest()
            other = self._masks.setdefault(digest, subject)
            if other != subject and other not in [one for one, _ in found]:
                found.append((other, "its mask is voxel for voxel that"))
        return found


def _double(other: str, mine: dict[str, Prints], theirs: Prints) -> tuple[str, str] | None:
    for how, prints in mine.items():
        for name, one, their in zip(("FLAIR", "T1"), prints, theirs, strict=True):
            if (same := float(np.vdot(one, their))) > SAME_BRAIN:
                return other, f"{how}its {name} looks like that (correlation {same:.3f})"
    return None


def fingerprint(channel: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """The detail of an image in the brain's box, [CELLS, CELLS, CELLS] float32 of norm 1 (or 0)."""
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    cells = channel[box]
    for axis in range(3):
        starts = np.arange(CELLS) * cells.shape[axis] // CELLS
        widths = np.maximum(np.diff(np.append(starts, cells.shape[axis])), 1)
        cells = np.add.reduceat(cells, starts, axis) / np.expand_dims(widths, tuple({0, 1, 2} - {axis}))
    cells = cells - ndimage.uniform_filter(cells, DETAIL)
    cells = (cells - cells.mean()).astype(np.float32)
    norm = np.linalg.norm(cells)
    return cells / norm if norm > 0 else cells


def orig_oddities(case: Case, volume: Volume) -> list[tuple[Path, Odd]]:
    """What the images in orig/ say about those in pre/, which should be the same ones, corrected for their bias.

    Told are: the same image in both, images of two scans, FLAIR and T1 exchanged in one of the folders, and the folders
    exchanged where FLAIR and T1 both say so: the corrected image has the sharper histogram (entropy of its log).
    Not told is a single file exchanged with its corrected self: of one image the entropy alone is no evidence.
    """
    found, sharper = [], []
    for name in ("FLAIR", "T1"):
        path, other = case.folder / "orig" / f"{name}.nii.gz", case.folder / "pre" / f"{name}.nii.gz"
        if not path.exists():
            continue
        try:
            orig, grid = read_array(path, f"orig {name}")
        except CaseError as error:
            what = str(error).removeprefix(f"{printable(path)}: ")
            found.append((path, (NOTE, f"cannot be compared with {name} in pre/: {what}", AGAIN)))
            continue
        if not same_grid(grid, volume.grid):
            what = f"lies on another grid than the {name} in pre/, so the two cannot be compared"
            found.append((path, (NOTE, what, "nothing: orig/ is not read by a run")))
            continue
        difference = _against_pre(name, other, orig, volume)
        found += [(other, difference)] if isinstance(difference, tuple) else []
        sharper += [difference] if isinstance(difference, float) else []
    if len(sharper) == 2 and max(sharper) < -FLATTER:
        what = f"pre/ and orig/ look exchanged (entropy {-sharper[0]:.3f} and {-sharper[1]:.3f} higher in pre/)"
        remedy = "look which is smoothly shaded, as by a coil: that is orig/; if it is pre/, exchange the folders"
        found.append((case.folder / "pre", (WARNING, what, remedy)))
    return found


def _against_pre(name: str, path: Path, orig: np.ndarray, volume: Volume) -> Odd | float | None:
    """What is odd about an image in pre/ [Z, Y, X] beside its original; or how much sharper pre/ is, in entropy."""
    channel = ("FLAIR", "T1").index(name)
    inside = orig[volume.brain]
    same, other = (_correlation(inside, volume.image[one][volume.brain]) for one in (channel, 1 - channel))
    if not same > SAME_SCAN:
        swapped = other > SAME_SCAN
        what = f"shows another image than the {name} in orig/ (correlation {same:.2f})"
        what += f", which is that of the {'T1' if channel == 0 else 'FLAIR'} in pre/" if swapped else ""
        return (
            WARNING,
            what,
            "look at pre/ and orig/: a file has another's name, or is another patient's",
        )
    pre = read_array(path, name)[0][volume.brain]
    tissue = (pre > np.percentile(pre, 25)) & (pre > 0) & (inside > 0)
    if not tissue.any():
        return None
    pre, inside = np.log(pre[tissue]), np.log(inside[tissue])
    if (inside - pre).std() < SAME_LEVEL:
        what = f"the same image as the {name} in orig/: one of the two is not what its folder says"
        return WARNING, what, "fetch both again: pre/ is orig/ corrected for its bias"
    return _entropy(inside) - _entropy(pre)


def _entropy(values: np.ndarray, bins: int = 128) -> float:
    """Differential entropy of values [N], by a histogram of all but the extremes."""
    low, high = np.percentile(values, (5, 99.5))
    if not high > low:
        return 0.0
    share = np.histogram(values, bins, (low, high))[0] / values.size
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum() + np.log((high - low) / bins))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        one, other = one - one.mean(), other - other.mean(dtype=float)
        scale = np.sqrt((one @ one) * (other @ other))
        return float(one @ other / scale) if scale > 0 else 0.0
