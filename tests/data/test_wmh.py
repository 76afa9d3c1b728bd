"""Cases: which folders are one, what a run takes and what it refuses, and what comes of a case."""

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINES, CLIP, SHAPE, change, flip_crc, rewrite_header, save, save_case, scans

from pdlib.data import wmh
from pdlib.data.wmh import CaseError


@pytest.fixture
def case(tmp_path: Path) -> wmh.Case:
    return save_case(tmp_path / "training" / "Utrecht" / "7")


def refusals(root: Path) -> dict[str, str]:
    """Subject -> cause."""
    read = wmh.accept_cases(root, clip_percentiles=CLIP)
    return {case.subject: str(one) for case, one in read if isinstance(one, CaseError)}


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


BAD_BRAINS = {
    "fractions": (lambda given: 0.3 * given, "threshold it first"),
    "a trace outside": (lambda given: given + 1e-6 * (given == 0), "threshold it first"),
    "negative": (lambda given: -given, "threshold it first"),
    "another shape": (lambda given: given[:-1], "shape"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("spoil", "cause"), BAD_BRAINS.values(), ids=BAD_BRAINS)
def test_every_mask_is_checked_alike(case, tmp_path, spoil, cause):
    given = np.zeros(SHAPE)
    given[3:9, 3:7, 2:4] = 1
    path = tmp_path / "brain.nii"
    save(path, spoil(given))
    with pytest.raises(CaseError, match=rf"^{path}: .*{cause}"):
        wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP, brain_mask_path=path)
    with pytest.raises(CaseError, match=rf"^{path}: .*{cause}"):
        wmh.read_score_pair(case.wmh, path)


def test_a_mask_of_labels_or_of_255_is_a_brain_and_a_full_one_is_noted(case, tmp_path):
    given = np.zeros(SHAPE)
    given[3:9, 3:7, 2:4] = 255
    given[3, 3, 2] = 2035
    save(tmp_path / "brain.nii", given)
    volume = wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP, brain_mask_path=tmp_path / "brain.nii")
    np.testing.assert_array_equal(volume.brain, given.T > 0)
    assert volume.notes == ()
    save(tmp_path / "brain.nii", np.ones(SHAPE))
    volume = wmh.read_images(case.flair, case.t1, clip_percentiles=CLIP, brain_mask_path=tmp_path / "brain.nii")
    assert volume.notes[0] == "the brain is 100.00% of the volume"


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


