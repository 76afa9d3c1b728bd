"""One grid onto another through the affines: a field that is linear in space comes out as itself, whatever the axes."""

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINES

from pdlib.data.nifti import Grid
from pdlib.data.resample import mask_onto_grid, onto_grid

SHAPE = (40, 38, 30)
TURNED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([1.1, 0.9, 1.3]), [-20.0, -15.0, -18.0]
)


def grid(shape, affine) -> Grid:
    return Grid(shape, np.array(affine), nib.Nifti1Header())


def places(one: Grid) -> np.ndarray:
    """Scanner mm of every canonical voxel, [Z, Y, X, 3]."""
    index = np.stack(np.meshgrid(*map(np.arange, one.canonical_shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(one.canonical_affine, index).transpose(2, 1, 0, 3)


def around(affine) -> Grid:
    """A grid of these axes and voxels with its centre in that of the turned one."""
    middle = nib.affines.apply_affine(TURNED, (np.array(SHAPE) - 1) / 2)
    moved, shape = np.array(affine, float), (12, 10, 6)
    moved[:3, 3] = middle - moved[:3, :3] @ ((np.array(shape) - 1) / 2)
    return grid(shape, moved)


@pytest.mark.parametrize("axes", AFFINES)
def test_a_linear_field_is_itself_on_any_grid(axes):
    own, onto = grid(SHAPE, TURNED), around(AFFINES[axes])
    slope = np.array([3.0, -2.0, 1.5])
    found, covered = onto_grid(places(own) @ slope + 100, own, onto)
    assert covered.all() and found.shape == onto.canonical_shape[::-1]
    np.testing.assert_allclose(found, places(onto) @ slope + 100, atol=0.3)


def test_what_lies_outside_is_not_covered_and_zero():
    own = grid(SHAPE, np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 30
    found, covered = onto_grid(np.ones(SHAPE[::-1]), own, grid(SHAPE, shifted))
    assert covered[:, :, :10].all() and not covered[:, :, 10:].any()
    np.testing.assert_array_equal(found, covered)


def test_a_mask_keeps_its_place_and_its_size():
    own, onto = grid(SHAPE, TURNED), around(np.diag([2.0, 2.0, 2.0, 1.0]))
    ball = np.linalg.norm(places(own) - places(onto).mean((0, 1, 2)), axis=-1) < 5
    expected = np.linalg.norm(places(onto) - places(onto).mean((0, 1, 2)), axis=-1) < 5
    found = mask_onto_grid(ball, own, onto)
    assert found.dtype == bool
    assert 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum()) > 0.85
