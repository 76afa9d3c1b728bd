"""One patient's files through `segment`: what comes out, on which grid, with which weights, and what is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from patients import (
    CARDS,
    change_card,
    check_outputs,
    matrix,
    patient,
    run,
    volumes,
    write,
    write_networks,
    write_pair,
)
from scipy import ndimage

from pdlib import paths
from pdlib.data import wmh
from pdlib.evaluation.quality import AGREEMENT, FILE, IMAGE, Origin, fit
from pdlib.inference import segment, trained
from pdlib.training.weights import export_weights, load_weights, write_weights

PRESEGMENTER = "attention_unet_0"
REAL = os.environ.get("PDLIB_REAL_DATA")


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Networks as trainings leave them, untrained. Read only."""
    return write_networks(tmp_path_factory.mktemp("trained") / "weights")


GRIDS = {
    "LAS": ("LAS", matrix()),
    "PSR": ("PSR", matrix()),
    "oblique": ("RAS", matrix(turn=(0.2, -0.1, 0.3))),
    "oblique LPS": ("LPS", matrix(turn=(0.1, 0.2, -0.3))),
}


@pytest.fixture(scope="module")
def upright(weights, tmp_path_factory):
    """The patient stored along RAS, segmented."""
    folder = tmp_path_factory.mktemp("upright")
    flair, t1 = write_pair(folder)
    assert run(weights, flair, t1, folder / "out") == 0
    return check_outputs(flair, folder / "out")


@pytest.mark.parametrize(("axes", "affine"), GRIDS.values(), ids=GRIDS)
def test_however_the_scan_is_stored_the_answer_is_the_same(weights, upright, tmp_path, axes, affine):
    """The same voxels under other axes: the same prediction, under those axes."""
    turn = ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(axes))
    pair = write_pair(tmp_path, affine)
    for path in pair:
        upright_scan = nib.Nifti1Image.from_bytes(nib.load(path).to_bytes())
        nib.save(upright_scan.as_reoriented(turn), path)
    assert nib.aff2axcodes(nib.load(pair[0]).affine) == tuple(axes)
    assert run(weights, *pair, tmp_path / "out") == 0
    check_outputs(pair[0], tmp_path / "out")
    for name, image in volumes(tmp_path / "out").items():
        back = nib.as_closest_canonical(image)
        np.testing.assert_allclose(np.asarray(back.dataobj), upright[name], atol=1e-5, err_msg=name)


def test_other_voxels_are_resampled_to_those_of_the_training_and_back(weights, upright, tmp_path, monkeypatch):
    seen = []
    sample_members = segment.sample_members

    def spy(sampler, subject, *arguments):
        seen.append((subject.volume.brain.shape, subject.volume.spacing_mm))
        return sample_members(sampler, subject, *arguments)

    monkeypatch.setattr(segment, "sample_members", spy)
    flair, t1 = write_pair(tmp_path, matrix((2.4, 2.0, 3.0)), fold=2)
    assert run(weights, flair, t1, tmp_path / "out") == 0
    shape, spacing = seen[0]
    assert shape == (5, 24, 20) and spacing == pytest.approx((3.0, 4.0, 4.8), rel=1e-5)
    fine = check_outputs(flair, tmp_path / "out")["mean"]
    coarse = fine.reshape(20, 2, 24, 2, 5).mean(axis=(1, 3))
    assert coarse.shape == upright["mean"].shape
    brain = upright["mean"] > 0
    assert np.count_nonzero((coarse > 0) != brain) < 0.25 * np.count_nonzero(brain)


