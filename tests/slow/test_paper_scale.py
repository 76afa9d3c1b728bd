"""The paper profile on the challenge's own grids: what it would run on 60 cases, and each step of it on three."""

import os
import resource
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from pdlib.data import phantom, wmh
from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.evaluation.metrics import score_volume
from pdlib.graph import graph
from pdlib.inference.precision import Compute
from pdlib.inference.slices import sample_slices, silent
from pdlib.inference.window import Window, brain_slices
from pdlib.kernels import noise
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.paths import CONFIGS, ROOT
from pdlib.profiles import load_profile
from pdlib.study.scale import VOLUME_BYTES, network_of
from pdlib.study.speed import Head, trials
from pdlib.training import fit as training
from pdlib.training.bank import SliceBank
from pdlib.training.objectives import diffusion_objective

PAPER = load_profile("paper")
GRIDS = {(48, 240, 240), (48, 256, 232), (83, 256, 132)}  # z, y, x
SPACINGS = {(3.0, 0.95, 0.96), (3.0, 1.0, 1.0), (3.0, 0.98, 1.2)}
READING_BYTES = 100  # of a voxel, at most, while a case is read
COPIES = 20  # of each case, in the folder that is only planned for
CPU = Compute(torch.device("cpu"), "32-true", 2)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder in the challenge's layout with a phantom of each site."""
    root = tmp_path_factory.mktemp("wmh")
    recipe = yaml.safe_load((CONFIGS / "phantom.yaml").read_text(encoding="utf-8"))["phantom"]
    how = {"grid_scale": PAPER.data.grid_scale, "label2_fraction": PAPER.data.label2_fraction}
    phantom.write_phantom(root, cases_per_site=1, seed=0, parameters=recipe, workers=1, **how)
    return root


@pytest.fixture(scope="module")
def volumes(three):
    how = {"clip_percentiles": tuple(PAPER.data.clip_percentiles)}
    return [wmh.read_case(case, **how) for case in wmh.find_cases(three)]


def peak_bytes():
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def dice_on_disk(reference, mask):
    """Twice the voxels in both lesions over their sum, in the files as they are stored; label 2 is in neither."""
    labels, found = (np.asarray(nib.load(path).dataobj) for path in (reference, mask))
    lesion, found = labels == 1, (found > 0) & (labels != 2)
    return 2 * np.sum(lesion & found) / (np.sum(lesion) + np.sum(found))


def test_sixty_cases_are_planned_for_without_reading_one(three, tmp_path):
    data, out = tmp_path / "wmh", tmp_path / "out"
    for case in wmh.find_cases(three):
        for copy in range(COPIES):
            for name in ("wmh.nii.gz", "pre/FLAIR.nii.gz", "pre/T1.nii.gz"):
                path = data / case.folder.parent.relative_to(three) / str(copy) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(case.folder / name)
    asked = {"PROFILE": "paper", "DATA": str(data), "OUT_FOLDER": str(out), "DRY": "1"}
    told = subprocess.run(
        [sys.executable, "-m", "pdlib.reproduce"],
        cwd=ROOT,
        env=os.environ | {f"PDLIB_{name}": value for name, value in asked.items()},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-4000:]
    assert f"{3 * COPIES} cases in '{data}'" in told.stdout.splitlines()
    jobs = graph(PAPER)
    assert all(f"runs/paper/notebooks/{job}.ipynb" in told.stdout for job in jobs) and len(jobs) > 30
    assert not [path for path in out.rglob("*") if path.suffix in (".csv", ".ipynb")]


def test_reading_takes_the_stated_memory_and_keeps_every_grid(three):
    seen = set()
    for case in wmh.find_cases(three):
        tracemalloc.start()
        volume = wmh.read_case(case, clip_percentiles=tuple(PAPER.data.clip_percentiles))
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        voxels = volume.brain.size
        seen.add((volume.brain.shape, tuple(np.round(volume.spacing_mm, 3).tolist())))
        print(f"{volume.brain.shape}: {peak / voxels:.0f} bytes a voxel while it is read, {kept / voxels:.1f} after")
        assert peak < READING_BYTES * voxels
        arrays = (volume.image, volume.brain, volume.mask, volume.ignore)
        assert sum(one.nbytes for one in arrays) == VOLUME_BYTES * voxels <= kept < (VOLUME_BYTES + 1) * voxels
    assert {grid for grid, _ in seen} == GRIDS and {spacing for _, spacing in seen} == SPACINGS


