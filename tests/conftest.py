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

from pdlib.data import folds as splits
from pdlib.data import wmh
from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.evaluation import records
from pdlib.inference import slices
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.networks.segmenters import segmentation_loss
from pdlib.paths import Layout
from pdlib.profiles import Profile, load_profile
from pdlib.study.run import Run
from pdlib.study.trainings import sampling_card
from pdlib.study.validation import sampled_dice, segmenter_dice
from pdlib.training.fit import Fit, Training, fit_network
from pdlib.training.objectives import (
    adversarial_objective,
    diffusion_objective,
    hybrid_objective,
    marginal,
    one_step_objective,
    probabilistic_objective,
    segmentation_objective,
)
from pdlib.training.weights import BUILDERS, load_weights, write_weights

pytest_plugins = ["faults"]
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
UNET = {"in_channels": 2, "out_channels": 1, "channels": [4, 8], "strides": [2], "num_res_units": 0, "norm": "batch"}
BAYESIAN = UNET | {"name": "bayesian_unet", "dropout": 0.5, "dropout_from": 1}
PROBABILISTIC = UNET | {"name": "probabilistic_unet", "block_convolutions": 1, "latent": 6, "log_sigma_range": [-5, 2]}
PROBABILISTIC |= {"combination_layers": 2, "code_gain": 1.0}
GAN = UNET | {"noise_scales": [1, 4], "discriminator_channels": [4, 8], "discriminator_strides": [2]}
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
LINEAR = {"name": "linear", "steps": 10, "first_beta": 0.01, "last_beta": 0.9}
CHANGES = {
    "data": {"folds": 3, "multiple": 4, "clip_percentiles": list(CLIP)},
    "machine": {"device": "cpu", "precision": "32-true", "batch_size": 8},
    "ensemble": {"size": 3, "threshold": 0.5, "vote": "soft"},
    "chain": {"t_prime": 400, "t_stop": 200, "stride": 2, "rule": "ddpm", "eta": 1.0},
    "denoiser": {"diffusion": {"schedule": {"steps": 10}, "prediction": "v"}, "t_max": 10},
    "tdpm": {"t_primes": [300, 400, 500]},
    "truncation": {"t_stops": [200]},
}
FIT = Fit(
    steps=2,
    batch_size=2,
    crop=(16, 16),
    flip_probability=0.5,
    learning_rate=0.01,
    final_learning_rate=0.01,
    weight_decay=0.0,
    betas=(0.9, 0.999),
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
    profile: Profile

    @property
    def run(self) -> Run:
        return Run.at(self.place, self.profile)

    @property
    def weights(self) -> Path:
        return self.place.weights("denoiser_0").parent

    @property
    def preseg(self) -> Path:
        return self.place.weights("attention_unet_0") / "best.safetensors"

    def chain(self, t_prime: int = 4, **changes) -> Chain:
        about = {"start": "preseg", "finish": "run_to_zero", "calls": t_prime, "rule": "ddpm", "eta": 1.0}
        return Chain(t_prime=t_prime, **about | {"convention": "consistent"} | changes)


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
    about = {"device": "cpu", "seed": 0, "data_fingerprint": fingerprint, "phantom": True, "profile": "tiny"}
    stamp = records.stamp(root=root, **about)
    records.write_table(place.folds, splits.make_folds(table, folds=3, seed=0), stamp)
    place.runs.mkdir(parents=True)
    summary = {"root": str(root), "fingerprint": fingerprint, "clip_percentiles": list(CLIP), "phantom": True}
    summary["given"] = False
    summary["cpu_precision"] = "32-true"
    place.cases.write_text(json.dumps(summary), encoding="utf-8")
    made = Trained(place, load_profile("smoke", CHANGES))
    train(made)
    return made


def train(made: Trained) -> None:
    run, diffusion = made.run, build_diffusion(**DIFFUSION)
    bank, watched = run.training_slices(), run.subjects("validation")[:1]
    steps, cross_entropy = diffusion.schedule.steps, segmentation_objective(segmentation_loss("ce"))

    def fitted(name, kind, network, objective, validate, seed=0, **card):
        torch.manual_seed(seed)
        training = Training(
            replace(FIT, seed=seed),
            made.place.weights(name),
            {"kind": kind, "network": network, "data": run.data_card(), **card},
            "dice",
            torch.device("cpu"),
            "32-true",
            lambda step, losses: None,
        )
        fit_network(BUILDERS[kind](**network), objective, bank, validate, training)

    def segmented(average):
        return segmenter_dice(run, average)

    def sampled(average):
        sampler = Sampler(run.prepare(average, diffusion.schedule.steps), diffusion, made.chain())
        return sampled_dice(run, sampler, watched)

    for seed in (0, 1):
        fitted(f"attention_unet_{seed}", "segmenter", SEGMENTER, cross_entropy, segmented, seed)
    fitted("bayesian_unet_0", "segmenter", BAYESIAN, cross_entropy, segmented)
    fitted("probabilistic_unet_0", "segmenter", PROBABILISTIC, probabilistic_objective(1.0, 1, 0.0), segmented)
    card = {"diffusion": DIFFUSION, "t_max": steps, "sampling": sampling_card(run)}
    fitted("denoiser_0", "denoiser", DENOISER, diffusion_objective(diffusion, steps), sampled, **card)
    card |= {"diffusion": DIFFUSION | {"schedule": LINEAR}}
    hybrid = hybrid_objective(build_diffusion(**card["diffusion"]), steps, 0.001)
    fitted("wolleb2021", "denoiser", DENOISER | {"out_channels": 2}, hybrid, lambda average: {"dice": 0.0}, **card)
    game, state = adversarial_objective(diffusion, 3, 1), marginal(diffusion, 2)
    fitted("tdpm_0300", "generator", GAN | state, game, lambda average: {"dice": 0.0})
    for name, mask_only in (("one_step_0200", False), ("one_step_0200_mask", True)):
        network = SEGMENTER | {"in_channels": 1 if mask_only else 3}
        objective = one_step_objective(diffusion, 2, mask_only, segmentation_loss("ce"))
        card = {"t_stop": 2, "mask_only": mask_only}
        fitted(name, "one_step", network, objective, lambda average: {"dice": 0.0}, **card)


@pytest.fixture
def trained(networks: Trained, tmp_path: Path) -> Trained:
    """A copy of `networks` without any cached prediction, to be used up."""
    place = Layout(tmp_path / "out", networks.place.profile)
    shutil.copytree(networks.place.out, place.out)
    return replace(networks, place=place)


def rewritten(path: Path, shift: float = 0.0, **card) -> None:
    """Other weights or another card in the same file."""
    weights = load_weights(path)
    tensors = {name: one + shift if one.is_floating_point() else one for name, one in weights.tensors.items()}
    write_weights(path, tensors, {**weights.card, **card})


class Calls:
    """Images that networks were called on, counted at the networks themselves."""

    def __init__(self, monkeypatch):
        self.images = 0
        denoise, call = PreparedDenoiser.__call__, slices._call

        def counted_denoise(network, x, t):
            self.images += len(x)
            return denoise(network, x, t)

        def counted_call(network, compute, on_call, x, *arguments):
            self.images += len(x)
            return call(network, compute, on_call, x, *arguments)

        monkeypatch.setattr(PreparedDenoiser, "__call__", counted_denoise)
        monkeypatch.setattr(slices, "_call", counted_call)

    def since(self) -> int:
        """Since it was asked last."""
        images, self.images = self.images, 0
        return images


@pytest.fixture
def calls(monkeypatch) -> Calls:
    return Calls(monkeypatch)


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


@pytest.fixture(scope="session")
def random_network() -> GuidedUNet:
    """A denoiser without zeros that also says how large the variance is."""
    torch.manual_seed(0)
    network = GuidedUNet(**DENOISER | {"out_channels": 2})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return network.requires_grad_(False)


def rows(method, values, metric="dice", **about):
    """Score rows of a method, one subject a value."""
    about = {"fold": 0, "seed": 1, "site": "Utrecht", "split": "test", "nfe": 1, "seconds": 2.0} | about
    return pd.concat(
        [records.score_rows({metric: v}, method=method, subject=f"Utrecht/{i}", **about) for i, v in enumerate(values)],
        ignore_index=True,
    )
