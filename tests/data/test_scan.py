"""A person's own scan: every repair with its note, every refusal with the files named."""

import nibabel as nib
import numpy as np
import pytest
from heads import head
from scans import AFFINES, CLIP, SHAPE, save, scans

from pdlib.data import scan, wmh
from pdlib.data.nifti import CaseError

SPACING = (4.0, 3.0, 3.0)
AFFINE = np.diag([*SPACING[::-1], 1.0])


@pytest.fixture
def pair(tmp_path):
    flair, t1, _ = scans()
    for name, array in (("FLAIR", flair), ("T1", t1)):
        save(tmp_path / f"{name}.nii.gz", array)
    return tmp_path / "FLAIR.nii.gz", tmp_path / "T1.nii.gz"


def read(flair, t1, mask=None) -> wmh.Volume:
    return scan.read_scan(flair, t1, clip_percentiles=CLIP, brain_mask_path=mask)


def test_a_pair_on_one_grid_is_read_as_a_case_is(pair):
    expected = wmh.read_images(*pair, clip_percentiles=CLIP)
    found = read(*pair)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.brain, expected.brain)
    assert found.spacing_mm == expected.spacing_mm


def test_without_a_t1_its_channel_is_zero(pair):
    found = read(pair[0], None)
    np.testing.assert_array_equal(found.image[0], read(*pair).image[0])
    assert not found.image[1].any() and "no T1 was given: the networks see the FLAIR alone" in found.notes


@pytest.mark.parametrize("axes", ["LAS", "RPI", "PSL"])
def test_a_t1_that_is_stored_otherwise_needs_no_resampling(pair, axes):
    expected = read(*pair)
    turned = nib.load(pair[1]).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(axes))
    )
    nib.save(turned, pair[1])
    found = read(*pair)
    np.testing.assert_array_equal(found.image, expected.image)
    assert not any("brought" in note for note in found.notes)


def test_a_t1_on_a_finer_grid_is_averaged_onto_the_flairs(pair):
    """A plane wave along x, sampled twice as finely: its samples on the FLAIR's grid are those of the wave."""
    flair, _, _ = scans()
    x = np.arange(2 * SHAPE[0]) / 2 - 0.25
    fine = np.broadcast_to((300 + 40 * np.sin(x / 3))[:, None, None], (2 * SHAPE[0], *SHAPE[1:]))
    affine = AFFINES["RAS"] @ np.array([[0.5, 0, 0, -0.25], *np.eye(4)[1:]])
    save(pair[1], fine, affine)
    found = read(*pair)
    inside = flair.T > 0
    expected = np.broadcast_to((300 + 40 * np.sin(np.arange(SHAPE[0]) / 3))[None, None], inside.shape)[inside]
    expected = (np.clip(expected, *np.percentile(expected, CLIP)) - expected.mean()) / expected.std()
    assert np.abs(found.image[1][inside] - expected).max() < 0.15
    assert any(note.startswith("the T1 was brought from its grid (24x10x6, 0.6x0.98x3 mm)") for note in found.notes)


def test_a_t1_that_misses_some_of_the_brain_is_noted_and_one_that_misses_much_is_refused(pair):
    _, t1, _ = scans()
    save(pair[1], t1[:10])
    found = read(*pair)
    (note,) = (note for note in found.notes if note.startswith("the T1 shows "))
    assert "elsewhere it is taken for its mean" in note
    assert not found.image[1][:, :, 10:].any()
    save(pair[1], t1[:6])
    with pytest.raises(CaseError, match=rf"^{pair[1]}: shows only \d+% of the brain in the FLAIR, {pair[0]}$"):
        read(*pair)
    save(pair[1], t1, AFFINES["RAS"] + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3))
    with pytest.raises(CaseError, match=rf"^{pair[1]}: does not overlap with the FLAIR, {pair[0]}$"):
        read(*pair)


def test_a_brain_mask_on_another_grid_is_brought_by_nearest_neighbours(pair, tmp_path):
    given = np.zeros(SHAPE)
    given[3:9, 3:7, 2:4] = 1
    fine = given.repeat(2, 0)
    save(tmp_path / "brain.nii", fine, AFFINES["RAS"] @ np.array([[0.5, 0, 0, -0.25], *np.eye(4)[1:]]))
    found = read(*pair, tmp_path / "brain.nii")
    np.testing.assert_array_equal(found.brain, given.T == 1)
    assert any(note.startswith("the brain mask was brought from its grid (24x10x6") for note in found.notes)
    save(tmp_path / "brain.nii", given, AFFINES["RAS"] + np.array([[0, 0, 0, 7.0]] + [[0] * 4] * 3))
    with pytest.raises(CaseError, match=rf"^{tmp_path / 'brain.nii'}: only \d+% of it lie in the FLAIR, {pair[0]}$"):
        read(*pair, tmp_path / "brain.nii")


