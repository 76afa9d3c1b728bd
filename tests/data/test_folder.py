"""Which files of a folder are scans, by their names, and what stands against the others."""

import os
from pathlib import Path

import pytest

from pdlib.data.folder import find_scans
from pdlib.data.nifti import CaseError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root: Path, out: Path | None = None) -> dict[str, tuple]:
    """Scan -> its FLAIR, T1 and brain mask below the root, or its fault."""
    scans = find_scans(root, out)
    below = {
        one.name: [path and path.relative_to(root).as_posix() for path in (one.flair, one.t1, one.brain_mask)]
        for one in scans
    }
    return {one.name: one.fault or tuple(below[one.name]) for one in scans}


NAMED = {
    "plain": ("FLAIR.nii.gz", "T1.nii.gz"),
    "BIDS": ("anat/sub-01_FLAIR.nii.gz", "anat/sub-01_T1w.nii.gz"),
    "a scanner's": ("301_T2-flair_sag.nii", "201_3DT1_mprage.nii"),
    "one word": ("flair3d.nii.gz", "t1.nii.gz"),
    "the challenge": ("pre/FLAIR.nii.gz", "pre/T1.nii.gz"),
}
PASSED_OVER = [
    "FLAIR_lesions.nii.gz",
    "T1_ce.nii.gz",
    "t1ce.nii.gz",
    "T2.nii.gz",
    "flair_seg.nii.gz",
    "wmh.nii.gz",
    "notes.txt",
    ".FLAIR.nii.gz",
]


@pytest.mark.parametrize(("flair", "t1"), NAMED.values(), ids=NAMED)
def test_files_are_known_by_their_names(tmp_path, flair, t1):
    folder = Path(flair).parent.as_posix()
    touch(tmp_path / "sub-01", flair, t1, *(f"{folder}/{name}" for name in PASSED_OVER))
    touch(tmp_path / "sub-02", flair)
    name = "sub-01" if folder in (".", "pre") else "sub-01/anat"
    second = name.replace("sub-01", "sub-02")
    assert found(tmp_path) == {
        name: (f"sub-01/{flair}", f"sub-01/{t1}", None),
        second: (f"sub-02/{flair}", None, None),
    }


def test_a_brain_mask_beside_them_is_taken(tmp_path):
    touch(tmp_path / "a", "FLAIR.nii.gz", "FLAIR_brain_mask.nii.gz")
    touch(tmp_path / "b", "FLAIR.nii.gz", "brainmask.nii.gz")
    assert [one[2] for one in found(tmp_path).values()] == ["a/FLAIR_brain_mask.nii.gz", "b/brainmask.nii.gz"]


FAULTS = {
    "two FLAIRs": (["FLAIR.nii.gz", "FLAIR_2.nii.gz"], "several FLAIR images (FLAIR.nii.gz, FLAIR_2.nii.gz)"),
    "two T1s": (["FLAIR.nii.gz", "T1.nii.gz", "t1w.nii"], "several T1 images (T1.nii.gz, t1w.nii)"),
    "no FLAIR": (["T1.nii.gz"], "no FLAIR among its images (T1.nii.gz)"),
    "DICOM": (["series/IM1.dcm", "other/IM1.dcm"], "DICOM; convert it first: dcm2niix"),
}


@pytest.mark.fault("bad folders of data")
@pytest.mark.parametrize(("files", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_cannot_be_used_says_why_and_names_itself(tmp_path, files, fault):
    touch(tmp_path / "good", "FLAIR.nii.gz")
    touch(tmp_path / "bad", *files)
    scans = {one.name: one for one in find_scans(tmp_path)}
    assert len(scans) == 2 and scans.pop("good").fault == ""
    (bad,) = scans.values()
    assert fault in bad.fault and bad.fault.startswith(f"{tmp_path / 'bad'}")


def test_what_lies_beside_a_scan_of_the_same_patient_is_no_fault(tmp_path):
    touch(tmp_path / "sub-01", "flair/FLAIR.nii.gz", "t1/T1.nii.gz", "dicom/IM1.dcm")
    touch(tmp_path, "T1_template.nii.gz")
    assert list(found(tmp_path)) == ["sub-01/flair"]


def test_results_and_hidden_folders_are_not_entered(tmp_path):
    touch(tmp_path / "in" / "a", "FLAIR.nii.gz")
    touch(tmp_path / "in" / "out" / "a", "mask.nii.gz", "FLAIR.nii.gz")
    touch(tmp_path / "in" / ".trash", "FLAIR.nii.gz")
    touch(tmp_path / "in" / "additional_annotations" / "o1", "FLAIR.nii.gz")
    assert list(found(tmp_path / "in", tmp_path / "in" / "out")) == ["a"]
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert list(found(tmp_path / "in", tmp_path / "in" / "out")) == ["a"]


def test_a_folder_of_one_scan_is_one(tmp_path):
    touch(tmp_path / "me", "FLAIR.nii.gz")
    assert found(tmp_path / "me") == {"me": ("FLAIR.nii.gz", None, None)}


@pytest.mark.fault("bad folders of data")
def test_a_folder_without_scans_is_refused(tmp_path, record_property):
    record_property("faults", 3)
    with pytest.raises(CaseError, match=rf"^{tmp_path}: no scan found"):
        find_scans(tmp_path)
    with pytest.raises(CaseError, match=rf"^{tmp_path}/absent: no such folder"):
        find_scans(tmp_path / "absent")
    touch(tmp_path, "file")
    with pytest.raises(CaseError, match="not a folder"):
        find_scans(os.path.join(tmp_path, "file"))