def test_the_same_files_give_the_same_bytes(weights, tmp_path):
    flair, t1 = write_pair(tmp_path)
    for out in ("one", "two"):
        assert run(weights, flair, t1, tmp_path / out) == 0
    for name in ("mask", "mean", "uncertainty"):
        one, two = (tmp_path / out / f"{name}.nii.gz" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert report_but_cost(tmp_path / "one") == report_but_cost(tmp_path / "two")


def report_but_cost(out: Path) -> dict:
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report.pop("cost")["seconds"] > 0
    return report


def test_the_report_tells_files_networks_settings_and_the_score_fitted_to_them(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "weights")
    digests = {name: load_weights(folder / name / "best.safetensors").digest for name in ("denoiser_0", PRESEGMENTER)}
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.random(20) for name in ("dice", *AGREEMENT, *IMAGE)}).assign(subject=range(20))
    origin = Origin(networks=digests, phantom=True, members=2, calls=2, threshold=0.4)
    fit(table, origin, folds=4, resamples=10, confidence=0.95, seed=0).save(folder / FILE)
    flair, t1 = write_pair(tmp_path)

    def report(out, **options):
        assert run(folder, flair, t1, tmp_path / out, members=2, calls=2, **options) == 0
        return json.loads((tmp_path / out / "report.json").read_text(encoding="utf-8"))

    found = report("asked", threshold=0.4)
    assert found["networks"]["sha256"] == digests
    assert {role: one["file"] for role, one in found["inputs"].items()} == {"FLAIR": str(flair), "T1": str(t1)}
    assert {name: found["settings"][name] for name in ("members", "calls", "threshold")} == {
        "members": 2,
        "calls": 2,
        "threshold": 0.4,
    }
    assert 0 <= found["quality"]["predicted_dice"] <= 1 and found["quality"]["do_not_trust"], (
        "unlike 20 random subjects"
    )
    other = report("other threshold")["quality"]
    assert other["predicted_dice"] is None and "threshold" in other["means"]
    (folder / FILE).write_text("{}")
    with pytest.raises(ValueError, match=FILE):
        trained.Trained.read(folder)


def test_nothing_is_found_outside_a_given_brain(weights, tmp_path):
    flair, t1 = write_pair(tmp_path)
    brain = np.zeros((20, 24, 5))
    brain[5:12, 6:20, 1:3] = 1
    mask = write(tmp_path / "brain.nii.gz", brain)
    assert run(weights, flair, t1, tmp_path / "out", brain_mask=mask) == 0
    found = check_outputs(flair, tmp_path / "out")
    assert not found["mean"][brain == 0].any() and not found["uncertainty"][brain == 0].any()


@pytest.mark.parametrize("phantom", [True, False])
def test_what_a_phantom_taught_is_no_finding(weights, tmp_path, capsys, phantom):
    folder = shutil.copytree(weights, tmp_path / "weights")
    for training in CARDS:
        change_card(folder, training, "data", phantom=phantom)
    assert run(folder, *write_pair(tmp_path), tmp_path / "out") == 0
    line = "networks trained on a phantom: a demonstration, no medical finding"
    assert (line in capsys.readouterr().err.splitlines()) == phantom


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pdlib: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


@pytest.fixture
def profiles(weights, tmp_path, monkeypatch):
    """Trains profiles: their networks are copied to where a run leaves them."""
    monkeypatch.setenv("PDLIB_OUT", str(tmp_path / "runs of mine"))
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "committed")

    def train(*names: str) -> list[Path]:
        return [shutil.copytree(weights, tmp_path / "runs of mine" / "runs" / name / "weights") for name in names]

    return train


def test_the_best_trained_profile_is_taken_and_named(profiles, tmp_path, capsys):
    _, gpu, _ = profiles("cpu", "gpu", "smoke")  # smoke is the newest
    done = segment.segment_files(*write_pair(tmp_path), tmp_path / "out")
    assert (done.weights, done.profile) == (gpu, "gpu")
    assert f"weights: {gpu} (profile gpu)" in capsys.readouterr().err.splitlines()


def test_a_better_profile_that_is_not_complete_is_passed_over_with_the_cause(profiles, tmp_path, capsys):
    cpu, gpu, paper = profiles("cpu", "gpu", "paper")
    unfinished = change_card(gpu, "denoiser_0", finished=False)
    shutil.rmtree(paper / "denoiser_0")
    done = segment.segment_files(*write_pair(tmp_path), tmp_path / "out")
    assert (done.weights, done.profile) == (cpu, "cpu")
    lines = capsys.readouterr().err.splitlines()
    assert any(f"warning: profile gpu is passed over: {unfinished}" in line for line in lines)
    assert any(f"warning: profile paper is passed over: {paper / 'denoiser_0'}" in line for line in lines)


