"""NIfTI files: what is refused, and in which words; what is accepted, and that it lands in the right place."""

import gzip
import os
import pickle
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINES, CLIP, SHAPE, change, flip_crc, rewrite_header, save, save_case, scans

from pdlib.data import nifti, wmh
from pdlib.data.doctor_headers import read_header
from pdlib.data.nifti import CaseError, read_array
from pdlib.inference.summary import InputFile


@pytest.fixture
def case(tmp_path: Path) -> wmh.Case:
    return save_case(tmp_path / "training" / "Utrecht" / "7")


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
    "a folder": ("t1", make_folder, "is a folder, not a file"),
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
    "voxels in another file": ("flair", lambda p: rewrite_header(p, magic=b"ni1", vox_offset=0), "not in this file"),
    "voxels at infinity": ("flair", lambda p: rewrite_header(p, vox_offset=np.inf), "begin at byte"),
    "voxels nowhere": ("flair", lambda p: rewrite_header(p, vox_offset=np.nan), "begin at byte"),
    "impossible quaternion": (
        "t1",
        lambda p: rewrite_header(p, qform_code=1, sform_code=0, quatern_c=2),
        "not a readable NIfTI file (ValueError",
    ),
    "voxels far away": ("flair", lambda p: rewrite_header(p, vox_offset=np.float32(1e18)), "begin at byte"),
    "unknown type": ("flair", lambda p: rewrite_header(p, datatype=77), "header"),
    "zero voxel size": ("flair", lambda p: rewrite_header(p, pixdim=[1, 1, 0, 3, 0, 0, 0, 0]), "voxel sizes"),
    "NaN voxel size": ("t1", lambda p: rewrite_header(p, pixdim=[1, 1, np.nan, 3, 0, 0, 0, 0]), "voxel sizes"),
    "micrometres": ("flair", lambda p: rewrite_header(p, xyzt_units=3), "micrometres"),
    "singular affine": ("flair", lambda p: rewrite_header(p, srow_x=0), "singular"),
    "NaN affine": ("flair", lambda p: rewrite_header(p, srow_y=np.nan), "singular or not finite"),
}


@pytest.mark.fault("bad images")
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


ODD = (0, 1, -1, 2, 7, 77, 99, 127, -128, 255, 32767, -32768, 2**31 - 1, -(2**31), 1e-45, 1e-3, 1e18, -1e18, 3e38)
ODD_FLOATS = (np.nan, np.inf, -np.inf, -0.0, 0.5, 1.0000001)


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """A NIfTI stream with one to three faults in its header: a field with an odd value, or random bytes."""
    raw = bytearray(raw)
    kind = next(kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(bytes(raw)))
    stored = kind(bytes(raw[: kind.template_dtype.itemsize]), check=False).structarr.dtype
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.3:
            raw[rng.integers(stored.itemsize)] = rng.integers(256)
            continue
        field, offset = stored.fields[stored.names[rng.integers(len(stored.names))]]
        base, shape = field.subdtype or (field, ())
        at = offset + base.itemsize * int(rng.integers(np.prod(shape, dtype=int)))
        if base.kind == "S":
            raw[at : at + base.itemsize] = rng.bytes(base.itemsize)
        else:
            value = rng.choice(ODD + (ODD_FLOATS if base.kind == "f" else ()))
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                raw[at : at + base.itemsize] = np.array(value).astype(base).tobytes()
    return bytes(raw)


@pytest.mark.fault("bad images")
@pytest.mark.parametrize("which", ["flair", "t1", "wmh"])
@pytest.mark.parametrize("store", ["NIfTI-1", "NIfTI-2", "big-endian", "by its quaternion"])
def test_a_damaged_header_is_read_or_refused_by_name(case, tmp_path, record_property, store, which, mutations=60):
    record_property("faults", mutations)
    path, array = getattr(case, which), dict(zip(("flair", "t1", "wmh"), scans(), strict=True))[which]
    kind = nib.Nifti2Image if store == "NIfTI-2" else nib.Nifti1Image
    header = kind.header_class(endianness=">" if store == "big-endian" else "<")
    image = kind(array.astype(np.float32), AFFINES["RAS"], header)
    if store == "by its quaternion":
        image.set_sform(None, code=0)
        image.set_qform(AFFINES["RAS"], code=1)
    raw = image.to_bytes()
    rng, told = np.random.default_rng(len(store) + len(which)), {"read": 0, "refused": 0}
    for _ in range(mutations):
        path.write_bytes(mutated(raw, rng))
        try:
            volume = wmh.read_case(case, clip_percentiles=CLIP)
        except CaseError as error:
            assert str(path) in str(error), error
            assert len(str(error).splitlines()) == 1
            told["refused"] += 1
        else:
            wmh.write_volume(tmp_path / "back.nii", volume.mask, volume.grid, np.uint8)
            told["read"] += 1
    assert min(told.values()) > mutations / 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.fault("bad images")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "wmh.nii.gz")
    with pytest.raises(CaseError, match=r"wmh\.nii\.gz: a pipe or a device, not a regular file"):
        read_array(tmp_path / "wmh.nii.gz", "mask")
    assert read_header(tmp_path / "wmh.nii.gz") is None
    with pytest.raises(CaseError, match="a pipe or a device"):
        InputFile.read(tmp_path / "wmh.nii.gz")


@pytest.mark.fault("bad images")
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
    array, grid = nifti.read_array(case.wmh, "mask")
    np.testing.assert_array_equal(array, expected)
    wmh.write_volume(tmp_path / "back.nii.gz", array, grid, np.uint8)
    assert nib.load(tmp_path / "back.nii.gz").header["qform_code"] == 0
    assert not caplog.records


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_written_back_on_the_grid_it_came_from(tmp_path, affine, kind):
    source, target = tmp_path / "source.nii.gz", tmp_path / "new" / "target.nii.gz"
    stored = np.random.default_rng(3).random(SHAPE)
    image = kind(stored, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    nib.save(image, source)
    array, grid = nifti.read_array(source, "image")
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
    _, grid = nifti.read_array(tmp_path / "mark.nii.gz", "mask")
    z, y, x = np.argwhere(labels)[0]
    np.testing.assert_allclose(grid.canonical_affine @ [x, y, z, 1], world, atol=1e-4)
    wmh.write_volume(tmp_path / "back.nii.gz", labels, grid, np.uint8)
    back = nib.load(tmp_path / "back.nii.gz")
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_allclose(back.affine @ [*np.argwhere(back.get_fdata())[0], 1], world, atol=1e-4)


@pytest.mark.fault("interrupted write or computation")
def test_an_interrupted_write_leaves_the_old_file(case, monkeypatch):
    before = case.wmh.read_bytes()
    _, grid = nifti.read_array(case.wmh, "mask")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        wmh.write_volume(case.wmh, np.ones(SHAPE[::-1]), grid, np.uint8)
    assert case.wmh.read_bytes() == before
    assert sorted(os.listdir(case.folder)) == ["pre", "wmh.nii.gz"]


def test_a_wrong_shape_is_not_written(tmp_path, case):
    _, grid = nifti.read_array(case.wmh, "mask")
    with pytest.raises(ValueError, match="does not fit"):
        wmh.write_volume(tmp_path / "x.nii.gz", np.ones(SHAPE), grid, np.uint8)
    assert not (tmp_path / "x.nii.gz").exists()