@pytest.mark.parametrize("which", ["FLAIR", "T1"])
def test_what_is_no_number_is_taken_for_zero(pair, which):
    path = pair[("FLAIR", "T1").index(which)]
    array = np.asarray(nib.load(path).dataobj).copy()
    array[5, 5, 3], array[6, 5, 3] = np.nan, -np.inf
    save(path, array)
    found = read(*pair)
    assert np.isfinite(found.image).all()
    assert f"2 voxels of the {which} are NaN or infinite, and were taken for 0" in found.notes


REFUSED = {
    "no number at all": (0, lambda p: save(p, np.full(SHAPE, np.nan)), "no contrast (every voxel is 0)"),
    "missing": (1, lambda p: p.unlink(), "missing T1"),
    "a twin": (1, lambda p: save(p, scans()[0]), "the same image as the FLAIR"),
    "flat": (1, lambda p: save(p, scans()[0] > 0), "no contrast inside the brain"),
    "not NIfTI": (0, lambda p: p.write_text("no"), "not a NIfTI file"),
    "DICOM": (0, lambda p: p.write_bytes(b"\0" * 128 + b"DICM\2\0"), "DICOM; convert it first: dcm2niix"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("which", "damage", "cause"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_repaired_is_refused_by_its_file(pair, which, damage, cause):
    damage(pair[which])
    with pytest.raises(CaseError) as refusal:
        read(*pair)
    assert str(refusal.value).startswith(f"{pair[which]}: ") and cause in str(refusal.value)


def test_a_folder_of_dicom_files_is_named_as_that(tmp_path, pair):
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM0001").write_bytes(b"\0" * 128 + b"DICM\2\0")
    with pytest.raises(CaseError, match=rf"^{series}: DICOM; convert it first: dcm2niix .* {series}$"):
        read(series, pair[1])


@pytest.fixture
def extracted(monkeypatch) -> list:
    """Stands in for deepbet: the true brain; the images that it was given."""
    given = []

    def extract(image, grid):
        given.append((image, grid))
        return head(grid.spacing_mm)[1]

    monkeypatch.setattr(scan, "extract_brain", extract)
    return given


def save_head(folder, *, flair_skull=True, t1_skull=True, t1_spacing=SPACING):
    flair, brain = head(skull=flair_skull)
    t1, _ = head(t1_spacing, flair=False, skull=t1_skull, seed=1)
    affine = np.diag([*t1_spacing[::-1], 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * size for n, size in zip(t1.shape[::-1], t1_spacing[::-1], strict=True)]
    own = AFFINE.copy()
    own[:3, 3] = [-(n - 1) / 2 * size for n, size in zip(flair.shape[::-1], SPACING[::-1], strict=True)]
    save(folder / "FLAIR.nii.gz", flair.T, own)
    save(folder / "T1.nii.gz", t1.T, affine)
    return folder / "FLAIR.nii.gz", folder / "T1.nii.gz", brain


@pytest.mark.parametrize("t1_spacing", [SPACING, (3.0, 4.0, 3.0)])
def test_of_a_head_the_brain_is_extracted_from_the_t1_on_its_own_grid(tmp_path, extracted, t1_spacing):
    flair, t1, brain = save_head(tmp_path, t1_spacing=t1_spacing)
    found = read(flair, t1)
    ((image, grid),) = extracted
    assert image.max() > 300 and grid.spacing_mm == pytest.approx(t1_spacing)
    assert np.mean(found.brain != brain) < 0.02
    assert "the FLAIR shows the skull: deepbet found the brain in the T1; look whether it is one" in found.notes
    assert not found.image[:, ~found.brain].any()


def test_of_a_head_without_a_t1_the_brain_is_extracted_from_the_flair(tmp_path, extracted):
    flair, _, brain = save_head(tmp_path)
    found = read(flair, None)
    assert len(extracted) == 1
    np.testing.assert_array_equal(found.brain, brain)
    assert any("deepbet found the brain in the FLAIR" in note for note in found.notes)


def test_a_t1_without_skull_tells_the_flairs_brain(tmp_path, extracted):
    flair, t1, brain = save_head(tmp_path, t1_skull=False)
    found = read(flair, t1)
    assert extracted == [] and np.mean(found.brain != brain) < 0.02
    assert "the FLAIR shows the skull: the brain is that of the T1, which shows none" in found.notes


def test_a_flair_without_skull_cuts_the_t1s_off(tmp_path, extracted):
    flair, t1, _ = save_head(tmp_path, flair_skull=False)
    found = read(flair, t1)
    assert extracted == [] and found.notes == () and not found.image[1][~found.brain].any()


def test_a_skull_that_cannot_be_removed_asks_for_a_mask(tmp_path, monkeypatch):
    def fail(image, grid):
        raise ValueError("deepbet finds no brain")

    monkeypatch.setattr(scan, "extract_brain", fail)
    flair, t1, brain = save_head(tmp_path)
    with pytest.raises(CaseError, match=rf"^{t1}: it shows the skull: deepbet finds no brain; give --brain-mask FILE"):
        read(flair, t1)
    save(tmp_path / "brain.nii", brain.T, nib.load(flair).affine)
    np.testing.assert_array_equal(read(flair, t1, tmp_path / "brain.nii").brain, brain)