def test_where_no_profile_is_trained_the_networks_of_the_repository_are_taken(weights, profiles, tmp_path, capsys):
    """In half precision, and whatever lies in the runs that is not complete."""
    (cpu,) = profiles("cpu")
    unfinished = change_card(cpu, "denoiser_0", finished=False)
    export_weights(weights, CARDS, tmp_path / "committed", "night")
    done = segment.segment_files(*write_pair(tmp_path), tmp_path / "out")
    assert (done.weights, done.profile) == (tmp_path / "committed", None)
    lines = capsys.readouterr().err.splitlines()
    assert f"weights: {tmp_path / 'committed'} (of the repository, trained by profile night)" in lines
    assert any(f"warning: profile cpu is passed over: {unfinished}" in line for line in lines)
    change_card(cpu, "denoiser_0", finished=True)
    assert trained.find_trained(None)[0].profile == "cpu"


def test_networks_for_scans_that_come_along_go_before_those_that_a_phantom_study_trained_here(
    weights, profiles, tmp_path
):
    profiles("cpu")
    export_weights(weights, CARDS, tmp_path / "committed" / "scan", "scan")
    found, passed_over = trained.find_trained(None)
    assert (found.folder, found.committed, passed_over) == (tmp_path / "committed" / "scan", True, ())
    (own,) = profiles("scan")
    assert trained.find_trained(None)[0].folder == own


def test_a_profile_is_taken_by_its_name(profiles, tmp_path, capsys):
    _, smoke = profiles("cpu", "smoke")
    assert run("smoke", *write_pair(tmp_path), tmp_path / "out") == 0
    out, err = capsys.readouterr()
    assert f"weights: {smoke}" in out.splitlines() and f"weights: {smoke} (profile smoke)" in err.splitlines()


def test_a_profile_that_is_not_trained_says_what_to_run(profiles, tmp_path, capsys):
    profiles("cpu")
    assert run("gpu", *write_pair(tmp_path), tmp_path / "out") == 2
    assert "run `make reproduce PROFILE=gpu`" in one_line(capsys)


def test_a_folder_named_like_a_profile_is_still_to_be_had(weights, profiles, tmp_path, monkeypatch):
    profiles("cpu")
    folder = shutil.copytree(weights, tmp_path / "here" / "cpu")
    monkeypatch.chdir(folder.parent)
    assert trained.find_trained("cpu")[0].profile == "cpu"
    for named in ("./cpu", Path("cpu")):
        assert trained.find_trained(named)[0].folder == Path("cpu")


def test_smoke_networks_are_never_taken_unasked(profiles, tmp_path, capsys):
    profiles("smoke")
    assert run(None, *write_pair(tmp_path), tmp_path / "out") == 2
    line = one_line(capsys)
    assert "run `make reproduce` first" in line and "--weights smoke" in line


def test_where_nothing_is_trained_it_says_what_to_run(profiles, tmp_path, capsys):
    pair = write_pair(tmp_path)
    assert run(None, *pair, tmp_path / "out") == 2
    line = one_line(capsys)
    assert str(tmp_path / "runs of mine" / "runs") in line and "run `make reproduce` first" in line
    assert run("no such", *pair, tmp_path / "out") == 2
    line = one_line(capsys)
    assert line.startswith("pdlib: no such: ") and "paper" in line
    assert not (tmp_path / "out").exists()


