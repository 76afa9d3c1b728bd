"""One patient's files through `segment`: what comes out, on which grid, and what is refused in one line."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pdlib import paths
from pdlib.__main__ import main
from pdlib.data import wmh
from pdlib.inference import segment

SPACING = (4.8, 4.0, 3.0)  # of the tiny networks' training, x, y, z
REAL = os.environ.get("PDLIB_REAL_DATA")


def matrix(spacing=SPACING, turn=(0, 0, 0)):
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(*turn) @ np.diag(spacing), [-40, 90, -30])


def patient(seed=20, fold=1):
    """FLAIR and T1 [X, Y, Z] of an ellipsoid with a bright part; each voxel split in-plane into fold x fold."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 24, 5)), indexing="ij")
    inside = (x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 1.3) ** 2 < 1
    bright = (abs(x - 0.2) < 0.3) & (abs(y) < 0.3)
    flair = inside * (300 + 250 * bright + 20 * rng.standard_normal(inside.shape))
    t1 = inside * (500 - 150 * bright + 20 * rng.standard_normal(inside.shape))
    return [scan.repeat(fold, axis=0).repeat(fold, axis=1) for scan in (flair, t1)]


def write(path: Path, array, affine=None, dtype=np.float32, kind=nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(array.astype(dtype), matrix() if affine is None else affine), path)
    return path


def write_pair(folder: Path, affine=None, fold=1, **how) -> tuple[Path, Path]:
    names = ("FLAIR.nii.gz", "T1.nii.gz")
    return tuple(write(folder / n, scan, affine, **how) for n, scan in zip(names, patient(fold=fold), strict=True))


def run(networks, flair, t1, out, **more):
    """`python -m pdlib segment`; its exit code."""
    options = {"--flair": flair, "--t1": t1, "--out": out, "--weights": networks.weights, **more}
    return main(["segment", *(str(part) for pair in options.items() for part in pair)])


def volumes(folder: Path) -> dict[str, nib.Nifti1Image]:
    return {name: nib.load(folder / f"{name}.nii.gz") for name in ("mask", "mean", "uncertainty")}


def check_outputs(flair: Path, out: Path) -> dict[str, np.ndarray]:
    """On the FLAIR's grid, in range, agreeing with each other; as arrays."""
    given, found = nib.load(flair), {}
    for name, image in volumes(out).items():
        assert image.shape == given.shape[:3], name
        np.testing.assert_allclose(image.affine, given.affine, atol=1e-4)
        found[name] = np.asarray(image.dataobj)
    kinds = {name: array.dtype.name for name, array in found.items()}
    assert kinds == {"mask": "uint8", "mean": "float32", "uncertainty": "float32"}
    np.testing.assert_array_equal(found["mask"] == 1, found["mean"] >= 0.5)
    assert 0 <= found["mean"].min() and found["mean"].max() <= 1
    assert found["mean"].max() > 0 and 0 < found["uncertainty"].max() <= 0.25
    assert (out / "overlay.png").read_bytes().startswith(b"\x89PNG")
    return found


GRIDS = {
    "LAS": ("LAS", matrix()),
    "PSR": ("PSR", matrix()),
    "oblique": ("RAS", matrix(turn=(0.2, -0.1, 0.3))),
    "oblique LPS": ("LPS", matrix(turn=(0.1, 0.2, -0.3))),
}


@pytest.fixture(scope="module")
def upright(networks, tmp_path_factory):
    """The patient stored along RAS, segmented."""
    folder = tmp_path_factory.mktemp("upright")
    flair, t1 = write_pair(folder)
    assert run(networks, flair, t1, folder / "out") == 0
    return check_outputs(flair, folder / "out")


@pytest.mark.parametrize(("axes", "affine"), GRIDS.values(), ids=GRIDS)
def test_however_the_scan_is_stored_the_answer_is_the_same(networks, upright, tmp_path, axes, affine):
    """The same voxels under other axes: the same prediction, under those axes."""
    turn = ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(axes))
    pair = write_pair(tmp_path, affine)
    for path in pair:
        upright_scan = nib.Nifti1Image.from_bytes(nib.load(path).to_bytes())
        nib.save(upright_scan.as_reoriented(turn), path)
    assert nib.aff2axcodes(nib.load(pair[0]).affine) == tuple(axes)
    assert run(networks, *pair, tmp_path / "out") == 0
    check_outputs(pair[0], tmp_path / "out")
    for name, image in volumes(tmp_path / "out").items():
        back = nib.as_closest_canonical(image)
        np.testing.assert_allclose(np.asarray(back.dataobj), upright[name], atol=1e-5, err_msg=name)


def test_other_voxels_are_resampled_to_those_of_the_training_and_back(networks, upright, tmp_path, monkeypatch):
    seen = []
    sample_members = segment.sample_members

    def spy(network, volume, *arguments, **settings):
        seen.append((volume.brain.shape, volume.spacing_mm))
        return sample_members(network, volume, *arguments, **settings)

    monkeypatch.setattr(segment, "sample_members", spy)
    flair, t1 = write_pair(tmp_path, matrix((2.4, 2.0, 3.0)), fold=2)
    assert run(networks, flair, t1, tmp_path / "out") == 0
    shape, spacing = seen[0]
    assert shape == (5, 24, 20) and spacing == pytest.approx((3.0, 4.0, 4.8), rel=1e-5)
    fine = check_outputs(flair, tmp_path / "out")["mean"]
    coarse = fine.reshape(20, 2, 24, 2, 5).mean(axis=(1, 3))
    assert coarse.shape == upright["mean"].shape
    brain = upright["mean"] > 0
    assert np.count_nonzero((coarse > 0) != brain) < 0.25 * np.count_nonzero(brain)


