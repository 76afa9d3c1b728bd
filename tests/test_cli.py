"""The command line: what it prints, how it ends, what it does not load."""

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from pdlib.__main__ import main
from pdlib.profiles import load_profile

AFFINE = np.diag([-1, 1, 2, 1.0])


def save(path, array, dtype=np.float32, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array).astype(dtype), affine), path)
    return str(path)


def save_case(folder, seed=0, lesion_voxels=500):
    scan, mask = np.zeros((16, 16, 8)), np.zeros((16, 16, 8))
    scan[2:14, 2:14, 1:7] = np.random.default_rng(seed).integers(100, 200, (12, 12, 6))
    mask[2:14, 2:14, 1:7].flat[:lesion_voxels] = 1
    for name, array in (("pre/FLAIR", scan), ("pre/T1", scan[::-1]), ("wmh", mask)):
        save(folder / f"{name}.nii.gz", array)


@pytest.fixture
def reference(tmp_path):
    """Three lesion voxels and one of other pathology."""
    labels = np.zeros((8, 8, 4))
    labels[2, 2, 1:4] = 1
    labels[6, 6, 1] = 2
    return save(tmp_path / "reference.nii.gz", labels), labels


def verdicts(out: str) -> list[str]:
    """What `check` prints of the cases themselves and how many they are, without what else it found."""
    return [line for line in out.splitlines() if re.match(r"(accepted|refused|skipped) |\d+ accepted, ", line)]


def test_check_accepts_and_counts(tmp_path, capsys):
    save_case(tmp_path / "Utrecht" / "0")
    save_case(tmp_path / "Zürich" / "a b.", seed=1, lesion_voxels=0)
    assert main(["check", str(tmp_path)]) == 0
    first, second, count = verdicts(capsys.readouterr().out)
    assert first.split() == "accepted Utrecht/0 zyx 8x16x16 2x1x1 mm lesions 1.000 ml".split()
    assert "Zürich/a b." in second and count == "2 accepted, 0 refused"


@pytest.mark.fault("bad images")
def test_check_refuses_and_goes_on(tmp_path, capsys):
    save_case(tmp_path / "Utrecht" / "0")
    save_case(tmp_path / "Utrecht" / "1", seed=1)
    broken = tmp_path / "Utrecht" / "0" / "pre" / "T1.nii.gz"
    broken.write_bytes(b"")
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    first, second, count = verdicts(out)
    assert first == f"refused   Utrecht/0  {broken}: empty file (0 bytes)"
    assert out.splitlines()[1].strip() == "-> fetch or convert the file again: it is cut short or damaged"
    assert second.startswith("accepted  Utrecht/1") and count == "1 accepted, 1 refused"
    assert f"note      {tmp_path}: too few to train on: profile paper makes 5 folds -> " in out
    assert out.splitlines()[-1].startswith("unsound: 1 errors, ")


