"""A small patient's files, tiny networks for them, and what a result must be."""

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import torch
from conftest import DENOISER, DIFFUSION, SEGMENTER

from pdlib.__main__ import main
from pdlib.profiles import load_profile
from pdlib.study.trainings import sampling_card
from pdlib.training.weights import BUILDERS, load_weights, write_weights

SPACING = (4.8, 4.0, 3.0)  # of the tiny networks' training, x, y, z
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
CARDS = {
    "attention_unet_0": {"kind": "segmenter", "network": SEGMENTER},
    "denoiser_0": {
        "kind": "denoiser",
        "network": DENOISER,
        "diffusion": DIFFUSION,
        "t_max": 10,
        "sampling": sampling_card(SimpleNamespace(profile=load_profile("smoke", CHANGES))),
    },
}


def write_networks(folder: Path) -> Path:
    """A folder of networks as trainings leave it, untrained."""
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


def run(weights, flair, t1, out, brain_mask=None, **more):
    """`python -m pdlib segment`; its exit code. more: options by their name, brain_mask for --brain-mask."""
    options = {"flair": flair, "t1": t1, "out": out, "weights": weights, "brain_mask": brain_mask} | more
    given = {name: value for name, value in options.items() if value is not None}
    return main(["segment", *(str(part) for name, value in given.items() for part in (_option(name), *_parts(value)))])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parts(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


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
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    voxel_ml = float(np.prod(given.header.get_zooms()[:3])) / 1000
    assert np.isclose(report["volumes"]["lesion_ml"], (found["mask"] == 1).sum() * voxel_ml, atol=1e-6)
    assert report["grid"]["affine"] == nib.load(out / "mask.nii.gz").affine.tolist()
    assert report["notice"] in (out / "report.html").read_text(encoding="utf-8")
    return found
