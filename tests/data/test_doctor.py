"""The data doctor: each fault is found, in the file that has it, and nothing is found in sound cases."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from heads import head
from scans import CLIP, change, flip_crc, rewrite_header, save
from scans import save_case as save_small
from scipy import ndimage

from pdlib.data import doctor, wmh
from pdlib.data.doctor_folds import fold_findings
from pdlib.data.doctor_headers import read_header
from pdlib.data.doctor_images import fingerprint

SIZE = (5.0, 5.0, 6.0)  # x, y, z
AFFINE = nib.affines.from_matvec(np.diag(SIZE), [-100, -120, -90])
MIRRORED_QFORM = nib.affines.from_matvec(np.diag([-5.0, 5.0, 6.0]), [100, -120, -90])


def images(seed: int, *, skull: bool = False) -> dict[str, np.ndarray]:
    """FLAIR, T1 and mask [X, Y, Z] of a head with folds of its own, and lesions on one side."""
    rng = np.random.default_rng(seed)
    (flair, brain), (t1, _) = (head(SIZE[::-1], flair=flair, skull=skull, seed=seed) for flair in (True, False))
    shifts = [ndimage.gaussian_filter(rng.standard_normal(flair.shape), 3) for _ in range(3)]
    places = np.indices(flair.shape) + [1.5 * shift / shift.std() for shift in shifts]
    flair, t1 = (ndimage.map_coordinates(one, places, order=1) for one in (flair, t1))
    lesion = np.zeros_like(brain)
    lesion[17:20, 27 + seed % 3 : 31 + seed % 3, 12:16] = True
    flair, t1 = flair + 200 * lesion, t1 - 60 * lesion
    return {name: np.rint(np.maximum(one, 0)).T for name, one in (("FLAIR", flair), ("T1", t1), ("wmh", lesion))}


def write(folder: Path, held: dict[str, np.ndarray], affine: np.ndarray = AFFINE, orig: dict | None = None) -> wmh.Case:
    for name, array in held.items():
        save(folder / ("wmh.nii.gz" if name == "wmh" else f"pre/{name}.nii.gz"), array, affine, np.int16)
    for name, array in (orig or {}).items():
        save(folder / f"orig/{name}.nii.gz", array, affine, np.int16)
    return wmh.Case(folder.name, folder.parent.name, folder)


def found(root: Path) -> list[doctor.Finding]:
    return [one for case in doctor.examine(root, clip_percentiles=CLIP) for one in case.findings]


def said(findings: list[doctor.Finding]) -> str:
    for one in findings:
        assert one.severity in ("error", "warning", "note") and one.remedy and "\n" not in one.what + one.file
    return "\n".join(f"{one.severity}: {one.file}: {one.what}" for one in findings)


ONE = images(1)


def shaded(held: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """FLAIR and T1 as a coil sees them."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in held["FLAIR"].shape), indexing="ij")
    field = np.exp(0.25 * (x + 0.5 * y - z * z) * (1 if seed == 0 else -1))
    return {name: np.rint(held[name] * field) for name in ("FLAIR", "T1")}


@pytest.mark.parametrize("skull", [False, True])
def test_sound_cases_have_no_finding(tmp_path, skull):
    for seed in (1, 2):
        held = images(seed, skull=skull)
        write(tmp_path / "Utrecht" / str(seed), held, orig=shaded(held))
    assert found(tmp_path) == []


