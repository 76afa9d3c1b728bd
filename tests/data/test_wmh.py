"""Reading cases: what is refused, and in which words; what is accepted, and that it lands in the right place."""

import gzip
import os
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pdlib.data import wmh
from pdlib.data.wmh import CaseError

SHAPE = (12, 10, 6)  # x, y, z
CLIP = (0.5, 99.5)
AFFINES = {
    "RAS": np.array([[1.2, 0, 0, -7], [0, 0.98, 0, 5], [0, 0, 3, 2], [0, 0, 0, 1]]),
    "LAS": np.array([[-1.2, 0, 0, 7], [0, 0.98, 0, 5], [0, 0, 3, 2], [0, 0, 0, 1]]),
    "RPI": np.array([[1.2, 0, 0, 7], [0, -0.98, 0, 5], [0, 0, -3, 2], [0, 0, 0, 1]]),
    "PSL": np.array([[0, 0, -1.2, 9], [-0.98, 0, 0, 5], [0, 3, 0, 2], [0, 0, 0, 1]]),
    "oblique": nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.3, 0.2, -0.25) @ np.diag([-0.96, -0.95, 3]), [80, 90, -40]
    ),
}


def scans() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy ellipsoid in two contrasts, and a mask with both labels; [X, Y, Z]."""
    rng = np.random.default_rng(7)
    centred = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    inside = (centred**2).sum(0) < 1
    flair = inside * rng.integers(200, 400, SHAPE)
    t1 = inside * rng.integers(300, 500, SHAPE)
    mask = np.zeros(SHAPE)
    mask[4:6, 5, 2] = 1
    mask[7, 4, 3] = 2
    return flair, t1, mask


def save(path: Path, array: np.ndarray, affine=AFFINES["RAS"], dtype=np.float32, kind=nib.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(array.astype(dtype), affine), path)


@pytest.fixture
def case(tmp_path: Path) -> wmh.Case:
    """A sound case, to be damaged."""
    folder = tmp_path / "training" / "Utrecht" / "7"
    for name, array in zip(("pre/FLAIR", "pre/T1", "wmh"), scans(), strict=True):
        save(folder / f"{name}.nii.gz", array)
    return wmh.Case("training/Utrecht/7", "Utrecht", folder)


def rewrite_header(path: Path, **fields) -> None:
    """Overwrite raw header fields, past every check nibabel makes on writing."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(bytes(raw)))


def flip_crc(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)


def change(path: Path, index: tuple, value: float) -> None:
    array = np.asarray(nib.load(path).dataobj).copy()
    array[index] = value
    save(path, array)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rgb() -> np.ndarray:
    return np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


