"""The fundus phantom: the same bits from the same seed, raters who disagree like people, no cheap win."""

import copy
from itertools import combinations

import numpy as np
import pytest
import yaml

from pdlib.data import fundus
from pdlib.paths import CONFIGS

RECIPE = yaml.safe_load((CONFIGS / "phantom_fundus.yaml").read_text(encoding="utf-8"))
SIZE = 64


@pytest.fixture(scope="module")
def cases():
    return fundus.fundus_phantom(cases=12, size=SIZE, seed=5, parameters=RECIPE)


@pytest.fixture(scope="module")
def raters(cases):
    return np.stack([case.raters for case in cases]).astype(bool)  # [N, R, 2, H, W]


@pytest.fixture(scope="module")
def reference(cases):
    return np.stack([case.reference for case in cases]).astype(bool)  # [N, 2, H, W]


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def size_difference(a, b):
    """The part of 1 - Dice that the areas alone explain; the rest is a difference in shape."""
    areas = np.count_nonzero(a), np.count_nonzero(b)
    return abs(areas[0] - areas[1]) / sum(areas)


def test_bits_do_not_depend_on_the_number_of_cases(cases):
    for ours, theirs in zip(fundus.fundus_phantom(cases=2, size=SIZE, seed=5, parameters=RECIPE), cases, strict=False):
        assert ours.subject == theirs.subject
        np.testing.assert_array_equal(ours.photograph, theirs.photograph)
        np.testing.assert_array_equal(ours.raters, theirs.raters)
    (other,) = fundus.fundus_phantom(cases=1, size=SIZE, seed=6, parameters=RECIPE)
    assert not np.array_equal(other.photograph, cases[0].photograph)
    assert len({case.photograph.tobytes() for case in cases}) == len({case.subject for case in cases}) == 12


def test_shapes_and_normalisation(cases):
    for case in cases:
        assert case.photograph.shape == case.image.shape == (3, SIZE, SIZE)
        assert case.raters.shape == (6, 2, SIZE, SIZE) and case.reference.shape == (2, SIZE, SIZE)
        assert (case.photograph.dtype, case.raters.dtype, case.reference.dtype) == (np.uint8,) * 3
        assert case.image.dtype == np.float32
        np.testing.assert_allclose(case.image.mean((1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(case.image.std((1, 2)), 1, atol=1e-5)


def test_every_cup_lies_in_its_disc(raters, reference):
    for masks in (raters, reference[:, None]):
        disc, cup = masks[:, :, 0], masks[:, :, 1]
        assert not (cup & ~disc).any()
        assert cup.any((2, 3)).all() and (disc & ~cup).any((2, 3)).all()
        assert not disc[..., [0, -1], :].any() and not disc[..., [0, -1]].any()


def test_a_large_cup_is_cut_at_the_disc():
    large = copy.deepcopy(RECIPE)
    large["cup_ratio"] = {"mean": 1.5, "sd": 0.0, "low": 0.0, "high": 2.0}
    (case,) = fundus.fundus_phantom(cases=1, size=SIZE, seed=5, parameters=large)
    np.testing.assert_array_equal(case.raters[:, 1], case.raters[:, 0])


def test_the_majority_leaves_ties_outside():
    votes = np.arange(7)[None, :] > np.arange(6)[:, None]  # rater r sets the pixels r + 1 to 6: pixel k has k votes
    found = fundus.majority(votes[:, None].astype(np.uint8))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(fundus.majority(votes[:3].astype(np.uint8)), [0, 0, 1, 1, 1, 1, 1])


def test_discs_and_cups_have_human_proportions(reference):
    high, wide = reference.any(3).sum(2), reference.any(2).sum(2)  # [N, 2]
    assert 1 / 3 - 0.03 < wide[:, 0].min() / SIZE and wide[:, 0].max() / SIZE < 1 / 2 + 0.03
    ratio = high[:, 1] / high[:, 0]
    assert 0.36 < ratio.mean() < 0.54 and 0.1 < ratio.std() < 0.2
    assert 0.1 < ratio.min() and ratio.max() < 0.95


# Of raters whose biases or whose noise were half or twice as large, one number at least would leave its range.
@pytest.mark.parametrize(
    ("structure", "agreement", "shape", "bias"),
    [(0, (0.94, 0.96), (0.008, 0.017), (0.017, 0.034)), (1, (0.82, 0.88), (0.022, 0.046), (0.058, 0.115))],
    ids=["disc", "cup"],
)
def test_raters_disagree_like_people(raters, structure, agreement, shape, bias):
    drawn = raters[:, :, structure]
    pairs = [(case[i], case[j]) for case in drawn for i, j in combinations(range(6), 2)]
    mean_dice = np.mean([dice(*pair) for pair in pairs])
    assert agreement[0] < mean_dice < agreement[1]
    assert shape[0] < 1 - mean_dice - np.mean([size_difference(*pair) for pair in pairs]) < shape[1]
    log_radius = np.log(drawn.sum((2, 3))) / 2
    assert bias[0] < (log_radius - log_radius.mean(1, keepdims=True)).mean(0).std() < bias[1]


def test_raters_scatter_where_the_edge_is_blurred():
    """In the contour's own terms, and in the photograph: along the cup's edge, softer means flatter."""
    clear = {"vessels_per_side": 0, "texture": 0.0, "noise": 0.0, "crescent_chance": 0.0, "ambiguity": 0.6}
    p = fundus.FundusParameters.from_mapping({**RECIPE, **clear})
    middle = (np.arange(128) + 0.5) / 128 - 0.5
    x, y = np.meshgrid(middle, middle)
    scatter, flatness = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        disc, cup = fundus.disc_and_cup(rng, x, y, p)
        votes = fundus.draw_raters(rng, disc, cup, p)[:, 1].mean(0)
        edge = (abs(cup.level - 1) < 0.25) & (disc.level < 0.8)
        scatter.append(np.corrcoef(cup.softness[edge], (votes * (1 - votes))[edge])[0, 1])
        slope = np.hypot(*np.gradient(fundus.paint(rng, disc, cup, x, y, p)[2]))
        flatness.append(np.corrcoef(np.log(cup.softness[edge]), -slope[edge])[0, 1])
    assert np.mean(scatter) > 0.2 and np.mean(flatness) > 0.5


def test_no_threshold_finds_the_cup(cases, reference):
    """Not even the best one for each image; yet the colours do tell something."""
    best = [
        [max(dice(channel > level, cup) for level in np.percentile(channel, range(50, 100))) for channel in case.image]
        for case, (_, cup) in zip(cases, reference, strict=True)
    ]
    assert 0.5 < np.mean(best, 0).max() < 0.8


@pytest.mark.parametrize("change", ["missing", "unknown", "in a rater", "in the cup's law"])
def test_parameters_are_checked(change):
    parameters = copy.deepcopy(RECIPE)
    if change == "missing":
        del parameters["cup_edge"]
    else:
        {"unknown": parameters, "in a rater": parameters["raters"][0]}.get(change, parameters["cup_ratio"])["edge"] = 1
    with pytest.raises(ValueError, match="edge"):
        fundus.fundus_phantom(cases=1, size=SIZE, seed=5, parameters=parameters)
