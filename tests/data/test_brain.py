"""The brain in a FLAIR of any scale, what is refused and noted, and FLAIR and T1 that look like what they are not."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage

from pdlib.data import brain, phantom, wmh
from pdlib.data.nifti import read_array
from pdlib.paths import CONFIGS

CLIP = (0.5, 99.5)
REAL = os.environ.get("PDLIB_REAL_DATA")


@pytest.fixture(scope="module")
def phantom_case(tmp_path_factory) -> wmh.Case:
    root = tmp_path_factory.mktemp("phantom")
    recipe = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))["phantom"]
    subject = phantom.write_case(root, 0, 0, seed=0, grid_scale=(2, 2, 2), label2_fraction=0.1, parameters=recipe)
    return wmh.Case(subject, "Utrecht", root / subject)


@pytest.fixture(params=["phantom", "Utrecht/7", "Amsterdam/GE3T/19"])
def case(request, phantom_case) -> wmh.Case:
    """A whole brain without skull, with zeros around it: simulated, and two real ones where there are any."""
    if request.param == "phantom":
        return phantom_case
    if not REAL:
        pytest.skip("PDLIB_REAL_DATA names no folder of real cases")
    return next(case for case in wmh.find_cases(REAL) if case.subject == request.param)


@cache
def images(case: wmh.Case) -> tuple[np.ndarray, np.ndarray]:
    return read_array(case.flair, "FLAIR")[0], read_array(case.t1, "T1")[0]


def bet(flair: np.ndarray) -> np.ndarray:
    return brain.brain_mask(flair, percentiles=brain.BET_PERCENTILES, fraction=brain.BET_FRACTION)


def test_brain_is_the_largest_part_with_in_plane_holes_filled():
    flair = np.zeros((3, 20, 20))
    flair[:, 2:12, 2:12] = 100
    flair[:, 5:8, 5:8] = 4  # a ventricle, open to nothing in its plane
    flair[:, 15:17, 15:17] = 100  # an eye
    expected = np.zeros(flair.shape, dtype=bool)
    expected[:, 2:12, 2:12] = True
    np.testing.assert_array_equal(brain.brain_mask(flair, percentiles=(2, 98), fraction=0.1), expected)


def test_a_dark_border_leaves_the_mask_as_it_was_and_nothing_to_note(case):
    found, notes = brain.find_brain(images(case)[0])
    np.testing.assert_array_equal(found, bet(images(case)[0]))
    assert notes == () == wmh.read_case(case, clip_percentiles=CLIP).notes


def z_scored(flair: np.ndarray) -> np.ndarray:
    inside = flair > 0
    return np.where(inside, (flair - flair[inside].mean()) / flair[inside].std(), 0)


OTHER_SCALES = {
    "z-scored": z_scored,
    "z-scored and far from 0": lambda flair: 50 + 3 * z_scored(flair),
    "z-scored, in float32": lambda flair: z_scored(flair).astype(np.float32).astype(float),
    "z-scored, in whole numbers": lambda flair: np.rint(100 * z_scored(flair)),
    "z-scored, with a trace of resampling": lambda flair: (
        z_scored(flair) + 1e-9 * np.random.default_rng(0).standard_normal(flair.shape)
    ),
    "from -1 to 1": lambda flair: np.where(flair > 0, flair / np.percentile(flair, 99.9) * 2 - 1, 0),
    "white matter at 0": lambda flair: np.where(flair > 0, flair / np.median(flair[flair > 0]) - 1, 0),
    "on white": lambda flair: np.where(flair > 0, flair, 4095),
}


@pytest.mark.parametrize("scale", OTHER_SCALES.values(), ids=OTHER_SCALES)
def test_a_background_that_is_not_dark_is_found_by_its_constant_value(case, scale):
    flair = images(case)[0]
    inside = ndimage.binary_fill_holes(flair > 0, structure=np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]))
    found, notes = brain.find_brain(scale(flair))
    overlap = 2 * np.count_nonzero(found & inside) / (np.count_nonzero(found) + np.count_nonzero(inside))
    assert overlap > 0.99
    assert len(notes) == 1 and notes[0].startswith("assumed that ") and "is background" in notes[0]


@pytest.mark.parametrize("scale", [lambda x: 7 * x - 1024, lambda x: (x - x.mean()) / x.std(), lambda x: x / 1e6])
def test_a_border_that_stays_dark_changes_nothing(case, scale):
    found, notes = brain.find_brain(scale(images(case)[0]))
    assert notes == ()
    assert np.mean(found != bet(images(case)[0])) < 1e-4


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def padded_head(flair: np.ndarray) -> np.ndarray:
    """A z-scored head with its air, put into a larger volume of zeros."""
    scan = (flair + 3 * np.abs(noise(flair.shape))) / flair.std()
    return np.pad(scan - scan.mean(), ((0, 0), (20, 20), (20, 20)))


CANNOT_BE_TOLD = {
    "a box within the brain": (lambda flair: 100 + noise((20, 20, 20)), "neither its dark end nor constant"),
    "no background": (lambda flair: np.abs(noise((8, 20, 20))) + 5, "cannot tell the brain"),
    "air within a constant frame": (padded_head, "from the air around it"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("spoil", "cause"), CANNOT_BE_TOLD.values(), ids=CANNOT_BE_TOLD)
def test_what_cannot_be_told_is_refused(phantom_case, spoil, cause):
    with pytest.raises(ValueError, match=cause):
        brain.find_brain(spoil(images(phantom_case)[0]))


def test_a_brain_that_looks_odd_is_noted():
    everywhere, speck = np.ones((3, 20, 20), bool), np.zeros((3, 20, 20), bool)
    speck[1, 5, 5] = True
    assert brain.plausibility(everywhere) == (
        "the brain is 100.00% of the volume",
        "the brain reaches the image's border (100% of it)",
    )
    assert brain.plausibility(speck) == ("the brain is 0.08% of the volume",)
    assert brain.plausibility(~everywhere) == ()


def test_swapped_contrasts_are_noted_and_the_right_ones_are_not(case, tmp_path):
    assert wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP).notes == ()
    (note,) = wmh.read_images(case.t1, case.flair, clip_percentiles=CLIP).notes
    assert note.startswith("FLAIR and T1 look swapped")


def test_the_rule_on_contrasts_is_silent_about_what_is_no_whole_brain(phantom_case):
    volume = wmh.read_case(phantom_case, clip_percentiles=CLIP)
    swapped = volume.image[::-1]
    assert brain.core_contrast(volume.image, volume.brain, volume.spacing_mm) > 0.3
    for factor in (0.7, 1.5):
        spacing_mm = tuple(factor * size for size in volume.spacing_mm)
        assert np.isnan(brain.core_contrast(swapped, volume.brain, spacing_mm))
        assert brain.contrast_notes(swapped, volume.brain, spacing_mm) == ()


def test_depth_is_scipy_s_distance_to_the_bit():
    rng = np.random.default_rng(0)
    for shape in ((9, 20, 17), (1, 12, 30), (25, 4, 6)):
        inside, spacing_mm = rng.random(shape) < 0.9, tuple(rng.uniform(0.5, 5, 3))
        expected = ndimage.distance_transform_edt(inside, sampling=spacing_mm)[inside]
        assert np.array_equal(brain._depth_mm(inside, spacing_mm), expected)


@pytest.mark.parametrize("scale", [lambda x: 3 * x, lambda x: x + 0.02 * x.std() * noise(x.shape)])
def test_one_image_in_two_scales_is_noted(phantom_case, tmp_path: Path, scale):
    _, grid = read_array(phantom_case.flair, "FLAIR")
    wmh.write_volume(tmp_path / "t1.nii.gz", scale(images(phantom_case)[0]), grid, np.float32)
    (note,) = wmh.read_images(phantom_case.flair, tmp_path / "t1.nii.gz", clip_percentiles=CLIP).notes
    assert note.startswith("FLAIR and T1 look like the same image (correlation ")
