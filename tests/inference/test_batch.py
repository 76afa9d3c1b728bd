"""A folder of scans: each has its outcome, a bad one stops no other, and what is done stays done."""

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from patients import CARDS, change_card, check_outputs, patient, run, write, write_networks, write_pair

from pdlib.inference import batch, segment


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_networks(tmp_path_factory.mktemp("trained") / "weights")


def table(out: Path) -> dict[str, dict]:
    with (out / batch.TABLE).open(encoding="utf-8", newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def scans(root: Path) -> dict[str, Path]:
    """Two sound scans, in two layouts, and between them five that cannot be segmented."""
    write_pair(root / "a")
    write_pair(root / "z" / "pre")
    broken = {name: root / name / "FLAIR.nii.gz" for name in ("b truncated", "c alone", "d elsewhere")}
    for path in broken.values():
        write_pair(path.parent)
    broken["b truncated"].write_bytes(broken["b truncated"].read_bytes()[:-200])
    (root / "c alone" / "T1.nii.gz").unlink()
    affine = np.diag([4.8, 4.0, 3.0, 1.0])
    affine[:3, 3] = 900
    broken["d elsewhere"] = write(root / "d elsewhere" / "T1.nii.gz", patient()[1], affine)
    (root / "e dicom").mkdir()
    (root / "e dicom" / "1.dcm").write_bytes(b"no matter")
    write(root / "f two" / "FLAIR.nii.gz", patient()[0])
    write(root / "f two" / "FLAIR_2.nii.gz", patient()[0])
    return broken | {"e dicom": root / "e dicom", "f two": root / "f two"}


@pytest.mark.fault("bad folders of data")
def test_one_bad_scan_stops_no_other_and_a_second_run_does_what_is_left(
    weights, tmp_path, capsys, monkeypatch, record_property
):
    root, out = tmp_path / "in", tmp_path / "out"
    broken = scans(root)
    record_property("faults", len(broken))
    assert run(weights, None, None, None, folder=(root, out)) == 1
    text, err = capsys.readouterr()
    assert "scan 1 of 7: a" in err.splitlines() and "Traceback" not in err
    lines = text.splitlines()
    by_case = {line.split("  ")[1]: line for line in lines[:7]}
    assert [line.split()[0] for line in lines[:7]] == ["done", *["failed"] * 5, "done"]
    for case, path in broken.items():
        assert str(path) in by_case[case], case
    assert "give --t1 FILE" in by_case["c alone"] and "dcm2niix" in by_case["e dicom"]
    assert lines[7] == "2 done, 0 kept, 5 failed" and lines[8] == f"table: {out / batch.TABLE}"
    check_outputs(root / "a" / "FLAIR.nii.gz", out / "a")
    found = check_outputs(root / "z" / "pre" / "FLAIR.nii.gz", out / "z")
    rows = table(out)
    assert list(rows) == ["a", "b truncated", "c alone", "d elsewhere", "e dicom", "f two", "z"]
    assert float(rows["z"]["lesion_ml"]) == pytest.approx(np.count_nonzero(found["mask"]) * 4.8 * 4 * 3 / 1000)
    assert rows["b truncated"]["lesion_ml"] == "" and "truncated" in rows["b truncated"]["about"]

    write_pair(broken["b truncated"].parent)
    before = {path: path.stat().st_mtime_ns for path in (out / "a").iterdir()}
    monkeypatch.setattr(
        batch,
        "segment_scan",
        lambda ready, scan, folder: seen.append(scan.name) or segment.segment_scan(ready, scan, folder),
    )
    seen = []
    assert run(weights, None, None, None, folder=(root, out)) == 1
    assert seen == ["b truncated", "c alone", "d elsewhere"]
    assert {path: path.stat().st_mtime_ns for path in (out / "a").iterdir()} == before
    again = table(out)
    assert [row["status"] for row in again.values()] == ["kept", "done", *["failed"] * 4, "kept"]
    assert again["a"]["lesion_ml"] == rows["a"]["lesion_ml"] and again["a"]["seconds"] == ""


CHANGED = {
    "another threshold": lambda root, out, weights: {"threshold": 0.4},
    "other networks": lambda root, out, weights: {"weights": change_card(weights, "denoiser_0", step=3).parents[1]},
    "another FLAIR": lambda root, out, weights: write(root / "FLAIR.nii.gz", patient(seed=30)[0]) and {},
    "a lost file": lambda root, out, weights: [(out / name).unlink() for name in segment.FILES.values()] and {},
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_result_of_something_else_is_made_anew(tmp_path, capsys, change):
    weights, root, out = write_networks(tmp_path / "weights"), tmp_path / "in" / "a", tmp_path / "out"
    write_pair(root)
    options = {"weights": weights, "flair": None, "t1": None, "out": None, "folder": (root.parent, out)}
    assert run(**options) == 0
    assert run(**options) == 0
    assert table(out)["a"]["status"] == "kept"
    assert run(**options | change(root, out / "a", weights)) == 0
    assert table(out)["a"]["status"] == "done"


def test_a_fault_of_ours_stops_no_other_scan(weights, tmp_path, capsys, monkeypatch):
    for name in "ab":
        write_pair(tmp_path / "in" / name)
    real, calls = batch.segment_scan, []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("mat1\nand mat2")
        return real(*arguments)

    monkeypatch.setattr(batch, "segment_scan", fail_once)
    assert run(weights, None, None, None, folder=(tmp_path / "in", tmp_path / "out")) == 1
    rows = table(tmp_path / "out")
    assert rows["a"]["about"] == "unexpected RuntimeError: mat1 and mat2" and rows["b"]["status"] == "done"


@pytest.mark.fault("interrupted write or computation")
def test_an_interruption_ends_all_and_keeps_what_is_done(weights, tmp_path, capsys, monkeypatch):
    for name in "ab":
        write_pair(tmp_path / "in" / name)
    real = batch.segment_scan

    def interrupt(ready, scan, out):
        if scan.name == "b":
            raise KeyboardInterrupt
        return real(ready, scan, out)

    monkeypatch.setattr(batch, "segment_scan", interrupt)
    assert run(weights, None, None, None, folder=(tmp_path / "in", tmp_path / "out")) == 130
    assert list(table(tmp_path / "out")) == ["a"]


WRONG = {
    "both": ({"folder": ("in", "out"), "flair": "f.nii"}, "--folder IN OUT and --flair exclude each other"),
    "neither": ({}, "segment wants --flair FILE and --out DIR, or --folder IN OUT"),
    "no out": ({"flair": "f.nii"}, "segment wants --flair FILE and --out DIR"),
    "no folder": ({"folder": ("absent", "out")}, "absent: no such folder"),
    "a wrong option": ({"folder": ("absent", "out"), "members": 0}, "--members 0"),
    "no networks": ({"folder": ("absent", "out"), "weights": "nowhere"}, "nowhere: no folder of weights"),
}


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(("options", "cause"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_ends_in_one_line(weights, tmp_path, capsys, monkeypatch, options, cause):
    monkeypatch.chdir(tmp_path)
    assert run(**{"weights": weights, "flair": None, "t1": None, "out": None} | options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pdlib: ") and err.count("\n") == 1 and cause in err
    assert not os.listdir(tmp_path)


def test_networks_that_know_a_missing_t1_take_every_scan(tmp_path, capsys):
    weights = write_networks(tmp_path / "weights")
    for training in CARDS:
        change_card(weights, training, "data", t1_dropped=0.5)
    write(tmp_path / "in" / "a" / "FLAIR.nii.gz", patient()[0])
    assert run(weights, None, None, None, folder=(tmp_path / "in", tmp_path / "out")) == 0
    row = table(tmp_path / "out")["a"]
    assert row["status"] == "done" and "no T1 was given" in row["about"]
    assert nib.load(tmp_path / "out" / "a" / "mask.nii.gz").shape == (20, 24, 5)