def test_the_same_files_give_the_same_bytes(networks, tmp_path):
    flair, t1 = write_pair(tmp_path)
    for out in ("one", "two"):
        assert run(networks, flair, t1, tmp_path / out) == 0
    for name in ("mask", "mean", "uncertainty"):
        one, two = (tmp_path / out / f"{name}.nii.gz" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_nothing_is_found_outside_a_given_brain(networks, tmp_path):
    flair, t1 = write_pair(tmp_path)
    brain = np.zeros((20, 24, 5))
    brain[5:12, 6:20, 1:3] = 1
    mask = write(tmp_path / "brain.nii.gz", brain)
    assert run(networks, flair, t1, tmp_path / "out", **{"--brain-mask": mask}) == 0
    found = check_outputs(flair, tmp_path / "out")
    assert not found["mean"][brain == 0].any() and not found["uncertainty"][brain == 0].any()


@pytest.mark.parametrize("phantom", [True, False])
def test_what_a_phantom_taught_is_no_finding(networks, tmp_path, capsys, monkeypatch, phantom):
    load_denoiser = segment.load_denoiser

    def load(*arguments):
        network, card = load_denoiser(*arguments)
        return network, card | {"data": card["data"] | {"phantom": phantom}}

    monkeypatch.setattr(segment, "load_denoiser", load)
    assert run(networks, *write_pair(tmp_path), tmp_path / "out") == 0
    line = "networks trained on a phantom: a demonstration, no medical finding"
    assert (line in capsys.readouterr().err.splitlines()) == phantom


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pdlib: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


def test_missing_weights_are_named(networks, tmp_path, capsys, monkeypatch):
    flair, t1 = write_pair(tmp_path)
    empty = tmp_path / "no weights"
    assert run(networks, flair, t1, tmp_path / "out", **{"--weights": empty}) == 2
    assert str(empty) in one_line(capsys)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert main(["segment", "--flair", str(flair), "--t1", str(t1), "--out", str(tmp_path / "out")]) == 2
    line = one_line(capsys)
    assert str(tmp_path / "runs") in line and "--weights" in line
    assert not (tmp_path / "out").exists()


def test_weights_without_their_segmenter_are_named(trained, tmp_path, capsys):
    trained.preseg.unlink()
    assert run(trained, *write_pair(tmp_path), tmp_path / "result") == 2
    assert str(trained.preseg) in one_line(capsys)


def huge(path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((30000, 30000, 30000))
    path.write_bytes(header.binaryblock + b"\0" * 1000)


def with_nan(path: Path) -> None:
    scan = patient()[0]
    scan[3, 3, 3] = np.nan
    write(path, scan)


BAD = {
    "truncated gzip": ("FLAIR", lambda p: p.write_bytes(p.read_bytes()[:-200]), "truncated"),
    "zero bytes": ("T1", lambda p: p.write_bytes(b""), "empty file"),
    "4D": ("FLAIR", lambda p: write(p, np.ones((20, 24, 5, 2))), "3D"),
    "another shape": ("T1", lambda p: write(p, patient()[1][1:]), "shape"),
    "another affine": ("T1", lambda p: write(p, patient()[1], matrix(turn=(0, 0, 0.2))), "affine"),
    "missing T1": ("T1", Path.unlink, "missing T1"),
    "NaN": ("FLAIR", with_nan, "NaN"),
    "all zero": ("FLAIR", lambda p: write(p, np.zeros((20, 24, 5))), "no contrast"),
    "complex": ("FLAIR", lambda p: write(p, patient()[0], dtype=np.complex64), "not plain numbers"),
    "a huge claim": ("FLAIR", huge, "limit"),
}


@pytest.mark.parametrize(("which", "damage", "cause"), BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_line_that_names_the_file(networks, tmp_path, capsys, which, damage, cause):
    flair, t1 = write_pair(tmp_path)
    path = {"FLAIR": flair, "T1": t1}[which]
    damage(path)
    assert run(networks, flair, t1, tmp_path / "out") == 2
    line = one_line(capsys)
    assert line.startswith(f"pdlib: {path}: ") and cause in line
    assert not (tmp_path / "out").exists()


GUISES = {
    "big-endian": lambda p, a: nib.save(
        nib.Nifti1Image(a.astype(">f4"), matrix(), nib.Nifti1Header(endianness=">")), p
    ),
    "NIfTI-2": lambda p, a: write(p, a, kind=nib.Nifti2Image),
    "float64": lambda p, a: write(p, a.astype(np.float32), dtype=np.float64),
}


@pytest.mark.parametrize("store", GUISES.values(), ids=GUISES)
def test_other_guises_of_the_same_scan_are_accepted(networks, upright, tmp_path, store):
    folder = tmp_path / "Müller, Zoë 山田"
    folder.mkdir()
    pair = folder / "FLAIR.nii.gz", folder / "T1.nii.gz"
    for path, scan in zip(pair, patient(), strict=True):
        store(path, scan)
    assert run(networks, *pair, folder / "Ergebnis für 山田") == 0
    found = check_outputs(pair[0], folder / "Ergebnis für 山田")
    np.testing.assert_allclose(found["mean"], upright["mean"], atol=1e-5)


@pytest.mark.skipif(not REAL, reason="PDLIB_REAL_DATA does not name a folder of real cases")
def test_real_cases_keep_their_grid(networks, tmp_path):
    cases = wmh.find_cases(Path(REAL))
    for case in cases:
        out = tmp_path / case.subject
        assert run(networks, case.flair, case.t1, out) == 0
        check_outputs(case.flair, out)
