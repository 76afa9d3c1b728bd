"""Which scans still show the skull, and what deepbet finds in one that does."""

import os
import sys

import nibabel as nib
import numpy as np
import pytest
from heads import head

from pdlib.data import skull, wmh
from pdlib.data.nifti import Grid, read_array

REAL = os.environ.get("PDLIB_REAL_DATA")
SPACING = (4.0, 3.0, 3.0)


def grid_of(image: np.ndarray) -> Grid:
    return Grid(image.shape[::-1], np.diag([*SPACING[::-1], 1.0]), nib.Nifti1Header())


@pytest.mark.parametrize("flair", [True, False])
@pytest.mark.parametrize("scale", [lambda x: x, lambda x: 7 * x + 50, lambda x: (x - x.mean()) / x.std()])
def test_a_head_is_told_from_an_extracted_brain(flair, scale):
    assert skull.shows_skull(scale(head(flair=flair)[0]), SPACING)
    assert not skull.shows_skull(scale(head(flair=flair, skull=False)[0]), SPACING)


def test_a_slab_of_a_head_is_one():
    image = head()[0]
    assert skull.shows_skull(image[18:28], SPACING)
    assert not skull.shows_skull(head(skull=False)[0][18:28], SPACING)


def test_a_brain_that_was_z_scored_and_cut_out_is_no_head():
    image, brain = head(skull=False)
    assert not skull.shows_skull(np.where(brain, (image - image[brain].mean()) / image[brain].std(), 0), SPACING)


@pytest.mark.skipif(not REAL, reason="PDLIB_REAL_DATA does not name a folder of real cases")
def test_real_brains_without_skull_are_no_heads():
    for case in wmh.find_cases(REAL):
        for path in (case.flair, case.t1):
            image, grid = read_array(path, "image")
            assert not skull.shows_skull(image, grid.spacing_mm), path


def test_deepbet_finds_the_brain_of_a_head():
    image, brain = head(flair=False)
    found = skull.extract_brain(image, grid_of(image))
    assert found.shape == brain.shape and found.dtype == bool
    assert 2 * np.count_nonzero(found & brain) / (np.count_nonzero(found) + np.count_nonzero(brain)) > 0.9


def test_what_is_no_brain_is_refused_in_a_sentence():
    image = np.random.default_rng(0).random((20, 24, 20)) * 100
    with pytest.raises(ValueError, match="deepbet"):
        skull.extract_brain(image, grid_of(image))


def test_without_deepbet_the_refusal_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet.bet", None)
    image = head()[0]
    with pytest.raises(ValueError, match="pip install deepbet"):
        skull.extract_brain(image, grid_of(image))
