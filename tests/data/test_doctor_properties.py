"""The data doctor on generated files: no traceback, no wrong acceptance, no wrong refusal, memory in proportion.

What may be accepted is decided here by nibabel, gzip and the few lines of `sound`, not by the reader under test.
"""

import contextlib
import gc
import gzip
import io
import json
import tempfile
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import inv_ornt_aff, io_orientation
from scans import CLIP

from pdlib import profiles
from pdlib.__main__ import main
from pdlib.data import doctor

NAMES = ("pre/FLAIR.nii.gz", "pre/T1.nii.gz", "wmh.nii.gz")
PAPER = profiles.load_profile("paper")  # read once: it takes longer than a small case
BYTES_PER_VOXEL = 8  # as float64
SPARE = 2_000_000  # bytes, beside what grows with the files
PIECE = 2**24  # bytes, that the reader asks for at a time
quick = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, 1e-30, 3.0]), st.floats(width=32))
whole = st.integers(-(2**15), 2**15 - 1)
FIELDS = {
    "dim": st.lists(st.one_of(st.integers(-1, 6), whole), min_size=8, max_size=8),
    "datatype": st.one_of(st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2304]), whole),
    "bitpix": whole,
    "pixdim": st.lists(numbers, min_size=8, max_size=8),
    "vox_offset": numbers,
    "scl_slope": numbers,
    "scl_inter": numbers,
    "xyzt_units": st.integers(0, 255),
    "qform_code": st.one_of(st.integers(0, 4), whole),
    "sform_code": st.one_of(st.integers(0, 4), whole),
    **{f"quatern_{axis}": numbers for axis in "bcd"},
    **{f"qoffset_{axis}": numbers for axis in "xyz"},
    **{f"srow_{axis}": st.lists(numbers, min_size=4, max_size=4) for axis in "xyz"},
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b""]),
    "sizeof_hdr": st.sampled_from([348, 540, 0, 1543569408]),
}
damage = st.fixed_dictionaries({}, optional=FIELDS).filter(bool)
affines = st.builds(
    lambda order, signs, sizes, origin, turn: nib.affines.from_matvec(
        nib.eulerangles.euler2mat(*turn) @ np.eye(3)[list(order)] @ np.diag(np.array(signs) * sizes), origin
    ),
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(0.3, 8)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
    st.tuples(*[st.floats(-0.3, 0.3)] * 3),
)
shapes = st.tuples(*[st.integers(5, 14)] * 3)