def test_check_json_is_one_object_that_agrees_with_the_text(tmp_path, capsys):
    save_case(tmp_path / "Utrecht" / "0")
    save_case(tmp_path / "Utrecht" / "1", seed=1, lesion_voxels=0)
    (tmp_path / "Utrecht" / "0" / "pre" / "T1.nii.gz").unlink()
    (tmp_path / "folds.csv").write_text("subject,fold\nUtrecht/0,0\nUtrecht/1,1\nUtrecht/0,2\n")
    assert main(["check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "unsound" and report["counts"]["error"] == 2
    assert [(case["case"], case["accepted"]) for case in report["cases"]] == [("Utrecht/0", False), ("Utrecht/1", True)]
    assert main(["check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    for one in report["findings"]:
        assert one.keys() == {"case", "file", "severity", "what", "remedy"}
        assert f"{one['what']} -> {one['remedy']}" in text.replace("\n          ->", " ->")
    assert f"error     Utrecht/0  {tmp_path}/folds.csv: a subject in folds 0 and 2 -> " in text
    elsewhere = tmp_path / "other.csv"
    elsewhere.write_text("subject,fold\nUtrecht/1,0\n")
    assert main(["check", str(tmp_path), "--json", "--folds", str(elsewhere)]) == 1
    assert json.loads(capsys.readouterr().out)["counts"]["error"] == 1


def test_check_json_of_nothing_is_an_object_too(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent"), "--json"]) == 1
    (only,) = json.loads(capsys.readouterr().out)["findings"]
    assert (only["file"], only["severity"], only["what"]) == (f"{tmp_path}/absent", "error", "no such folder")


def test_check_reads_with_the_settings_of_a_run(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("pdlib.data.wmh.accept_cases", lambda folder, **how: seen.append((folder, how)) or ())
    save_case(tmp_path / "Utrecht" / "0")
    assert main(["check", str(tmp_path), "--profile", "smoke"]) == 0
    assert seen == [(tmp_path, {"clip_percentiles": load_profile("smoke").data.clip_percentiles})]
    assert main(["check", str(tmp_path), "--profile", "smook"]) == 1
    assert capsys.readouterr().err.startswith("pdlib: unknown profile 'smook': choose one of ")


@pytest.mark.fault("bad folders of data")
@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_check_refuses_what_a_run_cannot_take(tmp_path, capsys, record_property):
    record_property("faults", 2)
    latin = os.fsdecode(b"M\xfcller")
    for seed, name in enumerate(["0", "1", "2", "3", "4", latin]):
        save_case(tmp_path / "Utrecht" / name, seed)
    save_case(tmp_path / "Utrecht" / "copy")
    save_case(tmp_path / ".snapshot" / "Utrecht" / "0")
    assert main(["check", str(tmp_path)]) == 1
    skipped, *cases, count = verdicts(capsys.readouterr().out)
    assert skipped == f"skipped   {tmp_path}/.snapshot: hidden, not entered"
    assert [line.split()[0] for line in cases] == ["accepted"] * 5 + ["refused"] * 2
    assert cases[-2].startswith(r"refused   Utrecht/M\udcfcller") and "is not UTF-8" in cases[-2]
    assert "Utrecht/copy: the same FLAIR as Utrecht/0" in cases[-1]
    assert count == "5 accepted, 2 refused"


def test_check_says_what_it_assumed(tmp_path, capsys):
    save_case(tmp_path / "Utrecht" / "0")
    flair = tmp_path / "Utrecht" / "0" / "pre" / "FLAIR.nii.gz"
    scan = np.asarray(nib.load(flair).dataobj)
    save(flair, np.where(scan > 0, scan - 150, 0))
    assert main(["check", str(tmp_path)]) == 0
    assumed = "note: pre/FLAIR.nii.gz: assumed that 0, the value of the border, is background and all else is brain ->"
    assert assumed in capsys.readouterr().out


def test_check_of_nothing_fails(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"pdlib: {tmp_path}: no case found (no folder below holds wmh.nii.gz or pre/FLAIR.nii.gz)\n"
    )


@pytest.mark.parametrize(("dtype", "on"), [("uint8", 255), ("uint8", 1), ("int16", 1), ("float32", 1), ("float64", 1)])
def test_score_counts_any_nonzero_and_leaves_out_label_2(tmp_path, capsys, reference, dtype, on):
    path, labels = reference
    predicted = np.zeros(labels.shape)
    predicted[2, 2, 1:3] = on
    predicted[6, 6, 1] = on
    assert main(["score", path, save(tmp_path / "p.nii.gz", predicted, dtype)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["dice"] == pytest.approx(2 * 2 / (2 + 3)) and scores["jaccard"] == pytest.approx(2 / 3)


def test_score_prints_null_for_what_is_undefined(tmp_path, capsys, reference):
    path, labels = reference
    assert main(["score", path, save(tmp_path / "p.nii.gz", labels * 0)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["hd95_mm"] is None and scores["dice"] == 0


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(
    ("array", "affine", "cause"),
    [
        (np.full((8, 8, 4), 0.4), AFFINE, "threshold it first"),
        (np.full((8, 8, 4), -1), AFFINE, "threshold it first"),
        (np.ones((8, 8, 5)), AFFINE, "shape (8, 8, 5) differs"),
        (np.ones((8, 8, 4)), np.diag([-1, 1, 3, 1.0]), "affine differs"),
    ],
)
def test_score_refuses_in_one_line(tmp_path, capsys, reference, array, affine, cause):
    prediction = save(tmp_path / "p.nii.gz", array, affine=affine)
    assert main(["score", reference[0], prediction]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"pdlib: {prediction}: ") and cause in err and err.count("\n") == 1


def fake_segment(monkeypatch, segment_scan):
    ready = SimpleNamespace(of=lambda *how: how)
    fakes = {
        "inference.segment": SimpleNamespace(segment_scan=segment_scan, Ready=ready),
        "inference.trained": SimpleNamespace(Changes=lambda **changes: changes),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"pdlib.{name}", fake)


def test_segment_passes_its_arguments(monkeypatch, capsys):
    seen = []

    def record(ready, scan, out):
        seen.append((ready, {role: str(path) for role, path in scan.files.items()}, str(out)))
        return SimpleNamespace(weights="w", files={"mask": "o/mask.nii.gz"}, seconds=1.25)

    fake_segment(monkeypatch, record)
    assert main(["segment", "--flair", "f.nii", "--t1", "t.nii", "--out", "o"]) == 0
    nothing = {"threshold": None, "members": None, "calls": None}
    assert seen.pop() == ((None, nothing, "auto"), {"FLAIR": "f.nii", "T1": "t.nii"}, "o")
    weights, mask, seconds, memory = capsys.readouterr().out.splitlines()
    assert (weights, mask, seconds) == ("weights: w", "mask: o/mask.nii.gz", "seconds: 1.2")
    assert memory.startswith("peak memory: ") and memory.endswith(" GB")
    options = ["--weights", "night", "--brain-mask", "b.nii", "--device", "cpu"]
    options += ["--threshold", "0.4", "--members", "7", "--calls", "3"]
    assert main(["segment", "--flair", "f.nii", "--out", "o", *options]) == 0
    changed = {"threshold": 0.4, "members": 7, "calls": 3}
    assert seen.pop() == (("night", changed, "cpu"), {"FLAIR": "f.nii", "brain mask": "b.nii"}, "o")


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(
    "words",
    [
        ["check", ""],
        ["score", "", "p.nii"],
        ["segment", "--flair", "f.nii", "--out", ""],
        ["segment", "--folder", "", "o"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "an empty path" in capsys.readouterr().err.splitlines()[-1]


FAILURES = {
    "input": (ValueError("f.nii: no\ncontrast"), 2, "pdlib: f.nii: no contrast"),
    "file": (PermissionError(13, "Permission denied", "o/mask.nii.gz"), 2, "pdlib: o/mask.nii.gz: Permission denied"),
    "memory": (MemoryError(), 2, "pdlib: out of memory"),
    "no text": (ValueError(), 2, "pdlib: ValueError"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "pdlib: interrupted"),
    **{
        type(error).__name__: (error, 70, f"pdlib: unexpected {type(error).__name__}: {text} (please report it, ")
        for error, text in (
            (RuntimeError("mat1\nand mat2"), "mat1 and mat2"),
            (KeyError("sampling"), "'sampling'"),
            (AssertionError(), "AssertionError"),
            (OverflowError("too large"), "too large"),
        )
    },
}


@pytest.mark.parametrize("traceback", [False, True])
@pytest.mark.parametrize(("error", "code", "line"), FAILURES.values(), ids=FAILURES)
def test_every_failure_is_one_line(monkeypatch, capsys, error, code, line, traceback):
    def fail(*args, **kwargs):
        raise error

    fake_segment(monkeypatch, fail)
    monkeypatch.setenv("PDLIB_TRACEBACK", str(int(traceback)))
    assert main(["segment", "--flair", "f.nii", "--t1", "t.nii", "--out", "o"]) == code
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith(line) and bool(before) == (traceback and code != 130)


def test_ctrl_c_ends_a_command_in_one_line(tmp_path):
    save_case(tmp_path / "Utrecht" / "0")
    code = """
import signal, sys, time
from pdlib.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from pdlib.data import wmh
def slow(*args, **kwargs):
    print("reading", flush=True)
    time.sleep(60)
wmh.read_case = slow
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "check", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "pdlib: interrupted\n"
    assert process.returncode == 130


def test_a_reader_that_leaves_is_no_failure(tmp_path):
    for seed in range(3):
        save_case(tmp_path / "Utrecht" / str(seed), seed)
    command = [sys.executable, "-m", "pdlib", "check", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=30) == 1


def test_check_loads_no_network(tmp_path):
    save_case(tmp_path / "Utrecht" / "0")
    code = (
        "import sys; from pdlib.__main__ import main; main(sys.argv[1:]); print({'torch', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, "check", tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_and_wrong_usage():
    for arguments, code in ((["--help"], 0), (["segment", "--help"], 0), ([], 2), (["score", "one"], 2)):
        done = subprocess.run([sys.executable, "-m", "pdlib", *arguments], capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr
