"""What several tests share: one thread, small heads in the WMH layout, networks after two updates."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric

from pdlib import experiment, records
from pdlib.data import splits, wmh
from pdlib.denoiser import GuidedUNet
from pdlib.inference import build_diffusion
from pdlib.paths import Layout
from pdlib.sampler import Chain
from pdlib.segmenters import build_segmenter, segmentation_loss
from pdlib.training import Fit, diffusion_objective, fit_network, segmentation_objective

torch.set_num_threads(1)

SHAPE = (20, 24, 5)  # x, y, z
SPACING = (4.8, 4.0, 3.0)
CLIP = (0.5, 99.5)
SEGMENTER = {
    "name": "attention_unet",
    "in_channels": 2,
    "out_channels": 1,
    "channels": [4, 8],
    "strides": [2],
    "dropout": 0.0,
}
DENOISER = {
    "in_channels": 3,
    "out_channels": 1,
    "model_channels": 32,
    "channel_mult": [1, 1],
    "num_res_blocks": 1,
    "attention_downsample": [],
    "num_heads": 1,
    "scale_shift": False,
    "dropout": 0.0,
}
DIFFUSION = {
    "schedule": {"name": "cosine", "steps": 10, "offset": 0.008, "max_beta": 0.999},
    "codec": "zero_one",
    "prediction": "v",
}
SAMPLING = {
    "presegmenter": "attention_unet",
    "t_prime": 400,
    "paper_steps": 1000,
    "stride": 2,
    "step": "ddpm",
    "eta": 1.0,
    "convention": "consistent",
    "ensemble_size": 3,
    "voxel_tolerance": 0.1,
    "threshold": 0.5,
    "vote": "soft",
    "seed": 0,
    "batch_size": 8,
}
FIT = Fit(
    steps=2,
    batch_size=2,
    crop=(16, 16),
    flip_probability=0.5,
    learning_rate=0.01,
    final_learning_rate=0.01,
    weight_decay=0.0,
    ema_decay=0.0,
    validate_every=1,
    keep_validated=True,
    seed=0,
)


def head(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLAIR, T1 and labels [X, Y, Z] of a noisy ellipsoid with two bright lesions; label 2 where seed is even."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 1.3) ** 2 < 1
    labels = np.zeros(shape)
    middle = [n // 2 for n in shape]
    labels[middle[0] - 4 : middle[0] - 1, middle[1] + seed % 3 : middle[1] + 4, middle[2] - 1 : middle[2] + 1] = 1
    labels[middle[0] + 2, middle[1] - 3 : middle[1], middle[2]] = 1
    if seed % 2 == 0:
        labels[middle[0] + 4, middle[1] + 2, middle[2]] = 2
    flair = inside * (300 + 250 * (labels > 0) + 20 * rng.standard_normal(shape))
    t1 = inside * (500 - 150 * (labels > 0) + 30 * rng.standard_normal(shape))
    return flair, t1, labels


def affine(spacing: tuple[float, float, float] = SPACING) -> np.ndarray:
    return nib.affines.from_matvec(np.diag(spacing), [-40, -50, 10])


def save(path: Path, array: np.ndarray, matrix: np.ndarray | None = None, dtype=np.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(dtype), affine() if matrix is None else matrix), path)
    return path


@dataclass(frozen=True)
class Trained:
    """Cases, folds and networks as notebooks 01 to 03 leave them behind."""

    place: Layout
    diffusion: dict
    sampling: dict

    @property
    def run(self) -> experiment.Run:
        return experiment.Run(self.place, 0, 0, 8, "32-true", 4, 0.5, "soft")

    @property
    def weights(self) -> Path:
        return self.place.weights("denoiser").parent

    @property
    def preseg(self) -> Path:
        return self.place.weights("attention_unet_0") / "best.safetensors"

    def chain(self, t_prime: int = 4, **changes) -> Chain:
        return replace(Chain("preseg", "run_to_zero", t_prime, 1, "ddpm", 1.0, "consistent"), **changes)


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> Trained:
    """Nine cases of two sites, three folds, and every network trained for two updates. Read only: see `trained`."""
    place = Layout(tmp_path_factory.mktemp("out"), "tiny")
    root = tmp_path_factory.mktemp("cases")
    for seed in range(9):
        folder = root / ("Utrecht" if seed < 5 else "Amsterdam/GE3T") / str(seed)
        for name, array in zip(("pre/FLAIR", "pre/T1", "wmh"), head(seed), strict=True):
            save(folder / f"{name}.nii.gz", array)
    cases = wmh.find_cases(root)
    volumes = [wmh.read_case(case, clip_percentiles=CLIP) for case in cases]
    table = pd.DataFrame(
        {
            "subject": [case.subject for case in cases],
            "site": [case.site for case in cases],
            "lesion_ml": [volume.lesion_ml for volume in volumes],
        }
    )
    fingerprint = records.data_fingerprint(path for case in cases for path in (case.flair, case.t1, case.wmh))
    stamp = records.stamp(root=root, device="cpu", seed=0, data_fingerprint=fingerprint, profile="tiny")
    records.write_table(place.folds, splits.make_folds(table, folds=3, seed=0), stamp)
    place.runs.mkdir(parents=True)
    summary = {"root": str(root), "fingerprint": fingerprint, "clip_percentiles": list(CLIP), "phantom": True}
    place.cases.write_text(json.dumps(summary), encoding="utf-8")
    made = Trained(place, DIFFUSION, SAMPLING)
    train(made)
    return made


def train(made: Trained) -> None:
    run, diffusion = made.run, build_diffusion(**DIFFUSION)
    bank, common = run.training_slices(), {"select": "dice", "on_step": lambda step, loss: None}
    for seed in (0, 1):
        torch.manual_seed(seed)
        fit_network(
            build_segmenter(**SEGMENTER),
            segmentation_objective(segmentation_loss("ce")),
            bank,
            lambda average: experiment.segmenter_dice(run, average),
            fit=replace(FIT, seed=seed),
            fabric=Fabric(accelerator="cpu", devices=1),
            folder=made.place.weights(f"attention_unet_{seed}"),
            card={"kind": "segmenter", "network": SEGMENTER, "data": run.grid_card()},
            **common,
        )
    torch.manual_seed(0)
    fit_network(
        GuidedUNet(**DENOISER),
        diffusion_objective(diffusion, diffusion.schedule.steps),
        bank,
        lambda average: experiment.sampled_dice(run, average, diffusion, made.chain(), run.subjects("validation")[:1]),
        fit=FIT,
        fabric=Fabric(accelerator="cpu", devices=1),
        folder=made.place.weights("denoiser"),
        card={
            "kind": "denoiser",
            "network": DENOISER,
            "diffusion": DIFFUSION,
            "t_max": diffusion.schedule.steps,
            "data": run.grid_card(),
            "sampling": SAMPLING,
        },
        **common,
    )


@pytest.fixture
def trained(networks: Trained, tmp_path: Path) -> Trained:
    """A copy of `networks` without any cached prediction, to be used up."""
    place = Layout(tmp_path / "out", networks.place.profile)
    shutil.copytree(networks.place.out, place.out)
    return replace(networks, place=place)


@pytest.fixture
def volume() -> wmh.Volume:
    """A small patient whose brain touches the image's border and leaves out the outer slices."""
    rng = np.random.default_rng(3)
    brain = np.zeros((6, 11, 14), dtype=bool)
    brain[1:5, 0:9, 3:14] = True
    brain[3] = False
    brain[2, 5, 7] = False
    image = rng.standard_normal((2, *brain.shape), dtype=np.float32) * brain
    mask = (rng.random(brain.shape) < 0.1).astype(np.uint8) * brain
    grid = wmh.Grid((14, 11, 6), affine(), nib.Nifti1Header())
    return wmh.Volume(image, brain, mask, brain & ~brain, (3.0, 4.0, 4.8), grid)


def rows(method, values, metric="dice", **about):
    """Score rows of a method, one subject a value."""
    about = {"fold": 0, "seed": 1, "site": "Utrecht", "split": "test", "nfe": 1, "seconds": 2.0} | about
    return pd.concat(
        [records.score_rows({metric: v}, method=method, subject=f"Utrecht/{i}", **about) for i, v in enumerate(values)],
        ignore_index=True,
    )