HALF_TRAINED = {
    "no denoiser": (lambda folder: shutil.rmtree(folder / "denoiser_0"), ["denoiser_0"], "not a readable"),
    "no pre-segmenter": (
        lambda folder: shutil.rmtree(folder / "attention_unet_0"),
        ["attention_unet_0"],
        "not a readable",
    ),
    "unfinished denoiser": (lambda f: change_card(f, "denoiser_0", finished=False), ["denoiser_0"], "has not ended"),
    "unfinished pre-segmenter": (
        lambda folder: change_card(folder, "attention_unet_0", finished=False),
        ["attention_unet_0"],
        "has not ended",
    ),
    "another's data": (
        lambda folder: change_card(folder, "attention_unet_0", "data", fingerprint="4567"),
        ["denoiser_0", "attention_unet_0"],
        "different data",
    ),
    "another fold": (
        lambda folder: change_card(folder, "attention_unet_0", "data", train=["Utrecht/2"]),
        ["denoiser_0", "attention_unet_0"],
        "different subjects",
    ),
    "unfinished and another's data": (
        lambda folder: [
            change_card(folder, "denoiser_0", finished=False),
            change_card(folder, "attention_unet_0", "data", fingerprint="4567"),
        ],
        ["denoiser_0", "attention_unet_0"],
        "different data",
    ),
    "a segmenter for a denoiser": (
        lambda f: shutil.copy(f / "attention_unet_0" / "best.safetensors", f / "denoiser_0" / "best.safetensors"),
        ["denoiser_0"],
        "holds a segmenter",
    ),
    "no sampling": (lambda f: change_card(f, "denoiser_0", sampling={}), ["denoiser_0"], "presegmenter is missing"),
    "an impossible chain": (
        lambda folder: change_card(folder, "denoiser_0", "sampling", chain={"t_prime": 0}),
        ["denoiser_0"],
        "sampling.chain.t_prime: 0: should be greater than or equal to 1",
    ),
}


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize("training", CARDS)
def test_finite_weights_that_overflow_give_no_result(weights, tmp_path, capsys, training):
    folder = shutil.copytree(weights, tmp_path / "weights")
    path = folder / training / "best.safetensors"
    found = load_weights(path)
    much = {name: torch.full_like(one, 1e30) if one.dim() > 1 else one for name, one in found.tensors.items()}
    write_weights(path, much, found.card)
    assert run(folder, *write_pair(tmp_path), tmp_path / "out") == 2
    assert f"{path}: the network gives numbers that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("bad weights")
@pytest.mark.parametrize(("damage", "trainings", "cause"), HALF_TRAINED.values(), ids=HALF_TRAINED)
def test_half_trained_networks_are_refused_by_file_and_cause(weights, tmp_path, capsys, damage, trainings, cause):
    folder = shutil.copytree(weights, tmp_path / "weights")
    damage(folder)
    assert run(folder, *write_pair(tmp_path), tmp_path / "out") == 2
    line = one_line(capsys)
    assert cause in line
    for training in trainings:
        assert str(folder / training / "best.safetensors") in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_work(monkeypatch):
    """Nothing is read and no network called."""
    for name in ("draw_member", "sample_members"):
        monkeypatch.setattr(segment, name, lambda *_: pytest.fail("a network was called"))
    return monkeypatch


@pytest.mark.parametrize("role", ["FLAIR", "T1", "brain mask"])
def test_an_input_is_never_overwritten(weights, tmp_path, capsys, no_work, role):
    no_work.setattr(segment, "read_scan", lambda *_, **__: pytest.fail("a file was read"))
    pair = write_pair(tmp_path)
    paths = {"FLAIR": pair[0], "T1": pair[1], "brain mask": write(tmp_path / "brain.nii.gz", np.ones((20, 24, 5)))}
    paths[role] = paths[role].rename(tmp_path / "mask.nii.gz")
    before = paths[role].read_bytes()
    assert run(weights, paths["FLAIR"], paths["T1"], tmp_path, brain_mask=paths["brain mask"]) == 2
    assert f"{tmp_path / 'mask.nii.gz'}: is the {role}" in one_line(capsys)
    assert paths[role].read_bytes() == before


def test_an_expert_mask_beside_the_scans_is_never_overwritten(weights, tmp_path, capsys, no_work):
    pair = write_pair(tmp_path)
    reference = write(tmp_path / "mask.nii.gz", np.zeros((20, 24, 5)))
    assert run(weights, *pair, tmp_path) == 2
    assert one_line(capsys).startswith(f"pdlib: {reference}: belongs to no earlier result")


@pytest.mark.fault("unwritable folder")
def test_an_unfit_folder_is_refused_before_a_network_is_called(weights, tmp_path, capsys, no_work):
    (tmp_path / "out").write_text("a file")
    assert run(weights, *write_pair(tmp_path), tmp_path / "out") == 2
    assert one_line(capsys) == f"pdlib: {tmp_path / 'out'}: not a folder\n"


