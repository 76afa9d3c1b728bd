"""The WMH challenge's scores of a volume, and Dice by class; the unit and the empty rule of each one in the open."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

LESION, OTHER_PATHOLOGY = 1, 2
IN_PLANE = np.ones((1, 3, 3), bool)
CONNECTED_26 = np.ones((3, 3, 3), bool)


def score_volume(reference: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Score one predicted volume against one reference, as the WMH challenge does (Kuijf et al. 2019).

    reference [Z, Y, X] holds the labels 0, 1 (lesion) and 2 (other pathology) in any bool, integer or float dtype;
    prediction [Z, Y, X] is lesion wherever it is not zero (so 0/1 and 0/255 score the same); spacing_mm is (z, y, x).
    Voxels of label 2 leave the prediction before anything is counted.

    Undefined scores are NaN, for the caller to count:

    ==================  ==========  =========  ===============  =============  ================  =========  ===========
    case                dice        jaccard    hd95 (mm,voxel)  lesion_recall  lesion_precision  lesion_f1  avd_percent
    ==================  ==========  =========  ===============  =============  ================  =========  ===========
    both empty          NaN         NaN        NaN              1              NaN               1          NaN
    reference empty     0           0          NaN              1              0                 0          NaN
    prediction empty    0           0          NaN              0              NaN               0          100
    ==================  ==========  =========  ===============  =============  ================  =========  ===========

    Lesion precision is NaN where nothing was predicted: there is no component whose correctness could be asked. HD95
    compares boundaries: a mask minus its erosion by the in-plane 3x3 square, where pixels outside the image count as
    mask; so it is NaN also for a mask that fills whole slices and has no boundary.

    ValueError: arrays of different or not three dimensions, labels beyond 0, 1, 2, a prediction that is not finite,
    negative or fractional (threshold probabilities first), a spacing that is not three positive finite numbers.
    """
    lesion, predicted, spacing = _checked(reference, prediction, spacing_mm)
    lesion, predicted = _crop(lesion, predicted)
    n_lesion, n_predicted = int(lesion.sum()), int(predicted.sum())
    n_both = int((lesion & predicted).sum())
    recall, precision, f1 = _lesion_detection(lesion, predicted)
    surfaces = _boundary(lesion), _boundary(predicted)
    return {
        "dice": _ratio(2 * n_both, n_lesion + n_predicted),
        "jaccard": _ratio(n_both, n_lesion + n_predicted - n_both),
        "hd95_mm": _hd95(*surfaces, spacing),
        "hd95_voxel": _hd95(*surfaces, np.ones(3)),
        "lesion_recall": recall,
        "lesion_precision": precision,
        "lesion_f1": f1,
        "avd_percent": 100 * _ratio(abs(n_lesion - n_predicted), n_lesion),
    }


