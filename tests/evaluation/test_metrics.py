"""The challenge's scores against volumes worked by hand and against oracles that share no code with ours."""

import itertools

import numpy as np
import pytest

from pdlib.evaluation.metrics import class_dice, predictive_entropy, relative_uncertainty, score_volume, uncertainty

MM = (3.0, 0.96, 0.95)


def volume(shape, *boxes):
    array = np.zeros(shape, np.uint8)
    for box in boxes:
        array[tuple(slice(*side) if isinstance(side, tuple) else side for side in box)] = 1
    return array


def blobs(rng, shape, density):
    """Clumps of irregular shape, some of them at the border."""
    seeds = rng.random(shape) < density
    for axis in range(3):
        seeds |= np.roll(seeds, 1, axis) & (rng.random(shape) < 0.7)
    return seeds


def flood_fill_components(mask):
    todo, components = {tuple(p) for p in np.argwhere(mask)}, []
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
    while todo:
        edge, component = [todo.pop()], set()
        while edge:
            here = edge.pop()
            component.add(here)
            for step in steps:
                there = tuple(np.add(here, step))
                if there in todo:
                    todo.remove(there)
                    edge.append(there)
        components.append(component)
    return components


def all_pairs_hd95(a, b, spacing):
    """HD95 by its definition: boundary voxel by voxel, distances of all pairs."""

    def boundary(mask):
        return np.array([p for p in np.argwhere(mask) if has_background_in_plane(mask, p)]) * spacing

    def has_background_in_plane(mask, p):
        z, y, x = p
        return not mask[z, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].all()

    distances = np.linalg.norm(boundary(a)[:, None] - boundary(b)[None], axis=2)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def test_by_hand():
    """Reference: a 1x4x4 lesion and a single voxel; prediction: the lesion moved by two columns. In-plane 1 x 2 mm."""
    reference = volume((3, 12, 12), (1, (2, 6), (2, 6)), (1, 10, 10))
    prediction = volume((3, 12, 12), (1, (2, 6), (4, 8)))
    scores = score_volume(reference, prediction, (3, 1, 2))
    assert scores["dice"] == pytest.approx(2 * 8 / (17 + 16))
    assert scores["jaccard"] == pytest.approx(8 / 25)
    assert (scores["lesion_recall"], scores["lesion_precision"]) == (0.5, 1.0)
    assert scores["lesion_f1"] == pytest.approx(2 / 3)
    assert scores["avd_percent"] == pytest.approx(100 / 17)
    # Of the reference's 13 boundary voxels the single one is the farthest (rank 12 of 0..12) and the lesion's left edge
    # is two columns off (ranks 8..11); the 95 % quantile stands at rank 11.4. The other direction ends at two columns.
    far = np.hypot(5, 6)
    assert scores["hd95_mm"] == pytest.approx(4 + 0.4 * (far - 4))
    assert scores["hd95_voxel"] == pytest.approx(2 + 0.4 * (np.hypot(5, 3) - 2))


@pytest.mark.parametrize("seed", range(6))
def test_against_oracles(seed):
    rng = np.random.default_rng(seed)
    reference, prediction = blobs(rng, (6, 17, 13), 0.03), blobs(rng, (6, 17, 13), 0.03)
    scores = score_volume(reference, prediction, MM)
    assert scores["hd95_mm"] == pytest.approx(all_pairs_hd95(reference, prediction, MM))
    assert scores["hd95_voxel"] == pytest.approx(all_pairs_hd95(reference, prediction, (1, 1, 1)))
    recalled = [any(prediction[p] for p in c) for c in flood_fill_components(reference)]
    right = [any(reference[p] for p in c) for c in flood_fill_components(prediction)]
    recall, precision = np.mean(recalled), np.mean(right)
    assert scores["lesion_recall"] == pytest.approx(recall)
    assert scores["lesion_precision"] == pytest.approx(precision)
    assert scores["lesion_f1"] == pytest.approx(2 * recall * precision / (recall + precision))
    # Jaccard from its textbook relation to Dice
    assert scores["jaccard"] == pytest.approx(scores["dice"] / (2 - scores["dice"]))


def test_overlap_against_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(7)
    reference, prediction = blobs(rng, (6, 17, 13), 0.05), blobs(rng, (6, 17, 13), 0.05)
    scores = score_volume(reference, prediction, MM)
    a, b = (torch.as_tensor(m[None, None]) for m in (prediction, reference))
    assert scores["dice"] == pytest.approx(float(monai.compute_dice(a, b)), rel=1e-6)
    assert scores["jaccard"] == pytest.approx(float(monai.compute_iou(a, b)), rel=1e-6)


def test_hd95_against_monai_on_one_slice():
    """In one plane a convex lesion has the same boundary under MONAI's definition, whose spacing we then share."""
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    reference, prediction = volume((1, 30, 30), (0, (5, 12), (6, 17))), volume((1, 30, 30), (0, (8, 20), (9, 15)))
    theirs = monai.compute_hausdorff_distance(
        torch.as_tensor(prediction[None]), torch.as_tensor(reference[None]), True, percentile=95, spacing=[0.96, 0.95]
    )
    assert score_volume(reference, prediction, MM)["hd95_mm"] == pytest.approx(float(theirs), rel=1e-6)


def test_anisotropic_spacing_follows_z_first():
    reference, prediction = volume((8, 9, 9), (2, 4, 4)), volume((8, 9, 9), (5, 4, 4))
    scores = score_volume(reference, prediction, (3, 0.5, 0.25))
    assert (scores["hd95_mm"], scores["hd95_voxel"]) == (9.0, 3.0)