def swap(held: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return held | {"FLAIR": held["T1"], "T1": held["FLAIR"]}


IMAGES = {
    "swapped": (lambda: swap(ONE), "warning: pre/FLAIR.nii.gz: FLAIR and T1 look swapped (white matter"),
    "swapped, with skull": (lambda: swap(images(1, skull=True)), "FLAIR and T1 look swapped (lesions are brighter on"),
    "mask mirrored": (lambda: ONE | {"wmh": ONE["wmh"][::-1]}, "wmh.nii.gz: mirrored left to right the lesions"),
    "mask upside down": (lambda: ONE | {"wmh": ONE["wmh"][:, :, ::-1]}, "wmh.nii.gz: mirrored bottom to top the les"),
    "mask in CSF": (
        lambda: ONE | {"wmh": np.roll(ONE["wmh"], (7, -5, -3), (0, 1, 2))},
        "wmh.nii.gz: the lesions are hardly brighter",
    ),
    "mask outside": (
        lambda: ONE | {"wmh": np.roll(ONE["wmh"], 19, 1)},
        "wmh.nii.gz: 100% of the lesion volume lies",
    ),
    "empty mask": (lambda: ONE | {"wmh": 0 * ONE["wmh"]}, "warning: wmh.nii.gz: empty mask (no voxel is 1)"),
    "label 2 alone": (lambda: ONE | {"wmh": 2 * ONE["wmh"]}, "wmh.nii.gz: empty mask (no voxel is 1, some are 2)"),
    "a brain mask": (lambda: ONE | {"wmh": ONE["FLAIR"] > 0}, "% as large as the brain"),
    "a T2 as FLAIR": (
        lambda: ONE | {"FLAIR": np.where(ONE["FLAIR"] > 0, 600 - ONE["FLAIR"], 0)},
        "pre/FLAIR.nii.gz: CSF, dark on the T1, is bright",
    ),
}


@pytest.mark.parametrize(("held", "expected"), IMAGES.values(), ids=IMAGES)
def test_what_images_show_is_found(tmp_path, held, expected):
    case = write(tmp_path / "Utrecht" / "1", held())
    text = said(found(tmp_path)).replace(f"{case.folder}/", "")
    assert expected in text
    assert "swapped" not in text or "mirrored" not in text, "one reading of a case, not two"


def with_forms(case: wmh.Case, sform=AFFINE, qform=AFFINE, codes: tuple[int, int] = (1, 1)) -> None:
    for path in (case.flair, case.t1, case.wmh):
        image = nib.load(path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        image.header.set_sform(sform, codes[0])
        image.header.set_qform(qform, codes[1])
        nib.save(image, path)


def scaled(factor: float) -> np.ndarray:
    return AFFINE @ np.diag([factor, factor, factor, 1])


SHEARED = AFFINE @ [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), [0, 0, 0]) @ AFFINE
MOVED = nib.affines.from_matvec(np.eye(3), [0, 7, 0]) @ AFFINE
HEADERS: dict[str, tuple[Callable[[wmh.Case], object], str]] = {
    "forms mirrored": (
        lambda c: with_forms(c, qform=MIRRORED_QFORM),
        "warning: {t1}: sform and qform disagree (the axes",
    ),
    "forms moved": (lambda c: with_forms(c, qform=MOVED), "warning: {wmh}: sform and qform disagree (up to 7 mm)"),
    "no form": (lambda c: with_forms(c, codes=(0, 0)), "warning: {flair}: neither sform nor qform says"),
    "impossible qform": (
        lambda c: rewrite_header(c.wmh, qform_code=1, quatern_b=7),
        "warning: {wmh}: the qform is impossible",
    ),
    "written sizes": (
        lambda c: rewrite_header(c.t1, pixdim=[1, 1, 1, 1, 0, 0, 0, 0], qform_code=0),
        "warning: {t1}: voxel sizes are 1 x 1 x 1 mm as written, 5 x 5 x 6 mm by the affine",
    ),
    "metres for mm": (
        lambda c: write(c.folder, ONE, scaled(0.01)),
        "{flair}: suspicious spacing: voxels of 0.05 x",
    ),
    "small": (
        lambda c: write(c.folder, ONE, scaled(0.25)),
        "{wmh}: suspicious spacing: the image is 52.5 x",
    ),
    "small head": (
        lambda c: write(c.folder, ONE, scaled(0.5)),
        "{flair}: suspicious spacing: the head has 0.2 l",
    ),
    "sheared": (lambda c: write(c.folder, ONE, SHEARED), "warning: {t1}: its axes are not at right angles"),
    "stored otherwise": (
        lambda c: save(c.wmh, ONE["wmh"][::-1], AFFINE @ [[-1, 0, 0, 41], *np.eye(4)[1:]]),
        "note: {wmh}: its axes are stored as LAS, the FLAIR's as RAS",
    ),
    "moved": (lambda c: save(c.t1, ONE["T1"], MOVED), "{t1}: against the FLAIR it is shifted by (0, 7, 0) mm"),
    "turned": (
        lambda c: save(c.wmh, ONE["wmh"], TURNED),
        "{wmh}: against the FLAIR it is turned by 11 degrees",
    ),
    "other voxels": (
        lambda c: save(c.wmh, ONE["wmh"], scaled(1.1)),
        "{wmh}: against the FLAIR it is of other voxels",
    ),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("damage", "expected"), HEADERS.values(), ids=HEADERS)
def test_what_headers_claim_is_found(tmp_path, damage, expected):
    case = write(tmp_path / "Utrecht" / "1", ONE)
    damage(case)
    assert expected.format(flair=case.flair, t1=case.t1, wmh=case.wmh) in said(found(tmp_path))


def test_a_header_is_read_without_the_voxels(tmp_path):
    case = write(tmp_path / "Utrecht" / "1", ONE)
    case.wmh.write_bytes(case.wmh.read_bytes()[:400])
    np.testing.assert_array_equal(read_header(case.wmh).get_best_affine(), AFFINE)
    for nothing in (b"", b"\x1f\x8b", b"x" * 600):
        case.wmh.write_bytes(nothing)
        assert read_header(case.wmh) is None


TWO = images(2)
ORIG = {
    "the same": (
        ONE,
        {name: ONE[name] for name in ("FLAIR", "T1")},
        "pre/T1.nii.gz: the same image as the T1 in orig",
    ),
    "scaled": (ONE, {"FLAIR": 3 * ONE["FLAIR"]}, "pre/FLAIR.nii.gz: the same image as the FLAIR in orig/"),
    "exchanged": (ONE | shaded(ONE), ONE, "warning: pre: pre/ and orig/ look exchanged"),
    "swapped in orig": (ONE, swap(shaded(ONE)), "pre/T1.nii.gz: shows another image than the T1 in orig/ (correlation"),
    "another patient's": (ONE, shaded(TWO), "pre/FLAIR.nii.gz: shows another image than the FLAIR in orig/"),
    "another grid": (
        ONE,
        {"FLAIR": ONE["FLAIR"][1:]},
        "note: orig/FLAIR.nii.gz: lies on another grid",
    ),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("pre", "orig", "expected"), ORIG.values(), ids=ORIG)
def test_pre_and_orig_are_compared(tmp_path, pre, orig, expected):
    case = write(tmp_path / "Utrecht" / "1", pre, orig={name: orig[name] for name in ("FLAIR", "T1") if name in orig})
    text = said(found(tmp_path)).replace(f"{case.folder}/", "")
    assert expected in text
    assert ("which is that of the FLAIR in pre/" in text) == (orig is ORIG["swapped in orig"][1])


@pytest.mark.fault("bad images")
def test_a_broken_original_refuses_nothing(tmp_path):
    case = write(tmp_path / "Utrecht" / "1", ONE, orig=shaded(ONE))
    (case.folder / "orig" / "T1.nii.gz").write_bytes(b"")
    (only,) = found(tmp_path)
    assert (only.severity, only.what) == ("note", "cannot be compared with T1 in pre/: empty file (0 bytes)")


def shuffled(image: np.ndarray) -> np.ndarray:
    """Another image of the same outline."""
    other, inside = image.copy(), image > 60
    other[inside] = np.random.default_rng(0).permutation(image[inside])
    return other


COPIES = {
    "scaled": lambda held: held | {name: np.rint(1.7 * held[name]) for name in ("FLAIR", "T1")},
    "mirrored": lambda held: {name: one[::-1] for name, one in held.items()},
    "padded": lambda held: {name: np.pad(one, ((3, 2), (4, 0), (1, 1))) for name, one in held.items()},
    "shaded": lambda held: held | shaded(held),
    "the T1 alone": lambda held: {"FLAIR": shuffled(held["FLAIR"]), "T1": np.rint(1.7 * held["T1"])},
    "the mask alone": lambda held: TWO | {"wmh": held["wmh"]},
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_however_it_was_changed(tmp_path, copied):
    write(tmp_path / "Utrecht" / "1", ONE)
    moved = TWO | {"wmh": np.roll(TWO["wmh"], 1, 2)}
    write(tmp_path / "Utrecht" / "2", copied(ONE) if copied is COPIES["the mask alone"] else moved | copied(ONE))
    first, second = doctor.examine(tmp_path, clip_percentiles=CLIP)
    assert first.findings == () and second.accepted and second.doubles == ("Utrecht/1",)
    assert "of Utrecht/1" in said(second.findings) and "warning" in said(second.findings)


def test_a_fingerprint_tells_patients_apart():
    prints = [fingerprint(held["FLAIR"].T, held["FLAIR"].T > 0) for held in (ONE, TWO, images(3))]
    same = np.array([[np.vdot(one, other) for one in prints] for other in prints])
    np.testing.assert_allclose(np.diag(same), 1, atol=1e-5)
    assert np.abs(same - np.diag(np.diag(same))).max() < 0.75
    blank = np.ones((3, 3, 3), np.float32)
    assert not fingerprint(blank, blank > 0).any()


def test_a_size_unlike_the_sites_is_noted():
    def case(name: str, size: float) -> doctor.Examined:
        return doctor.Examined(name, "Utrecht", name, True, (), (40, 40, 40), (3.0, 1.0, size), 1.0)

    usual = [case(str(number), 1 + 0.01 * number) for number in range(4)]
    notes = [one for one in doctor.conclude("x", [*usual, case("4", 1.3)], None, folds_wanted=("p", 5)) if one.case]
    assert [(one.case, one.severity) for one in notes] == [("4", "note")]
    assert "3 x 1 x 1.3 mm, where most of Utrecht have 3 x 1 x 1.02 mm" in notes[0].what


FOLDS = {
    "sound": ("a,0\nb,1\nc,2\n", []),
    "in two": ("a,0\nb,1\nc,2\na,2\n", [("a", "error", "a subject in folds 0 and 2")]),
    "twice": ("a,0\nb,1\nc,2\na,0\n", [("a", "error", "a subject in fold 0 twice")]),
    "left out": ("a,0\nb,1\n", [("", "note", "1 cases are in no fold: c")]),
    "unknown": ("a,0\nb,1\nc,2\nNA,3\n", [("", "warning", "1 of its subjects are no cases of the folder: NA")]),
    "a word": ("a,x\nb,1\nc,2\n", [("a", "error", "fold 'x' is no whole number from 0 on")]),
    "below 0": ("a,-3\nb,1\nc,2\n", [("a", "error", "fold '-3' is no whole number from 0 on")]),
    "copies apart": ("a,0\nb,1\nc,2\nd,1\n", [("d", "error", "is a copy of a, in folds 0 and 1")]),
    "copies together": ("a,0\nb,1\nc,2\nd,0\n", []),
}


@pytest.mark.parametrize(("rows", "expected"), FOLDS.values(), ids=FOLDS)
def test_folds_are_a_partition_of_the_cases(tmp_path, rows, expected):
    (tmp_path / "folds.csv").write_text(f"subject,fold\n{rows}")
    doubled = fold_findings(tmp_path / "folds.csv", ["a", "b", "c"], ["d"], [("d", "a", True)])
    assert [(one.case, one.severity, one.what) for one in doubled] == expected


@pytest.mark.parametrize("raw", [b"", b"name,fold\na,0\n", b"\xff\xfe\x00", b'subject,fold\n"a,0\n'])
def test_folds_that_cannot_be_read_are_an_error(tmp_path, raw):
    (tmp_path / "folds.csv").write_bytes(raw)
    (only,) = fold_findings(tmp_path / "folds.csv", ["a"], [], [])
    assert only.severity == "error" and only.what.startswith("the folds cannot be read (") and "\n" not in only.what


def test_a_folder_in_the_place_of_the_folds_is_an_error(tmp_path):
    (tmp_path / "folds.csv").mkdir()
    (only,) = fold_findings(tmp_path / "folds.csv", ["a"], [], [])
    assert only.severity == "error" and only.what.startswith("the folds cannot be read (")


REFUSALS = {
    "missing": (lambda c: c.t1.unlink(), "put the file there"),
    "empty": (lambda c: c.t1.write_bytes(b""), "fetch or convert the file again"),
    "cut": (lambda c: c.flair.write_bytes(c.flair.read_bytes()[:-20]), "fetch or convert the file again"),
    "CRC": (lambda c: flip_crc(c.flair), "fetch or convert the file again"),
    "no NIfTI": (lambda c: c.t1.write_bytes(b"x" * 600), "export the image as NIfTI"),
    "NaN": (lambda c: change(c.t1, (5, 5, 3), np.nan), "set these voxels to 0"),
    "labels": (lambda c: change(c.wmh, (5, 5, 3), 3), "write 0 for background"),
    "shape": (lambda c: save(c.wmh, np.zeros((12, 10, 5))), "take the one that the challenge has in pre/"),
    "one image": (lambda c: save(c.t1, np.asarray(nib.load(c.flair).dataobj)), "put the right T1 in its place"),
    "blank": (lambda c: save(c.t1, np.ones((12, 10, 6))), "export the image again"),
    "metres": (lambda c: rewrite_header(c.t1, xyzt_units=1), "correct the header"),
    "singular": (lambda c: rewrite_header(c.t1, srow_x=0), "correct the header"),
    "not finite": (lambda c: rewrite_header(c.t1, srow_x=np.nan, sform_code=1, qform_code=1), "correct the header"),
    "complex": (lambda c: rewrite_header(c.t1, datatype=32, bitpix=64), "write the image with a plain type of number"),
    "a copy": (lambda c: save_small(c.folder.with_name("8")), "keep one of the two folders"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("damage", "remedy"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_has_its_file_and_its_remedy(tmp_path, damage, remedy):
    damage(save_small(tmp_path / "Utrecht" / "7"))
    refusals = [error for _, error in wmh.accept_cases(tmp_path, clip_percentiles=CLIP) if isinstance(error, Exception)]
    (error,) = [one for one in found(tmp_path) if one.severity == "error"]
    assert [f"{error.file}: {error.what}"] == [str(one) for one in refusals] and error.remedy.startswith(remedy)


def test_a_look_that_fails_is_said_and_refuses_nothing(tmp_path, monkeypatch):
    def fail(volume):
        raise MemoryError("much")

    monkeypatch.setattr(doctor, "mask_oddities", fail)
    write(tmp_path / "Utrecht" / "1", ONE)
    (one,) = doctor.examine(tmp_path, clip_percentiles=CLIP)
    assert one.accepted and [(f.severity, f.what) for f in one.findings] == [
        ("note", "not looked at in full (MemoryError: much)")
    ]