def class_dice(mask: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Dice of the pixels of each class and image. Masks [..., H, W] in {0, 1} -> [...]; NaN where both are empty."""
    mask, reference = np.asarray(mask, bool), np.asarray(reference, bool)
    both, sizes = (mask & reference).sum((-2, -1)), mask.sum((-2, -1)) + reference.sum((-2, -1))
    return np.divide(2 * both, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)


def uncertainty(variance: ArrayLike, brain: ArrayLike) -> float:
    """Mean over brain [Z, Y, X] of the members' variance [Z, Y, X] (Fig. 3); NaN where there is no brain."""
    inside = _inside(variance, brain)
    return float(inside.mean()) if inside.size else np.nan


def relative_uncertainty(variance: ArrayLike, brain: ArrayLike, mask: ArrayLike) -> float:
    """Variance summed over the brain, divided by the lesion volume in voxels, all [Z, Y, X]; NaN where mask is empty.

    The mean over the brain grows with the lesion load; this one does not, so it compares subjects.
    """
    return _ratio(float(_inside(variance, brain).sum()), int(np.count_nonzero(mask)))


def predictive_entropy(mean: ArrayLike, brain: ArrayLike) -> float:
    """Mean over the brain of the entropy, in nats, of a lesion with probability mean [Z, Y, X]; NaN if no brain."""
    p = _inside(mean, brain)
    if p.size == 0:
        return np.nan
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("mean: a probability lies in [0, 1]")
    terms = np.zeros_like(p)
    for q in (p, 1 - p):
        terms -= q * np.log(q, where=q > 0, out=np.zeros_like(q))
    return float(terms.mean())


def _checked(reference: ArrayLike, prediction: ArrayLike, spacing_mm: Sequence[float]) -> tuple[NDArray, ...]:
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    for name, array in (("reference", reference), ("prediction", prediction)):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: holds {array.dtype}, not numbers")
        if array.ndim != 3:
            raise ValueError(f"{name}: shape {array.shape} is not three-dimensional [Z, Y, X]")
    if reference.shape != prediction.shape:
        raise ValueError(f"prediction: shape {prediction.shape} is not the reference's {reference.shape}")
    lesion, other = reference == LESION, reference == OTHER_PATHOLOGY
    if not (lesion | other | (reference == 0)).all():
        raise ValueError("reference: labels other than 0, 1 and 2")
    if prediction.dtype.kind == "f":
        if not np.isfinite(prediction).all():
            raise ValueError("prediction: holds NaN or infinity")
        if (prediction != np.trunc(prediction)).any():
            raise ValueError("prediction: fractional values, threshold it first")
    if prediction.dtype.kind != "b" and (prediction < 0).any():
        raise ValueError("prediction: negative values, threshold it first")
    try:
        spacing = np.asarray(spacing_mm, float)
    except (TypeError, ValueError):
        spacing = np.empty(0)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(f"spacing_mm: {spacing_mm} is not three positive numbers (z, y, x)")
    return lesion, (prediction != 0) & ~other, spacing


def _crop(lesion: NDArray, predicted: NDArray) -> tuple[NDArray, NDArray]:
    """Both masks in their common bounding box, widened by one voxel where the image goes on.

    The margin is what `_boundary` needs: background beside the box stays background, and the image's border a border.
    """
    boxes = ndimage.find_objects((lesion | predicted).astype(np.uint8))
    if not boxes:
        return lesion[:0], predicted[:0]
    box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in boxes[0])
    return lesion[box], predicted[box]


def _boundary(mask: NDArray) -> NDArray:
    """Voxel indices [N, 3] of mask minus its erosion by the 3x3 in-plane square; outside the image counts as mask."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask, IN_PLANE, border_value=1))


def _hd95(surface_a: NDArray, surface_b: NDArray, spacing: NDArray) -> float:
    """The larger of the two directed 95th percentiles (linear interpolation); NaN where a surface has no voxel."""
    if len(surface_a) == 0 or len(surface_b) == 0:
        return np.nan
    a, b = surface_a * spacing, surface_b * spacing
    return float(max(np.percentile(cKDTree(there).query(here)[0], 95) for here, there in ((a, b), (b, a))))


def _lesion_detection(lesion: NDArray, predicted: NDArray) -> tuple[float, float, float]:
    """Recall, precision and F1 over 26-connected components in 3D: one common voxel is a detection."""
    recall, precision = _touched(lesion, predicted), _touched(predicted, lesion)
    if np.isnan(recall):
        return 1.0, precision, 0.0 if predicted.any() else 1.0
    if np.isnan(precision):
        return recall, precision, 0.0
    return recall, precision, _ratio(2 * recall * precision, recall + precision, undefined=0.0)


def _touched(mask: NDArray, other: NDArray) -> float:
    """The fraction of mask's components with at least one voxel in other; NaN where mask is empty."""
    components, count = ndimage.label(mask, CONNECTED_26)
    return _ratio(np.count_nonzero(np.unique(components[other])), count)


def _ratio(numerator: float, denominator: float, undefined: float = np.nan) -> float:
    return float(numerator / denominator) if denominator else undefined


def _inside(values: ArrayLike, brain: ArrayLike) -> NDArray:
    values, brain = np.asarray(values, float), np.asarray(brain, bool)
    if values.shape != brain.shape:
        raise ValueError(f"brain: shape {brain.shape} is not the map's {values.shape}")
    return values[brain]