def volumes(shape: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    """A bright block in the dark, in two contrasts, and a mask in it; [I, J, K]."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    flair, t1 = (inside * rng.integers(60, 120, shape) for _ in range(2))
    return dict(zip(NAMES, (flair, t1, (inside & (rng.random(shape) < 0.1)).astype(int)), strict=True))


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        path = root / "site" / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


def packed(array: np.ndarray, affine: np.ndarray, dtype: str = "int16", kind=nib.Nifti1Image) -> bytes:
    return gzip.compress(kind(array.astype(dtype), affine).to_bytes(), 1)


def sound(folder: Path) -> bool:
    """Whether nibabel can read all three, they lie on one grid, and hold what they should."""
    images, arrays, grids = [], [], []
    for name in NAMES:
        raw = (folder / name).read_bytes()
        images.append(nib.Nifti1Image.from_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw))
        axes = io_orientation(images[-1].affine)
        array = np.asarray(images[-1].dataobj, dtype=float)
        array = array.reshape(array.shape[:3]) if array.size == np.prod(array.shape[:3]) else array
        arrays.append(nib.orientations.apply_orientation(array, axes))
        grids.append(images[-1].affine @ inv_ornt_aff(axes, array.shape[:3]))
    flair, t1, mask = arrays
    corners = np.array(np.meshgrid(*([0, n] for n in flair.shape))).reshape(3, -1).T
    places = [nib.affines.apply_affine(grid, corners) for grid in grids]
    return bool(
        flair.ndim == 3
        and flair.shape == t1.shape == mask.shape
        and all(np.isfinite(one).all() for one in arrays)
        and all(np.abs(one - places[0]).max() <= 0.11 for one in places)
        and min(np.ptp(flair), np.ptp(t1)) > 0
        and not np.array_equal(flair, t1)
        and np.isin(np.rint(mask), (0, 1, 2)).all()
        and np.abs(mask - np.rint(mask)).max() < 0.01
    )


def checked(root: Path) -> dict:
    """What `check --json` prints; its exit code, counts and verdict agree, and stderr is empty."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(profiles, "load_profile", return_value=PAPER),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(["check", str(root), "--json"])
    report = json.loads(out.getvalue())
    severities = [one["severity"] for one in report["findings"]]
    assert err.getvalue() == "" and code == (1 if "error" in severities else 0)
    assert (report["verdict"] == "unsound") == (code == 1)
    assert {name: severities.count(name) for name in ("error", "warning", "note")}.items() <= report["counts"].items()
    refused = {one["case"] for one in report["cases"] if not one["accepted"]}
    assert refused == {one["case"] for one in report["findings"] if one["severity"] == "error"}
    for one in report["findings"]:
        assert one["what"].isprintable() and one["file"].startswith(str(root)) and one["remedy"]
        assert not one["what"].startswith("not looked at in full")
    return report


@pytest.mark.fault("bad images")
@settings(quick, max_examples=150)
@given(
    which=st.sampled_from(NAMES),
    fields=damage,
    affine=affines,
    shape=shapes,
    seed=st.integers(0, 9),
    zipped=st.booleans(),
)
def test_no_header_ends_in_a_traceback_or_a_wrong_acceptance(which, fields, affine, shape, seed, zipped):
    files = {name: packed(array, affine) for name, array in volumes(shape, seed).items()}
    raw = bytearray(gzip.decompress(files[which]))
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    files[which] = gzip.compress(bytes(raw), 1) if zipped else bytes(raw)
    with tempfile.TemporaryDirectory() as name, np.errstate(all="ignore"):
        root = write(Path(name), files)
        (case,) = checked(root)["cases"]
        assert not case["accepted"] or sound(root / "site" / "1")


@pytest.mark.fault("bad images")
@settings(quick, max_examples=40)
@given(which=st.sampled_from(NAMES), data=st.data(), shape=shapes)
def test_no_damaged_byte_stream_is_accepted(which, data, shape):
    files = {name: packed(array, np.eye(4)) for name, array in volumes(shape, 0).items()}
    raw = files[which]
    cut = data.draw(st.integers(0, len(raw) - 1))
    junk = data.draw(st.binary(max_size=40))
    flipped = bytearray(raw)
    at = data.draw(st.integers(10, len(raw) - 1))  # behind the name and time of gzip, which no checksum covers
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    files[which] = data.draw(st.sampled_from([raw[:cut], raw[:cut] + junk, bytes(flipped), junk]))
    with tempfile.TemporaryDirectory() as name:
        root = write(Path(name), files)
        (case,) = checked(root)["cases"]
        assert not case["accepted"] or gzip.decompress(files[which]) == gzip.decompress(raw)


@settings(quick, max_examples=40)
@given(
    affine=affines,
    shape=shapes,
    seed=st.integers(0, 9),
    dtype=st.sampled_from(["uint8", "int16", "int32", "uint16", "float32", "float64", ">i2", ">f4"]),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_no_sound_case_is_refused(affine, shape, seed, dtype, kind):
    files = {name: packed(array, affine, dtype, kind) for name, array in volumes(shape, seed).items()}
    with tempfile.TemporaryDirectory() as name:
        (case,) = checked(write(Path(name), files))["cases"]
    assert case["accepted"]
    order = [int(axis) for axis in io_orientation(affine)[:, 0].argsort()][::-1]
    assert case["shape_zyx"] == [shape[axis] for axis in order]


SPOILT = {
    "T1 elsewhere": lambda v, a: {NAMES[1]: packed(v[NAMES[1]], a + np.eye(4, k=3) * 0.5)},
    "mask mirrored": lambda v, a: {NAMES[2]: packed(v[NAMES[2]], a @ np.diag([-1, 1, 1, 1]))},
    "mask cropped": lambda v, a: {NAMES[2]: packed(v[NAMES[2]][:-1], a)},
    "fractions": lambda v, a: {NAMES[2]: packed(v[NAMES[2]] * 0.5, a, "float32")},
    "label 3": lambda v, a: {NAMES[2]: packed(v[NAMES[2]] * 3, a)},
    "negative label": lambda v, a: {NAMES[2]: packed(-v[NAMES[2]], a)},
    "NaN": lambda v, a: {NAMES[0]: packed(np.where(v[NAMES[0]] == v[NAMES[0]].max(), np.nan, 1), a, "float32")},
    "blank T1": lambda v, a: {NAMES[1]: packed(v[NAMES[1]] * 0, a)},
    "T1 is the FLAIR": lambda v, a: {NAMES[1]: packed(v[NAMES[0]], a, "float64")},
    "colour": lambda v, a: {NAMES[0]: packed(v[NAMES[0]], a, "complex64")},
    "four volumes": lambda v, a: {NAMES[0]: packed(np.stack([v[NAMES[0]]] * 4, -1), a)},
}


@pytest.mark.fault("bad images")
@settings(quick, max_examples=50)
@given(spoil=st.sampled_from(sorted(SPOILT)), affine=affines, shape=shapes, seed=st.integers(0, 9))
def test_no_spoilt_case_is_accepted(spoil, affine, shape, seed):
    held = volumes(shape, seed)
    held[NAMES[2]][2, 2, 2] = 1
    files = {name: packed(array, affine) for name, array in held.items()} | SPOILT[spoil](held, affine)
    with tempfile.TemporaryDirectory() as name:
        (case,) = checked(write(Path(name), files))["cases"]
    assert not case["accepted"]


def peak_bytes(root: Path) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        list(doctor.examine(root, clip_percentiles=CLIP))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(quick, max_examples=4)
@given(
    affine=affines,
    sides=st.tuples(*[st.floats(1.9, 2.3)] * 3),
    shape=st.tuples(*[st.integers(54, 57)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    orig=st.booleans(),
)
def test_memory_is_in_proportion_to_the_file(affine, sides, shape, dtype, orig):
    """Of a case with the size of a whole brain, which everything is looked at in."""
    affine[:, :3] *= sides / nib.affines.voxel_sizes(affine)
    held = volumes(shape, 0)
    files = {name: packed(array, affine, dtype) for name, array in held.items()}
    files |= {name.replace("pre", "orig"): files[name] for name in NAMES[:2] if orig}
    with tempfile.TemporaryDirectory() as name:
        root = write(Path(name), files)
        doctor.read_header(root / "site/1/wmh.nii.gz")  # imports
        assert all(case.accepted for case in doctor.examine(root, clip_percentiles=CLIP))
        peak = peak_bytes(root)
    assert peak <= doctor.MEMORY * BYTES_PER_VOXEL * np.prod(shape) + SPARE


@pytest.mark.fault("bad images")
@settings(quick, max_examples=6)
@given(
    dims=st.lists(st.integers(1, 2**15 - 1), min_size=3, max_size=3).filter(lambda dims: np.prod(dims) > 1e6),
    datatype=st.sampled_from([2, 4, 16, 64]),
)
def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(dims, datatype):
    files = {name: packed(array, np.eye(4)) for name, array in volumes((8, 8, 8), 0).items()}
    raw = bytearray(gzip.decompress(files[NAMES[0]]))
    header = np.frombuffer(raw, dtype=nib.Nifti1Header.template_dtype, count=1)
    header["dim"], header["datatype"] = [3, *dims, 1, 1, 1, 1], datatype
    files[NAMES[0]] = gzip.compress(bytes(raw), 1)
    with tempfile.TemporaryDirectory() as name:
        assert peak_bytes(write(Path(name), files)) < 2 * PIECE + SPARE
