"""One patient's files through `segment`: what comes out, on which grid, with which weights, and what is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pdlib.__main__ import main
from pdlib.data import wmh
from pdlib.inference import segment
from pdlib.profiles import load_profile
from pdlib.study.trainings import sampling_card
from pdlib.training.weights import BUILDERS, export_weights, load_weights, write_weights

SPACING = (4.8, 4.0, 3.0)  # of the tiny networks' training, x, y, z
REAL = os.environ.get("PDLIB_REAL_DATA")
CHANGES = {
    "chain": {"t_prime": 400, "stride": 2, "rule": "ddpm"},
    "ensemble": {"size": 3},
    "machine": {"batch_size": 8},
    "comparison": {"t_prime_candidates": [400]},
    "tdpm": {"t_primes": [400]},
}
DATA = {
    "fingerprint": "0123",
    "phantom": True,
    "train": ["Utrecht/0", "Utrecht/1"],
    "clip_percentiles": [0.5, 99.5],
    "multiple": 4,
    "in_plane_mm": {"low": [4.0, 4.8], "median": [4.0, 4.8], "high": [4.0, 4.8]},
}
SEGMENTER = {"name": "attention_unet", "in_channels": 2, "out_channels": 1, "channels": [4, 8], "strides": [2]}
CARDS = {
    "attention_unet_0": {"kind": "segmenter", "network": SEGMENTER | {"dropout": 0.0}},
    "denoiser_0": {
        "kind": "denoiser",
        "network": {
            "in_channels": 3,
            "out_channels": 1,
            "model_channels": 32,
            "channel_mult": [1, 1],
            "num_res_blocks": 1,
            "attention_downsample": [],
            "num_heads": 1,
            "scale_shift": False,
            "dropout": 0.0,
        },
        "diffusion": {
            "schedule": {"name": "cosine", "steps": 10, "offset": 0.008, "max_beta": 0.999},
            "codec": "zero_one",
            "prediction": "v",
        },
        "t_max": 10,
        "sampling": sampling_card(SimpleNamespace(profile=load_profile("smoke", CHANGES))),
    },
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A folder of networks as trainings leave it, untrained. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "weights"
    torch.manual_seed(0)
    for name, card in CARDS.items():
        network = BUILDERS[card["kind"]](**card["network"])
        path = folder / name / "best.safetensors"
        write_weights(path, network.state_dict(), card | {"data": DATA, "step": 2, "finished": True})
    return folder


def change_card(folder: Path, training: str, section: str | None = None, **changes) -> Path:
    """Change a card, or a section of it, in place; the file."""
    path = folder / training / "best.safetensors"
    found = load_weights(path)
    card = json.loads(json.dumps(found.card))
    (card if section is None else card[section]).update(changes)
    write_weights(path, found.tensors, card)
    return path


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


def run(weights, flair, t1, out, brain_mask=None):
    """`python -m pdlib segment`; its exit code."""
    options = {"--flair": flair, "--t1": t1, "--out": out, "--weights": weights, "--brain-mask": brain_mask}
    return main(["segment", *(str(part) for pair in options.items() if pair[1] is not None for part in pair)])


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
    monkeypatch.setattr(segment, "COMMITTED", tmp_path / "committed")

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
    assert segment.find_trained(None)[0].profile == "cpu"


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
    assert segment.find_trained("cpu")[0].profile == "cpu"
    for named in ("./cpu", Path("cpu")):
        assert segment.find_trained(named)[0].folder == Path("cpu")


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
    "no sampling": (lambda f: change_card(f, "denoiser_0", sampling={}), ["denoiser_0"], "lacks sampling.presegmenter"),
    "an impossible chain": (
        lambda folder: change_card(folder, "denoiser_0", "sampling", chain={"t_prime": 0}),
        ["denoiser_0"],
        "chain cannot be used",
    ),
}


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
    no_work.setattr(wmh, "read_images", lambda *_, **__: pytest.fail("a file was read"))
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