BAD = {
    "missing T1": ("t1", Path.unlink, "missing T1"),
    "missing mask": ("wmh", Path.unlink, "missing mask"),
    "zero bytes": ("flair", lambda p: p.write_bytes(b""), "empty file"),
    "truncated gzip": ("flair", lambda p: p.write_bytes(p.read_bytes()[:-200]), "truncated gzip"),
    "wrong CRC": ("flair", flip_crc, "CRC"),
    "wrong CRC of the mask": ("wmh", flip_crc, "CRC"),
    "broken deflate": ("t1", lambda p: p.write_bytes(p.read_bytes()[:30] + b"\0" * 400), "broken gzip"),
    "data end early": (
        "flair",
        lambda p: p.write_bytes(gzip.compress(gzip.decompress(p.read_bytes())[:-8])),
        "data end early",
    ),
    "text": ("t1", lambda p: p.write_text("version https://git-lfs"), "not a NIfTI file"),
    "a folder": ("t1", make_folder, "directory"),
    "4D": ("flair", lambda p: save(p, np.ones((*SHAPE, 2))), "not a 3D volume"),
    "2D": ("flair", lambda p: save(p, np.ones(SHAPE[:2])), "not a 3D volume"),
    "T1 of another shape": ("t1", lambda p: save(p, scans()[1][:-1]), "shape"),
    "T1 elsewhere": ("t1", lambda p: save(p, scans()[1], nib.affines.from_matvec(np.eye(3), [0, 0, 1])), "affine"),
    "T1 mirrored": ("t1", lambda p: save(p, scans()[1], AFFINES["LAS"]), "affine"),
    "mask of another shape": ("wmh", lambda p: save(p, scans()[2][:, :, 1:]), "shape"),
    "mask elsewhere": ("wmh", lambda p: save(p, scans()[2], AFFINES["RAS"] * [[1.02], [1], [1], [1]]), "affine"),
    "NaN": ("flair", lambda p: change(p, (0, 0, 0), np.nan), "NaN or Inf"),
    "Inf": ("t1", lambda p: change(p, (5, 5, 3), np.inf), "NaN or Inf"),
    "NaN in the mask": ("wmh", lambda p: change(p, (5, 5, 3), np.nan), "NaN or Inf"),
    "all zero": ("flair", lambda p: save(p, np.zeros(SHAPE)), "no contrast"),
    "constant": ("t1", lambda p: save(p, np.full(SHAPE, 9)), "no contrast"),
    "flat brain": ("flair", lambda p: save(p, scans()[0] > 0), "no contrast inside the brain"),
    "complex": ("flair", lambda p: save(p, scans()[0], dtype=np.complex64), "not plain numbers"),
    "RGB": ("flair", lambda p: nib.save(nib.Nifti1Image(rgb(), AFFINES["RAS"]), p), "not plain numbers"),
    "label 3": ("wmh", lambda p: change(p, (1, 1, 1), 3), "labels other than 0, 1, 2"),
    "label 0.5": ("wmh", lambda p: change(p, (1, 1, 1), 0.5), "labels other than 0, 1, 2"),
    "label -1": ("wmh", lambda p: change(p, (1, 1, 1), -1), "labels other than 0, 1, 2"),
    "a huge claim": ("flair", lambda p: rewrite_header(p, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "limit"),
    "negative shape": ("flair", lambda p: rewrite_header(p, dim=[3, -12, 10, 6, 1, 1, 1, 1]), "no voxels"),
    "voxels far away": ("flair", lambda p: rewrite_header(p, vox_offset=np.float32(1e18)), "begin at byte"),
    "unknown type": ("flair", lambda p: rewrite_header(p, datatype=77), "header"),
    "zero voxel size": ("flair", lambda p: rewrite_header(p, pixdim=[1, 1, 0, 3, 0, 0, 0, 0]), "voxel sizes"),
    "NaN voxel size": ("t1", lambda p: rewrite_header(p, pixdim=[1, 1, np.nan, 3, 0, 0, 0, 0]), "voxel sizes"),
    "micrometres": ("flair", lambda p: rewrite_header(p, xyzt_units=3), "micrometres"),
    "singular affine": ("flair", lambda p: rewrite_header(p, srow_x=0), "singular"),
    "NaN affine": ("flair", lambda p: rewrite_header(p, srow_y=np.nan), "singular or not finite"),
}


@pytest.mark.parametrize(("which", "damage", "cause"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line_naming_file_and_cause(case, which, damage, cause, caplog):
    path = getattr(case, which)
    damage(path)
    with pytest.raises(CaseError) as refusal:
        wmh.read_case(case, clip_percentiles=CLIP)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and cause in message and "\n" not in message
    assert not caplog.records
    assert str(pickle.loads(pickle.dumps(refusal.value))) == message


def test_unreadable_file_is_refused(case, monkeypatch):
    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CaseError, match=r"T1\.nii\.gz: Permission denied"):
        wmh.read_labels(case.t1)


GOOD = {
    "big-endian": lambda p, a: nib.save(
        nib.Nifti1Image(a.astype(">f4"), AFFINES["RAS"], nib.Nifti1Header(endianness=">")), p
    ),
    "NIfTI-2": lambda p, a: save(p, a, kind=nib.Nifti2Image),
    "float64": lambda p, a: save(p, a, dtype=np.float64),
    "int16": lambda p, a: save(p, a, dtype=np.int16),
    "trailing singleton": lambda p, a: save(p, a[..., None]),
    "stored right to left": lambda p, a: save(p, a[::-1], AFFINES["RAS"] @ [[-1, 0, 0, 11], *np.eye(4)[1:]]),
    "not packed despite its name": lambda p, a: p.write_bytes(nib.Nifti1Image(a * 1.0, AFFINES["RAS"]).to_bytes()),
    "bytes after the voxels": lambda p, a: (
        save(p, a),
        p.write_bytes(gzip.compress(gzip.decompress(p.read_bytes()) + b"\0" * 99)),
    ),
}


@pytest.mark.parametrize("store", GOOD.values(), ids=GOOD)
def test_the_same_scan_in_another_guise_reads_the_same(case, store):
    expected = wmh.read_case(case, clip_percentiles=CLIP)
    for path, array in zip((case.flair, case.t1, case.wmh), scans(), strict=True):
        store(path, array)
    found = wmh.read_case(case, clip_percentiles=CLIP)
    for name in ("image", "brain", "mask", "ignore"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.spacing_mm == pytest.approx((3, 0.98, 1.2), rel=1e-6)


def test_a_scale_factor_is_applied_and_its_rounding_forgiven(case):
    stored = nib.Nifti1Image((scans()[2] * 100).astype(np.uint8), AFFINES["RAS"])
    stored.header.set_slope_inter(np.float32(0.01), 0)
    stored.to_filename(case.wmh)
    np.testing.assert_array_equal(wmh.read_labels(case.wmh)[0], scans()[2].T)


def test_small_faults_of_a_header_are_mended_in_silence(case, tmp_path, caplog):
    expected = wmh.read_labels(case.wmh)[0]
    rewrite_header(case.wmh, qform_code=99, vox_offset=352.4)
    array, grid = wmh._read(case.wmh, "mask")
    np.testing.assert_array_equal(array, expected)
    wmh.write_volume(tmp_path / "back.nii.gz", array, grid, np.uint8)
    assert nib.load(tmp_path / "back.nii.gz").header["qform_code"] == 0
    assert not caplog.records


def test_normalisation_against_its_definition(case):
    flair, t1, mask = (array.T for array in scans())
    volume = wmh.read_case(case, clip_percentiles=(5, 95))
    np.testing.assert_array_equal(volume.brain, flair > 0)
    for channel, scan in zip(volume.image, (flair, t1), strict=True):
        low, high = np.quantile(scan[flair > 0], (0.05, 0.95))
        clipped = np.minimum(np.maximum(scan[flair > 0], low), high)
        np.testing.assert_allclose(channel[flair > 0], (clipped - clipped.mean()) / clipped.std(), rtol=1e-5, atol=1e-6)
        assert not channel[flair == 0].any()
    np.testing.assert_array_equal(volume.mask, mask == 1)
    np.testing.assert_array_equal(volume.ignore, mask == 2)
    assert (volume.image.dtype, volume.mask.dtype, volume.ignore.dtype) == (np.float32, np.uint8, bool)
    assert volume.lesion_ml == pytest.approx(2 * 1.2 * 0.98 * 3 / 1000, rel=1e-6)


@pytest.mark.parametrize("percentiles", [(99, 1), (-1, 50), (5, 101)])
def test_impossible_percentiles_are_refused(case, percentiles):
    with pytest.raises(ValueError, match="clip_percentiles"):
        wmh.read_case(case, clip_percentiles=percentiles)


def test_brain_is_the_largest_part_with_in_plane_holes_filled():
    flair = np.zeros((3, 20, 20))
    flair[:, 2:12, 2:12] = 100
    flair[:, 5:8, 5:8] = 4  # a ventricle, open to nothing in its plane
    flair[:, 15:17, 15:17] = 100  # an eye
    brain = wmh.brain_mask(flair, percentiles=(2, 98), fraction=0.1)
    expected = np.zeros(flair.shape, dtype=bool)
    expected[:, 2:12, 2:12] = True
    np.testing.assert_array_equal(brain, expected)


def test_a_given_brain_mask_decides(case, tmp_path):
    given = np.zeros(SHAPE)
    given[3:9, 3:7, 2:4] = 1
    save(tmp_path / "brain.nii", given)
    volume = wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP, brain_mask_path=tmp_path / "brain.nii")
    np.testing.assert_array_equal(volume.brain, given.T == 1)
    assert volume.mask is None and volume.ignore is None
    save(tmp_path / "brain.nii", given * 0)
    with pytest.raises(CaseError, match=r"brain\.nii: empty brain"):
        wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP, brain_mask_path=tmp_path / "brain.nii")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_written_back_on_the_grid_it_came_from(tmp_path, affine, kind):
    source, target = tmp_path / "source.nii.gz", tmp_path / "new" / "target.nii.gz"
    stored = np.random.default_rng(3).random(SHAPE)
    image = kind(stored, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    nib.save(image, source)
    array, grid = wmh._read(source, "image")
    canonical = nib.as_closest_canonical(nib.load(source))
    np.testing.assert_array_equal(array, canonical.get_fdata().transpose(2, 1, 0))
    np.testing.assert_allclose(grid.canonical_affine, canonical.affine)
    np.testing.assert_allclose(grid.spacing_mm, nib.affines.voxel_sizes(canonical.affine)[::-1])

    wmh.write_volume(target, array, pickle.loads(pickle.dumps(grid)), np.float64)
    before, after = nib.load(source), nib.load(target)
    np.testing.assert_array_equal(after.get_fdata(), stored)
    assert type(after) is kind and os.listdir(target.parent) == ["target.nii.gz"]
    for field in ("pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "dim"):
        np.testing.assert_array_equal(after.header[field], before.header[field], err_msg=field)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_marked_voxel_keeps_its_place_in_the_world(tmp_path, affine):
    scan = np.zeros(SHAPE)
    scan[9, 2, 4] = 1
    save(tmp_path / "mark.nii.gz", scan, affine)
    world = affine @ [9, 2, 4, 1]
    labels, _ = wmh.read_labels(tmp_path / "mark.nii.gz")
    _, grid = wmh._read(tmp_path / "mark.nii.gz", "mask")
    z, y, x = np.argwhere(labels)[0]
    np.testing.assert_allclose(grid.canonical_affine @ [x, y, z, 1], world, atol=1e-4)
    wmh.write_volume(tmp_path / "back.nii.gz", labels, grid, np.uint8)
    back = nib.load(tmp_path / "back.nii.gz")
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_allclose(back.affine @ [*np.argwhere(back.get_fdata())[0], 1], world, atol=1e-4)


def test_an_interrupted_write_leaves_the_old_file(case, monkeypatch):
    before = case.wmh.read_bytes()
    _, grid = wmh._read(case.wmh, "mask")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(wmh.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        wmh.write_volume(case.wmh, np.ones(SHAPE[::-1]), grid, np.uint8)
    assert case.wmh.read_bytes() == before
    assert sorted(os.listdir(case.folder)) == ["pre", "wmh.nii.gz"]


def test_a_wrong_shape_is_not_written(tmp_path, case):
    _, grid = wmh._read(case.wmh, "mask")
    with pytest.raises(ValueError, match="does not fit"):
        wmh.write_volume(tmp_path / "x.nii.gz", np.ones(SHAPE), grid, np.uint8)
    assert not (tmp_path / "x.nii.gz").exists()


RATERS = {
    "the challenge": ("", "training/Utrecht/7", "training/Utrecht/7"),
    "an older copy": ("", "GE3T/7", "training/Amsterdam/GE3T/7"),
    "a data set further down": ("WMH", "training/Utrecht/7", "training/Utrecht/7"),
    "odd names": ("", "training/Amsterdam/Philips VU .PETMR_01./[7]*", "training/Amsterdam/Philips VU .PETMR_01./[7]*"),
}


@pytest.mark.parametrize(("data_set", "folder", "annotated"), RATERS.values(), ids=RATERS)
def test_raters_are_found_and_no_one_elses(tmp_path, data_set, folder, annotated):
    for name, array in zip(("pre/FLAIR", "pre/T1", "wmh"), scans(), strict=True):
        save(tmp_path / data_set / folder / f"{name}.nii.gz", array)
    drawn = {"observer_o3": scans()[2], "observer_o4": np.roll(scans()[2], 1, axis=1)}
    annotations = tmp_path / data_set / "additional_annotations"
    save(annotations / "observer_o4" / annotated / "result.nii.gz", drawn["observer_o4"])
    mirrored = AFFINES["RAS"] @ [[-1, 0, 0, 11], *np.eye(4)[1:]]
    save(annotations / "observer_o3" / annotated / "result.nii.gz", drawn["observer_o3"][::-1], mirrored)
    others = ["training/Singapore/7", "training/Utrecht/17", "test/Utrecht/7"]
    for other in others:
        save(annotations / "observer_o3" / other / "result.nii.gz", np.ones(SHAPE))
    save(tmp_path / "other data/additional_annotations/observer_o5" / annotated / "result.nii.gz", scans()[2])

    (case,) = wmh.find_cases(tmp_path)
    raters = wmh.read_raters(tmp_path, case, wmh.read_case(case, clip_percentiles=CLIP).grid)
    assert list(raters) == ["observer_o3", "observer_o4"]
    for observer, labels in raters.items():
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, drawn[observer].T)


def test_a_case_without_raters_has_none(case, tmp_path):
    grid = wmh.read_case(case, clip_percentiles=CLIP).grid
    assert wmh.read_raters(tmp_path, case, grid) == {}
    assert wmh.read_raters(case.folder, case, grid) == {}
    with pytest.raises(ValueError, match="elsewhere"):
        wmh.read_raters(tmp_path / "elsewhere", case, grid)


@pytest.mark.parametrize(
    "damage", ["label 3", "wrong CRC of the mask", "mask of another shape", "mask elsewhere", "NaN in the mask"]
)
def test_a_raters_mask_is_checked_like_the_experts(case, tmp_path, damage):
    path = tmp_path / "additional_annotations/observer_o4/training/Utrecht/7/result.nii.gz"
    save(path, scans()[2])
    _, change_file, cause = BAD[damage]
    change_file(path)
    with pytest.raises(CaseError, match=rf"^{path}: .*{cause}"):
        wmh.read_raters(tmp_path, case, wmh.read_case(case, clip_percentiles=CLIP).grid)


def test_two_masks_by_one_observer_are_refused(case, tmp_path):
    for folder in (tmp_path, tmp_path / "training"):
        save(folder / "additional_annotations/observer_o3/training/Utrecht/7/result.nii.gz", scans()[2])
    with pytest.raises(CaseError, match=r"a second mask of training/Utrecht/7 by observer_o3"):
        wmh.read_raters(tmp_path, case, wmh.read_case(case, clip_percentiles=CLIP).grid)


def test_cases_are_found_at_any_depth_under_any_name(tmp_path):
    folders = ["training/Amsterdam/Philips VU .PETMR_01./160", "training/Zürich/雪 7", "Utrecht/0", "GE3T/19"]
    for folder in folders:
        save(tmp_path / folder / "wmh.nii.gz", scans()[2])
    save(tmp_path / "Utrecht/no mask/pre/FLAIR.nii.gz", scans()[0])
    save(tmp_path / "additional_annotations/observer_o3/training/Utrecht/0/wmh.nii.gz", scans()[2])
    (tmp_path / "Utrecht" / "loop").symlink_to(tmp_path)
    cases = wmh.find_cases(tmp_path)
    assert [case.subject for case in cases] == sorted([*folders, "Utrecht/no mask"])
    assert {case.site for case in cases} == {"Philips VU .PETMR_01.", "Zürich", "Utrecht", "GE3T"}
    assert all(case.folder == tmp_path / case.subject for case in cases)


def test_a_case_folder_is_a_root_of_one(case):
    (found,) = wmh.find_cases(case.folder)
    assert (found.subject, found.site) == ("7", "Utrecht")


def test_a_root_without_cases_is_refused(tmp_path):
    with pytest.raises(CaseError, match=rf"^{tmp_path}: no case found"):
        wmh.find_cases(tmp_path)
    with pytest.raises(CaseError, match=rf"^{tmp_path}/absent: no such folder"):
        wmh.find_cases(tmp_path / "absent")


def test_each_case_comes_with_its_volume_or_its_refusal(case, tmp_path):
    broken = tmp_path / "training" / "Utrecht" / "8"
    save(broken / "wmh.nii.gz", scans()[2])
    (sound, volume), (other, error) = wmh.read_cases(tmp_path, clip_percentiles=CLIP)
    assert sound == case and np.array_equal(volume.image, wmh.read_case(case, clip_percentiles=CLIP).image)
    assert other.subject == "training/Utrecht/8" and str(error) == f"{other.flair}: missing FLAIR (no such file)"


@pytest.mark.skipif("PDLIB_REAL_DATA" not in os.environ, reason="PDLIB_REAL_DATA names no folder of real cases")
@pytest.mark.parametrize(
    ("subject", "shape", "spacing_mm", "lesion_ml"),
    [
        ("Utrecht/7", (48, 240, 240), (3, 0.958, 0.958), 0.909),
        ("Amsterdam/GE3T/19", (83, 256, 132), (3, 0.977, 1.2), 46.352),
    ],
)
def test_real_cases(subject, shape, spacing_mm, lesion_ml, tmp_path):
    (case,) = (case for case in wmh.find_cases(os.environ["PDLIB_REAL_DATA"]) if case.subject == subject)
    volume = wmh.read_case(case, clip_percentiles=CLIP)
    assert volume.image.shape == (2, *shape)
    assert volume.spacing_mm == pytest.approx(spacing_mm, abs=5e-4)
    assert round(volume.lesion_ml, 3) == lesion_ml
    assert volume.brain[volume.mask == 1].all()
    stored = nib.load(case.wmh)
    wmh.write_volume(tmp_path / "wmh.nii.gz", volume.mask, volume.grid, np.uint8)
    np.testing.assert_array_equal(nib.load(tmp_path / "wmh.nii.gz").get_fdata(), stored.get_fdata())
    np.testing.assert_array_equal(nib.load(tmp_path / "wmh.nii.gz").affine, stored.affine)