def test_position_in_the_image_does_not_matter_but_its_border_does():
    """The inner scores must not change with an empty frame; a lesion cut by the border has no boundary there."""
    rng = np.random.default_rng(1)
    reference, prediction = blobs(rng, (4, 9, 9), 0.05), blobs(rng, (4, 9, 9), 0.05)
    framed = [np.pad(m, 3) for m in (reference, prediction)]
    assert score_volume(*framed, MM) == pytest.approx(score_volume(*(np.pad(m, 5) for m in framed), MM))
    filled, left_half = np.ones((1, 6, 6)), volume((1, 6, 6), (0, (0, 6), (0, 3)))
    assert np.isnan(score_volume(filled, left_half, MM)["hd95_mm"])
    right_column = volume((1, 6, 6), (0, (0, 6), 5))
    assert score_volume(left_half, right_column, (1, 1, 1))["hd95_voxel"] == 3.0  # from column 2, the only boundary


EMPTY, FULL = np.zeros((3, 5, 5)), volume((3, 5, 5), (1, (1, 4), (1, 4)))
NAN = np.nan
KEYS = "dice jaccard hd95_mm hd95_voxel lesion_recall lesion_precision lesion_f1 avd_percent".split()


@pytest.mark.parametrize(
    "reference, prediction, expected",
    [
        (EMPTY, EMPTY, (NAN, NAN, NAN, NAN, 1, NAN, 1, NAN)),
        (EMPTY, FULL, (0, 0, NAN, NAN, 1, 0, 0, NAN)),
        (FULL, EMPTY, (0, 0, NAN, NAN, 0, NAN, 0, 100)),
        (FULL, FULL, (1, 1, 0, 0, 1, 1, 1, 0)),
        (2 * FULL, FULL, (NAN, NAN, NAN, NAN, 1, NAN, 1, NAN)),
    ],
)
def test_empty_cases(reference, prediction, expected):
    scores = score_volume(reference, prediction, (5, 1, 1))
    assert list(scores) == KEYS
    np.testing.assert_array_equal(list(scores.values()), expected)


def test_label_2_leaves_the_prediction_and_nothing_else():
    reference = volume((3, 9, 9), (1, (1, 4), (1, 4)))
    reference[1, 6:8, 6:8] = 2
    prediction = volume((3, 9, 9), (1, (1, 4), (1, 4)), (1, (6, 8), (6, 8)))
    assert score_volume(reference, prediction, MM) == score_volume(reference == 1, reference == 1, MM)
    assert score_volume(reference == 1, prediction, MM)["lesion_precision"] == 0.5


@pytest.mark.parametrize("reference_type", [bool, np.uint8, np.int16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("prediction_type", [bool, np.uint8, np.int32, np.float32])
def test_no_dtype_changes_a_score(reference_type, prediction_type):
    """The challenge's own script goes wrong for an integer reference and loses a prediction of 0/255."""
    rng = np.random.default_rng(3)
    reference, prediction = blobs(rng, (4, 9, 9), 0.05), blobs(rng, (4, 9, 9), 0.05)
    expected = score_volume(reference, prediction, MM)
    ink = 1 if prediction_type is bool else 255
    assert score_volume(reference.astype(reference_type), prediction.astype(prediction_type) * ink, MM) == expected


GOOD = np.zeros((2, 3, 3))


@pytest.mark.parametrize(
    "reference, prediction, spacing, message",
    [
        (GOOD, np.zeros((2, 3, 4)), MM, r"prediction: shape \(2, 3, 4\)"),
        (GOOD[0], GOOD[0], MM, "reference: .* not three-dimensional"),
        (GOOD + 3, GOOD, MM, "reference: labels"),
        (GOOD + 0.5, GOOD, MM, "reference: labels"),
        (GOOD + NAN, GOOD, MM, "reference: labels"),
        (GOOD, GOOD + NAN, MM, "prediction: holds NaN"),
        (GOOD, GOOD + 0.3, MM, "prediction: .* threshold"),
        (GOOD, GOOD - 2, MM, "prediction: negative"),
        (GOOD.astype(str), GOOD, MM, "reference: holds"),
        (GOOD, GOOD, (1, 1), "spacing_mm"),
        (GOOD, GOOD, (1, 0, 1), "spacing_mm"),
        (GOOD, GOOD, (1, NAN, 1), "spacing_mm"),
        (GOOD, GOOD, None, "spacing_mm"),
    ],
)
def test_bad_input_is_named(reference, prediction, spacing, message):
    with pytest.raises(ValueError, match=message):
        score_volume(reference, prediction, spacing)


def test_uncertainty_and_entropy():
    brain = volume((1, 2, 2), (0, 0, (0, 2))).astype(bool)
    values = np.array([[[0.1, 0.3], [9.0, 9.0]]])
    assert uncertainty(values, brain) == pytest.approx(0.2)
    assert relative_uncertainty(values, brain, [[[1, 1], [1, 1]]]) == pytest.approx(0.1)
    assert np.isnan(relative_uncertainty(values, brain, np.zeros((1, 2, 2))))
    assert predictive_entropy(np.array([[[0.5, 1.0], [0.0, 7.0]]]), brain) == pytest.approx(np.log(2) / 2)
    assert np.isnan(uncertainty(values, brain & False))
    with pytest.raises(ValueError, match="brain: shape"):
        uncertainty(values, brain[0])


def test_dice_of_each_class():
    """Half found, nothing found, found where nothing is, and nothing on either side."""
    mask = volume((2, 2, 2, 2), (0, 0, 0), (1, 0))
    reference = volume((2, 2, 2, 2), (0, 0, (0, 2), 0), (0, 1, 1))
    np.testing.assert_array_equal(class_dice(mask, reference), [[0.5, 0], [0, np.nan]])