BAD_MASKS = {
    "label 3": (lambda p: change(p, (1, 1, 1), 3), "labels other than 0, 1, 2"),
    "wrong CRC": (flip_crc, "CRC"),
    "another shape": (lambda p: save(p, scans()[2][:, :, 1:]), "shape"),
    "elsewhere": (lambda p: save(p, scans()[2], AFFINES["RAS"] * [[1.02], [1], [1], [1]]), "affine"),
    "NaN": (lambda p: change(p, (5, 5, 3), np.nan), "NaN or Inf"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("damage", "cause"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_raters_mask_is_checked_like_the_experts(case, tmp_path, damage, cause):
    path = tmp_path / "additional_annotations/observer_o4/training/Utrecht/7/result.nii.gz"
    save(path, scans()[2])
    damage(path)
    with pytest.raises(CaseError, match=rf"^{path}: .*{cause}"):
        wmh.read_raters(tmp_path, case, wmh.read_case(case, clip_percentiles=CLIP).grid)
    assert refusals(tmp_path)["training/Utrecht/7"].startswith(f"{path}: ")


@pytest.mark.fault("bad folders of data")
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


@pytest.mark.fault("bad folders of data")
def test_a_root_without_cases_is_refused(tmp_path, record_property):
    record_property("faults", 2)
    with pytest.raises(CaseError, match=rf"^{tmp_path}: no case found"):
        wmh.find_cases(tmp_path)
    with pytest.raises(CaseError, match=rf"^{tmp_path}/absent: no such folder"):
        wmh.find_cases(tmp_path / "absent")


@pytest.mark.fault("bad folders of data")
def test_each_case_comes_with_its_volume_or_its_refusal(case, tmp_path):
    broken = tmp_path / "training" / "Utrecht" / "8"
    save(broken / "wmh.nii.gz", scans()[2])
    (sound, volume), (other, error) = wmh.accept_cases(tmp_path, clip_percentiles=CLIP)
    assert sound == case and np.array_equal(volume.image, wmh.read_case(case, clip_percentiles=CLIP).image)
    assert other.subject == "training/Utrecht/8" and str(error) == f"{other.flair}: missing FLAIR (no such file)"


SKIPPED = {
    "a snapshot": (".snapshot/daily", "hidden"),
    "a bin": (".Trash-0/files", "hidden"),
    "what fsck found": ("lost+found/#1234", "file system"),
    "a server's bin": ("#recycle", "file system"),
    "an archive's shadow": ("__MACOSX", "file system"),
}


@pytest.mark.fault("bad folders of data")
@pytest.mark.parametrize(("folder", "cause"), SKIPPED.values(), ids=SKIPPED)
def test_copies_in_a_hidden_folder_are_no_patients(case, tmp_path, folder, cause):
    save_case(tmp_path / folder / "Utrecht" / "7")
    save_case(tmp_path / "training" / folder / "7", seed=8)
    assert [found.subject for found in wmh.find_cases(tmp_path)] == ["training/Utrecht/7"]
    top = folder.split("/")[0]
    assert sorted(line.split(": ")[0] for line in wmh.skipped_folders(tmp_path)) == sorted(
        str(tmp_path / place / top) for place in ("", "training")
    )
    assert all(cause in line for line in wmh.skipped_folders(tmp_path))
    assert [found.subject for found in wmh.find_cases(tmp_path / folder)] == ["Utrecht/7"]


@pytest.mark.parametrize("marker", sorted(wmh.PHANTOM_FILES))
def test_our_phantoms_are_no_patients_unless_they_are_the_root(case, tmp_path, marker):
    runs = tmp_path / "runs" / "smoke" / "phantom-1234"
    save_case(runs / "training" / "Utrecht" / "0", seed=8)
    at = runs if marker == "phantom_settings.json" else runs / "training" / "Utrecht" / "0"
    (at / marker).write_text("{}")
    assert [found.subject for found in wmh.find_cases(tmp_path)] == ["training/Utrecht/7"]
    assert [line.split(": ")[0] for line in wmh.skipped_folders(tmp_path)] == [str(at)]
    with pytest.raises(CaseError, match=r"no case found .*phantom"):
        wmh.find_cases(tmp_path / "runs")
    (found,) = wmh.find_cases(at)
    assert found.subject == ("training/Utrecht/0" if at == runs else "0")


COPIES = {
    "all": lambda folder: save_case(folder),
    "stored otherwise": lambda folder: save_case(folder, dtype=np.int16),
    "FLAIR": lambda folder: [save_case(folder, seed=8), save(folder / "pre/FLAIR.nii.gz", scans()[0])],
    "T1": lambda folder: [save_case(folder, seed=8), save(folder / "pre/T1.nii.gz", scans()[1])],
}


@pytest.mark.fault("bad folders of data")
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_one_patient_under_two_names_is_refused_by_both_names(case, tmp_path, copy):
    copy(tmp_path / "training" / "Utrecht" / "copy of 7")
    save_case(tmp_path / "training" / "Utrecht" / "8", seed=9)
    assert refusals(tmp_path).keys() == {"training/Utrecht/copy of 7"}
    cause = refusals(tmp_path)["training/Utrecht/copy of 7"]
    assert "copy of 7: the same " in cause and "training/Utrecht/7: one patient under two names" in cause


@pytest.mark.fault("bad images")
def test_one_image_as_flair_and_t1_is_refused(case):
    save(case.t1, scans()[0], dtype=np.float64)
    with pytest.raises(CaseError, match=rf"^{case.t1}: the same image as the FLAIR, {case.flair}$"):
        wmh.read_case(case, clip_percentiles=CLIP)


@pytest.mark.fault("bad folders of data")
@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_a_name_that_is_not_utf8_is_refused_as_data(case, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "training") + b"/M\xfcller/7"))
    save_case(folder, seed=8)
    ((subject, cause),) = refusals(tmp_path).items()
    assert subject == "training/M\udcfcller/7"
    assert cause == rf"{tmp_path}/training/M\udcfcller/7: the folder's name is not UTF-8: rename it"
    assert cause.isascii()
    assert refusals(folder.parent).keys() == {"7"}


def test_a_line_break_in_a_name_stays_in_its_line(tmp_path):
    case = save_case(tmp_path / "a\nb" / "7")
    case.t1.unlink()
    (cause,) = refusals(tmp_path).values()
    assert "\n" not in cause and r"a\nb/7/pre/T1.nii.gz: missing T1" in cause


def deny(monkeypatch, *folders: Path) -> None:
    """As a folder without permission answers, also for root."""
    listed = os.scandir

    def scandir(path="."):
        if Path(path) in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.fault("bad folders of data")
def test_an_unreadable_folder_is_named_and_the_others_are_read(case, tmp_path, monkeypatch):
    closed, lost = tmp_path / "training" / "closed", tmp_path / "lost+found"
    for folder in (closed, lost):
        folder.mkdir()
    deny(monkeypatch, closed, lost)
    (_, error), (sound, volume) = wmh.accept_cases(tmp_path, clip_percentiles=CLIP)
    assert str(error) == f"{closed}: Permission denied" and sound == case and volume.lesion_ml > 0
    assert wmh.find_cases(tmp_path) == [case]
    deny(monkeypatch, tmp_path)
    with pytest.raises(CaseError, match=rf"^{tmp_path}: Permission denied"):
        wmh.find_cases(tmp_path)


def test_an_impossible_quaternion_ends_no_survey(case, tmp_path):
    broken = save_case(tmp_path / "training" / "Utrecht" / "8", seed=8)
    save_case(tmp_path / "training" / "Utrecht" / "9", seed=9)
    rewrite_header(broken.flair, qform_code=1, sform_code=0, quatern_b=7)
    read = dict(wmh.accept_cases(tmp_path, clip_percentiles=CLIP))
    assert [isinstance(one, CaseError) for one in read.values()] == [False, True, False]
    assert str(read[broken]).startswith(f"{broken.flair}: not a readable NIfTI file")


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), MemoryError(), ZeroDivisionError(), np.linalg.LinAlgError("no")]
)
def test_no_error_of_one_case_ends_the_survey(case, tmp_path, monkeypatch, error):
    save_case(tmp_path / "training" / "Utrecht" / "8", seed=8)
    read_case = wmh.read_case

    def read(one, **how):
        if one == case:
            raise error
        return read_case(one, **how)

    monkeypatch.setattr(wmh, "read_case", read)
    (_, refused), (_, volume) = wmh.accept_cases(tmp_path, clip_percentiles=CLIP)
    assert str(refused).startswith(f"{case.folder}: cannot be read ({type(error).__name__}")
    assert volume.lesion_ml > 0


def test_a_lesion_outside_the_brain_is_noted(case):
    assert wmh.read_case(case, clip_percentiles=CLIP).notes == ()
    change(case.wmh, (0, 0, 0), 1)
    assert wmh.read_case(case, clip_percentiles=CLIP).notes == ("33% of the lesion volume lies outside the brain",)


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