def test_when_the_last_file_fails_the_earlier_result_stays(weights, tmp_path, capsys, monkeypatch):
    pair, out = write_pair(tmp_path), tmp_path / "out"
    assert run(weights, *pair, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(segment, "write_whole", fail)
    capsys.readouterr()
    write(pair[0], patient(seed=21)[0])
    assert run(weights, *pair, out) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"pdlib: {out / 'overlay.png'}: No space left on device"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(weights, *pair, tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


def test_doubts_about_the_input_are_said_and_kept(weights, tmp_path, capsys):
    flair, t1 = write_pair(tmp_path)
    write(t1, 2 * patient()[0])
    done = segment.segment_files(flair, t1, tmp_path / "out", weights)
    assert any("look like the same image" in note for note in done.notes)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warned == [f"warning: {note}" for note in done.notes]


def test_sound_input_raises_no_doubt(weights, tmp_path, capsys):
    done = segment.segment_files(*write_pair(tmp_path), tmp_path / "out", weights)
    assert done.notes == () and "warning" not in capsys.readouterr().err
    assert done.files == {name: tmp_path / "out" / file for name, file in segment.FILES.items()}


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_sleep_unless_asked_otherwise(given, policy):
    """OpenMP reads the policy when torch is imported, so it has to stand before."""
    code = "import os, sys, pdlib.__main__; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", policy]


def huge(path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((30000, 30000, 30000))
    path.write_bytes(header.binaryblock + b"\0" * 1000)


def far_away() -> np.ndarray:
    affine = matrix()
    affine[:3, 3] += 1000
    return affine


BAD = {
    "truncated gzip": ("FLAIR", lambda p: p.write_bytes(p.read_bytes()[:-200]), "truncated"),
    "zero bytes": ("T1", lambda p: p.write_bytes(b""), "empty file"),
    "4D": ("FLAIR", lambda p: write(p, np.ones((20, 24, 5, 2))), "3D"),
    "missing T1": ("T1", Path.unlink, "missing T1"),
    "DICOM": ("FLAIR", lambda p: p.write_bytes(b"\0" * 128 + b"DICM"), "DICOM; convert it first: dcm2niix"),
    "elsewhere": ("T1", lambda p: write(p, patient()[1], far_away()), "does not overlap with the FLAIR"),
    "all zero": ("FLAIR", lambda p: write(p, np.zeros((20, 24, 5))), "no contrast"),
    "complex": ("FLAIR", lambda p: write(p, patient()[0], dtype=np.complex64), "not plain numbers"),
    "a huge claim": ("FLAIR", huge, "limit"),
}


@pytest.mark.fault("bad images")
@pytest.mark.parametrize(("which", "damage", "cause"), BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_line_that_names_the_file(weights, tmp_path, capsys, which, damage, cause):
    flair, t1 = write_pair(tmp_path)
    path = {"FLAIR": flair, "T1": t1}[which]
    damage(path)
    assert run(weights, flair, t1, tmp_path / "out") == 2
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
def test_other_guises_of_the_same_scan_are_accepted(weights, upright, tmp_path, store):
    folder = tmp_path / "Müller, Zoë 山田"
    folder.mkdir()
    pair = folder / "FLAIR.nii.gz", folder / "T1.nii.gz"
    for path, scan in zip(pair, patient(), strict=True):
        store(path, scan)
    assert run(weights, *pair, folder / "Ergebnis für 山田") == 0
    found = check_outputs(pair[0], folder / "Ergebnis für 山田")
    np.testing.assert_allclose(found["mean"], upright["mean"], atol=1e-5)


@pytest.mark.skipif(not REAL, reason="PDLIB_REAL_DATA does not name a folder of real cases")
def test_real_cases_keep_their_grid(weights, tmp_path):
    cases = wmh.find_cases(Path(REAL))
    for case in cases:
        out = tmp_path / case.subject
        assert run(weights, case.flair, case.t1, out) == 0
        check_outputs(case.flair, out)


@pytest.fixture
def dropped(weights, tmp_path) -> Path:
    """Networks that were trained with the T1 dropped at times."""
    folder = shutil.copytree(weights, tmp_path / "dropped")
    for training in CARDS:
        change_card(folder, training, "data", t1_dropped=0.2)
    return folder


@pytest.fixture
def seen(monkeypatch) -> list:
    """The volumes that the networks were given."""
    given, draw_member = [], segment.draw_member

    def spy(network, subject, *others):
        given.append(subject.volume)
        return draw_member(network, subject, *others)

    monkeypatch.setattr(segment, "draw_member", spy)
    return given


def test_a_flair_alone_is_refused_by_networks_that_always_saw_a_t1(weights, tmp_path, capsys, no_work):
    flair, _ = write_pair(tmp_path)
    assert run(weights, flair, None, tmp_path / "out") == 2
    line = one_line(capsys)
    assert line.startswith(f"pdlib: {flair}: no T1") and "give --t1 FILE" in line and str(weights) in line


def test_a_flair_alone_is_segmented_by_networks_that_know_it(dropped, tmp_path, capsys, seen):
    flair, _ = write_pair(tmp_path)
    assert run(dropped, flair, None, tmp_path / "out") == 0
    check_outputs(flair, tmp_path / "out")
    assert not seen[0].image[1].any() and seen[0].image[0].any()
    assert "warning: no T1 was given: the networks see the FLAIR alone" in capsys.readouterr().err.splitlines()


def test_a_t1_on_another_grid_is_brought_onto_the_flairs(weights, tmp_path, capsys, seen):
    """The same T1, stored finer and mirrored: the networks see about the same, and a note says what was done."""
    flair, t1 = write_pair(tmp_path)
    expected = wmh.read_images(flair, t1, clip_percentiles=(0.5, 99.5))
    finer = np.diag([-0.5, 0.5, 0.5, 1.0])  # from its voxels to the FLAIR's
    finer[:3, 3] = [19.25, -0.25, -0.25]
    write(t1, np.flip(patient()[1].repeat(2, 0).repeat(2, 1).repeat(2, 2), 0), matrix() @ finer)
    assert run(weights, flair, t1, tmp_path / "out") == 0
    check_outputs(flair, tmp_path / "out")
    np.testing.assert_array_equal(seen[0].image[0], expected.image[0])
    inner = ndimage.binary_erosion(expected.brain, iterations=2)
    assert np.corrcoef(seen[0].image[1, inner], expected.image[1, inner])[0, 1] > 0.95
    said = capsys.readouterr().err
    assert "the T1 was brought from its grid (40x48x10, 2.4x2x1.5 mm) onto the FLAIR's (20x24x5, 4.8x4x3 mm)" in said


ACQUIRED = {
    "isotropic": ((1.0, 1.0, 1.0), "RPI"),
    "sagittal": ((6.0, 1.0, 1.0), "PIR"),
    "coronal": ((1.0, 6.0, 1.0), "LAS"),
}


@pytest.mark.parametrize(("spacing", "axes"), ACQUIRED.values(), ids=ACQUIRED)
def test_other_acquisitions_are_cut_axially_and_brought_back(weights, tmp_path, capsys, seen, spacing, axes):
    flair, t1 = (tmp_path / name for name in ("FLAIR.nii.gz", "T1.nii.gz"))
    for path, scan in zip((flair, t1), ellipsoid(spacing), strict=True):
        image = nib.Nifti1Image(scan.astype(np.float32), matrix(spacing, (0.1, -0.05, 0.1)))
        nib.save(image.as_reoriented(ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(axes))), path)
    assert run(weights, flair, t1, tmp_path / "out") == 0
    found = check_outputs(flair, tmp_path / "out")
    assert nib.aff2axcodes(volumes(tmp_path / "out")["mask"].affine) == tuple(axes)
    given = np.asarray(nib.load(flair).dataobj) > 0
    assert np.count_nonzero((found["mean"] > 0) & ~given) == 0
    assert np.count_nonzero(found["mean"] > 0) > 0.8 * np.count_nonzero(given)
    assert seen[0].spacing_mm == pytest.approx((3.0, 4.0, 4.8), rel=0.1)
    err = capsys.readouterr().err
    assert "slices of 1 mm were averaged to 3 mm" in err
    assert next(iter(key for key, value in ACQUIRED.items() if value[0] == spacing)) in err or spacing == (1, 1, 1)


def ellipsoid(spacing) -> tuple[np.ndarray, np.ndarray]:
    """FLAIR and T1 of an ellipsoid, 48 x 60 x 30 mm in a box of 60 x 72 x 36."""
    rng = np.random.default_rng(3)
    shape = np.rint(np.array([60, 72, 36]) / spacing).astype(int)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.83) ** 2 + (z / 0.83) ** 2 < 1
    bright = (abs(x) < 0.3) & (abs(y) < 0.3)
    return inside * (300 + 250 * bright + 9 * rng.standard_normal(shape)), inside * (
        500 - 150 * bright + 9 * rng.standard_normal(shape)
    )


def test_voxels_that_are_no_numbers_are_taken_for_zero_with_a_note(weights, tmp_path, capsys):
    flair, t1 = write_pair(tmp_path)
    scan = patient()[0]
    scan[scan == 0] = np.nan
    scan[10, 12, 2] = np.inf
    write(flair, scan)
    assert run(weights, flair, t1, tmp_path / "out") == 0
    assert not np.isnan(check_outputs(flair, tmp_path / "out")["mean"]).any()
    assert "voxels of the FLAIR are NaN or infinite, and were taken for 0" in capsys.readouterr().err


def test_threshold_members_and_calls_change_what_they_name(weights, upright, tmp_path, capsys, monkeypatch):
    chains, sample_members = [], segment.sample_members

    def spy(sampler, subject, starts, members, *others):
        chains.append((sampler.chain.calls, len(members), starts.sum()))
        return sample_members(sampler, subject, starts, members, *others)

    monkeypatch.setattr(segment, "sample_members", spy)
    flair, t1 = write_pair(tmp_path)
    assert run(weights, flair, t1, tmp_path / "one", threshold=0.3, calls=1, members=1, device="cpu") == 0
    found = {name: np.asarray(image.dataobj) for name, image in volumes(tmp_path / "one").items()}
    np.testing.assert_array_equal(found["mask"] == 1, found["mean"] >= 0.3)
    assert not found["uncertainty"].any()
    assert "warning: one member alone has no uncertainty" in capsys.readouterr().err
    assert run(weights, flair, t1, tmp_path / "two", threshold=0.6) == 0
    assert chains[0][:2] == (1, 1) and chains[1][:2] == (2, 3)
    assert chains[0][2] == chains[1][2], "the chain starts from the same pre-segmentation, whatever the threshold"
    np.testing.assert_array_equal(np.asarray(volumes(tmp_path / "two")["mean"].dataobj), upright["mean"])


REFUSED = {
    "threshold 0": ({"threshold": 0}, "--threshold 0: must lie between 0 and 1"),
    "threshold 1": ({"threshold": 1.5}, "--threshold 1.5"),
    "threshold NaN": ({"threshold": "nan"}, "--threshold nan"),
    "no member": ({"members": 0}, "--members 0: must be 1 to"),
    "no call": ({"calls": 0}, "--calls 0: must be at least 1"),
    "more calls than steps": ({"calls": 5}, "--calls 5: the networks' chain has 4 steps"),
    "no such device": ({"device": "abacus"}, "--device abacus: no such device; choose auto, cpu"),
    "a device without voxels": ({"device": "meta"}, "--device meta: not used here"),
    "no such GPU": ({"device": "cuda:77"}, "--device cuda:77: this machine"),
}


@pytest.mark.fault("bad settings and parameters")
@pytest.mark.parametrize(("options", "cause"), REFUSED.values(), ids=REFUSED)
def test_an_option_that_cannot_be_is_refused_in_one_line(weights, tmp_path, capsys, no_work, options, cause):
    assert run(weights, *write_pair(tmp_path), tmp_path / "out", **options) == 2
    assert cause in one_line(capsys) and not (tmp_path / "out").exists()


def test_seconds_and_memory_are_said(weights, tmp_path, capsys):
    assert run(weights, *write_pair(tmp_path), tmp_path / "out") == 0
    *_, seconds, memory = capsys.readouterr().out.splitlines()
    assert float(seconds.removeprefix("seconds: ")) > 0
    assert 0.1 < float(memory.removeprefix("peak memory: ").removesuffix(" GB")) < 100


def test_another_process_gives_the_same_bytes(weights, tmp_path):
    flair, t1 = write_pair(tmp_path)
    assert run(weights, flair, t1, tmp_path / "here", device="cpu") == 0
    command = [sys.executable, "-m", "pdlib", "segment", "--flair", flair, "--t1", t1, "--weights", weights]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--device", "cpu", "--out", tmp_path / "there"], env=environment, check=True, capture_output=True
    )
    for name in ("mask", "mean", "uncertainty", "overlay"):
        here, there = (tmp_path / out / segment.FILES[name] for out in ("here", "there"))
        assert here.read_bytes() == there.read_bytes(), name
    assert report_but_cost(tmp_path / "here") == report_but_cost(tmp_path / "there")
