"""The grid that networks work on: when a volume is brought there, how, and the way back."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from pdlib.data.nifti import Grid
from pdlib.data.wmh import Volume
from pdlib.inference.working import to_training_voxels

PLANE = {"low": [0.95, 0.95], "median": [1.0, 1.0], "high": [1.0, 1.2]}
DATA = {"in_plane_mm": PLANE}
TOLERANCE = 0.2


def volume(spacing_mm, extent_mm=(36.0, 48.0, 40.0)) -> Volume:
    """A field that is linear along z and smooth in-plane; the brain is a box in the middle."""
    shape = tuple(round(mm / size) for mm, size in zip(extent_mm, spacing_mm, strict=True))
    z, y, x = np.meshgrid(
        *((np.arange(n) + 0.5) * size for n, size in zip(shape, spacing_mm, strict=True)), indexing="ij"
    )
    field = (z / 10 + np.sin(y / 12) + np.cos(x / 12)).astype(np.float32)
    brain = (z > 6) & (z < 30) & (y > 12) & (y < 36) & (x > 12) & (x < 28)
    grid = Grid(shape[::-1], np.diag([*spacing_mm[::-1], 1.0]), nib.Nifti1Header())
    return Volume(np.stack([field, -field]), brain, None, None, spacing_mm, grid)


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (2.5, 0.8, 1.4), (5.0, 1.0, 1.0)])
def test_voxels_like_the_trainings_stay(spacing):
    given = volume(spacing, (60.0, 40.0, 42.0))
    working = to_training_voxels(given, DATA, TOLERANCE)
    assert working.volume is given
    members = np.zeros((2, *given.brain.shape), np.float32)
    assert working.back(members) is members
    assert bool(working.notes) == (spacing[0] == 5)


def test_thick_slices_are_noted():
    (note,) = to_training_voxels(volume((6.0, 1.0, 1.0)), DATA, TOLERANCE).notes
    assert note == "slices of 6 mm: the networks were trained on 3 mm"


def test_thin_slices_are_averaged_in_threes():
    given = volume((1.0, 1.0, 1.0))
    working = to_training_voxels(given, DATA, TOLERANCE)
    found = working.volume
    assert found.spacing_mm == (3.0, 1.0, 1.0) and found.brain.shape == (12, 48, 40)
    averaged = given.image.reshape(2, 12, 3, 48, 40).mean(2)
    np.testing.assert_allclose(found.image, averaged * found.brain, atol=1e-5)
    assert working.notes == ("slices of 1 mm were averaged to 3 mm for the networks",)


def test_pixels_that_are_resampled_are_noted():
    (note,) = to_training_voxels(volume((3.0, 2.0, 0.5)), DATA, TOLERANCE).notes
    assert note == "pixels of 2 x 0.5 mm were resampled to 1 x 1 mm for the networks, and the results back"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 2.0, 0.5), (1.2, 1.0, 3.0), (1.7, 3.0, 1.0)])
def test_what_is_brought_there_comes_back(spacing):
    given = volume(spacing)
    working = to_training_voxels(given, DATA, TOLERANCE)
    np.testing.assert_allclose(working.volume.spacing_mm, (3, 1, 1), rtol=0.2)
    back = working.back(working.volume.image)
    assert back.shape == given.image.shape and back.dtype == np.float32
    deep = ndimage.distance_transform_edt(given.brain, sampling=spacing) > 4
    assert np.count_nonzero(deep) > 50 and np.abs(back - given.image)[:, deep].max() < 0.25


def test_the_cards_slices_count_where_it_names_them():
    data = DATA | {"slice_mm": {"low": 1.0, "median": 1.0, "high": 1.2}}
    assert to_training_voxels(given := volume((1.0, 1.0, 1.0)), data, TOLERANCE).volume is given


@pytest.mark.parametrize(("spacing", "plane"), [((1.0, 1.0, 3.0), "sagittal"), ((1.0, 3.0, 1.0), "coronal")])
def test_other_planes_are_named(spacing, plane):
    notes = to_training_voxels(volume(spacing), DATA, TOLERANCE).notes
    assert f"the scan is {plane}, 3 mm thick: the networks see it cut axially" in notes


def test_what_leaves_no_brain_or_too_many_voxels_is_none():
    given = volume((1.0, 1.0, 1.0))
    speck = np.zeros_like(given.brain)
    speck[10, 10, 10] = True
    assert to_training_voxels(replace(given, brain=speck), DATA, TOLERANCE) is None
    fine = {"in_plane_mm": {name: [1e-3, 1e-3] for name in PLANE}}
    assert to_training_voxels(given, fine, TOLERANCE) is None