def test_slices_hold_the_brain_and_go_back_to_where_they_were(volumes):
    for volume in volumes:
        image, window = brain_slices(volume, PAPER.data.multiple)
        assert len(image) == volume.brain.any(axis=(1, 2)).sum() and not set(image.shape[-2:]) - {*range(0, 321, 32)}
        assert np.array_equal(window.put_back(window.cut(volume.mask), volume.brain.shape), volume.mask * 1)
        assert volume.mask.sum() > 0


def test_two_updates_two_calls_and_scores_in_the_counted_memory(three, volumes, tmp_path):
    settings, windows = PAPER.denoiser, [Window.around(volume.brain, 1) for volume in volumes]
    masks = [
        torch.from_numpy(one.cut(volume.mask)).float()[:, None] for one, volume in zip(windows, volumes, strict=True)
    ]
    images = [brain_slices(volume, 1)[0] for volume in volumes]
    bank = SliceBank([one for part in images for one in part], [one for part in masks for one in part])
    head = Head(45, 192, 160, (48, 240, 240), (3.0, 1.0, 1.0))
    trial = trials(PAPER, head)["denoiser"]
    single = replace(trial, fit=trial.fit.model_copy(update={"batch_size": 1}))
    counted, before = network_of(single), peak_bytes()
    assert 113e6 < counted.parameters < 114e6
    diffusion = build_diffusion(**settings.diffusion.arguments())
    how = training.Fit(**settings.fit.model_dump() | {"batch_size": 1}, seed=0)
    learner = training.Learner(GuidedUNet(**settings.network.arguments()), how, CPU.device, CPU.precision)
    objective = diffusion_objective(diffusion, settings.t_max)
    first = [one.detach().clone() for one in learner.network.parameters()]
    for step in range(2):
        training.update(learner, objective, bank.draw(step, how))
    assert all(torch.isfinite(one).all() for one in learner.network.parameters())
    assert any(not torch.equal(*pair) for pair in zip(first, learner.network.parameters(), strict=True))
    grown = peak_bytes() - before
    print(f"two updates of one image: {grown / 2**30:.1f} GiB more, {counted.gpu_bytes / 2**30:.1f} counted")
    assert grown < 1.5 * counted.gpu_bytes

    volume, middle = volumes[0], len(images[0]) // 2
    image, window = brain_slices(volume, PAPER.data.multiple)
    chain = Chain("preseg", "run_to_zero", 300, 2, "ddim", 0.0, "consistent")
    sampler = Sampler(PreparedDenoiser(learner.average, 1000, CPU.precision), diffusion, chain)
    start = torch.from_numpy(window.cut(volume.mask)).float()[None, middle : middle + 1, None]
    streams = noise.subject_streams(0, "scale", torch.tensor([middle]), torch.zeros(1, dtype=torch.int64))[None]
    drawn = sample_slices(sampler, image[middle : middle + 1], start, streams, CPU, silent)
    assert drawn.calls == 2 and np.isfinite(drawn.values).all()
    found = window.cut(volume.mask)
    found[middle] = drawn.values[0, 0, 0] > PAPER.ensemble.threshold
    whole = window.put_back(found, volume.brain.shape)
    path = tmp_path / "mask.nii.gz"
    wmh.write_volume(path, whole, volume.grid, np.uint8)
    scores = score_volume(volume.mask + 2 * volume.ignore, whole, volume.spacing_mm)
    assert scores["dice"] == pytest.approx(dice_on_disk(wmh.find_cases(three)[0].wmh, path), abs=1e-6)
    assert scores["dice"] < 1, "the slice that was drawn is not the reference's"
