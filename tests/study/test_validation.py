"""What trainings are watched by, by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from pdlib.diffusion.sampler import Sampler
from pdlib.evaluation import metrics
from pdlib.kernels import noise
from pdlib.study.members import drawn_once, draws, sampled
from pdlib.study.run import diffusion_of
from pdlib.study.validation import (
    drawn_masks,
    lesion_statistics,
    mean_dice,
    pick_checkpoints,
    sampled_dice,
    segmenter_dice,
    state_faults,
    state_overlap,
    state_statistics,
)

CURVE = pd.Series({15: 0.10, 30: 0.50, 45: 0.60, 60: 0.65, 75: 0.70, 90: 0.69})


@pytest.mark.parametrize(
    ("gaps", "steps"),
    [
        ([0.2, 0.1, 0.0], [30, 45, 75]),
        ([0.0, 0.1, 0.2], [30, 45, 75]),
        ([0.045, 0.029, 0.0], [60, 90, 75]),
        ([0.045, 0.029, 0.014, 0.0], [45, 60, 90, 75]),
        ([0.0], [75]),
    ],
)
def test_checkpoints_by_hand(gaps, steps):
    """Targets are best - gap = .50, .60; or .655 and .671, so .65 and .69, unless .686 takes .69."""
    assert pick_checkpoints(CURVE, gaps) == steps


def test_too_few_checkpoints_is_said():
    with pytest.raises(ValueError, match="4 checkpoints asked of a training with 3 distinct scores"):
        pick_checkpoints(pd.Series({1: 0.1, 2: 0.2, 3: 0.2, 4: 0.3}), [0.045, 0.029, 0.014, 0.0])


def test_mean_dice_leaves_out_a_subject_without_lesion_and_prediction(networks, monkeypatch):
    run, subjects = networks.run, networks.run.subjects("validation")
    whole = [run.labels(subject) == 1 for subject in subjects]
    half = [*whole[:1], *(mask & False for mask in whole[1:])]
    assert mean_dice(run, subjects, (mask * 0.5 for mask in whole)) == 1, "the threshold itself is a lesion"
    assert mean_dice(run, subjects, (mask * 0.49 for mask in whole)) == 0
    assert mean_dice(run, subjects, half) == pytest.approx(1 / 3)
    monkeypatch.setattr(type(run), "labels", lambda self, name: whole[0] * (name == subjects[0]))
    assert mean_dice(run, subjects, half) == 1


def test_curves_are_the_dice_of_validation_subjects(trained):
    run, subjects = trained.run, trained.run.subjects("validation")

    def dice(subject, values):
        return metrics.score_volume(run.labels(subject), values >= 0.5, run.volume(subject).spacing_mm)["dice"]

    weights = run.weights("attention_unet_0")
    network = run.network(weights, "segmenter")
    kept = {subject: drawn_once(run, network, subject) for subject in subjects}
    expected = np.nanmean([dice(subject, values) for subject, values in kept.items()])
    assert segmenter_dice(run, network) == {"dice": pytest.approx(expected)}
    denoiser = run.weights("denoiser_0")
    sampler = Sampler(run.denoiser(denoiser), diffusion_of(denoiser), trained.chain(calls=2))
    starts = {subject: (values >= 0.5).astype(np.float32) for subject, values in kept.items()}
    for start in (starts.get, None):
        members = {one: sampled(run, sampler, one, start and start(one)) for one in subjects[:2]}
        expected = np.nanmean([dice(subject, values) for subject, values in members.items()])
        assert sampled_dice(run, sampler, subjects[:2], start) == {"dice": pytest.approx(expected)}
    assert not list(trained.place.runs.rglob("*.npz")), "networks in training leave nothing in the cache"


def test_a_generator_s_states_stand_beside_diffused_references(trained):
    run, diffusion = trained.run, diffusion_of(trained.run.weights("denoiser_0"))
    weights, subjects = run.weights("tdpm_0300"), run.subjects("test")[:2]
    table = state_statistics(run, weights, diffusion, 3, subjects)
    abar = float(diffusion.schedule.abar(2))
    diffused = table.loc["diffused"]
    assert diffused["mean in lesions"] == pytest.approx(abar**0.5, abs=0.1)
    assert diffused["deviation outside"] == pytest.approx((1 - abar) ** 0.5, rel=0.1)
    assert diffused["deviation between draws"] == pytest.approx((1 - abar) ** 0.5, rel=0.1)
    assert "rater" not in table.index, "these cases have no other rater"
    drawn = np.stack([draws(run, weights, subject, 2).values for subject in subjects])
    inside = np.stack([run.volume(subject).brain & (run.volume(subject).mask == 0) for subject in subjects])
    assert table.loc["drawn", "mean outside"] == pytest.approx(drawn.swapaxes(0, 1)[:, inside].mean(), rel=1e-5)


def test_another_rater_s_mask_is_what_a_draw_can_come_to(trained, monkeypatch):
    """A rater who marks the voxels of every second column marks half of a lesion, about."""
    run, diffusion = trained.run, diffusion_of(trained.run.weights("denoiser_0"))

    def half(self, subject):
        return {"o3": np.where(np.arange(run.volume(subject).mask.shape[2]) % 2, run.volume(subject).mask, 2)}

    monkeypatch.setattr(type(run), "raters", half)
    subjects = run.subjects("test")[:2]
    table = state_statistics(run, run.weights("tdpm_0300"), diffusion, 3, subjects)
    masks = [run.volume(subject).mask == 1 for subject in subjects]
    share = sum(mask[:, :, 1::2].sum() for mask in masks) / sum(mask.sum() for mask in masks)
    missed = table.loc["diffused", "mean in lesions"] - table.loc["rater", "mean in lesions"]
    assert missed == pytest.approx((1 - share) * float(diffusion.schedule.abar(2)) ** 0.5)
    assert table.loc["rater", "mean outside"] == pytest.approx(table.loc["diffused", "mean outside"]), "label 2 is none"


def test_the_mask_in_a_draw_is_what_the_generator_has_drawn(trained):
    run, weights = trained.run, trained.run.weights("tdpm_0300")
    subject, network = run.subjects("test")[0], trained.run.network(weights, "generator")
    image, window = run.subject(subject).slices()
    masks = drawn_masks(run, weights, subject, 2)
    for member, mask in enumerate(masks):
        numbers = torch.from_numpy(window.slices)
        streams = run.subject(subject).streams(numbers, torch.full_like(numbers, member))
        fresh = noise.normal(streams, noise.LATENT, len(network.noise_scales), *image.shape[2:])
        with torch.inference_mode():
            drawn = window.put_back(network.draw_mask(image, fresh)[:, 0].numpy(), run.volume(subject).brain.shape)
        np.testing.assert_allclose(mask, drawn * run.volume(subject).brain, atol=5e-3)
    assert np.abs(masks[0] - masks[1]).max() > 0


def test_lesions_by_hand(networks):
    """One lesion of the reference is found whole, and one voxel elsewhere is another that is none."""
    run, subject = networks.run, networks.run.subjects("test")[0]
    truth = run.labels(subject) == 1
    labels, count = ndimage.label(truth, np.ones((3, 3, 3)))
    mask = labels == 1
    far = np.argwhere(~ndimage.binary_dilation(truth, np.ones((3, 3, 3))) & (run.labels(subject) == 0))[0]
    mask[tuple(far)] = True
    found, ml = lesion_statistics(run, mask, subject), np.prod(run.volume(subject).spacing_mm) / 1000
    assert found["lesions"] == 2 and found["ml"] == pytest.approx(mask.sum() * ml)
    assert found["median ml"] == pytest.approx(((mask.sum() - 1) * ml + ml) / 2)
    assert found["share found"] == pytest.approx(1 / count) and found["share true"] == 0.5
    assert found["Dice"] == pytest.approx(2 * (mask.sum() - 1) / (mask.sum() + truth.sum()))
    assert np.isnan(lesion_statistics(run, mask & False, subject)["median ml"])


@pytest.mark.parametrize(
    ("drawn", "faults"),
    [
        ((0.8, 0.01, 0.47, 0.43), []),
        ((0.78, 0.01, 0.47, 0.43), ["mean in lesions"]),
        ((1.0, 0.03, 0.46, 0.46), ["mean in lesions", "mean outside"]),
        ((0.9, 0.0, 0.49, 0.41), ["deviation outside", "deviation between draws"]),
    ],
)
def test_faults_by_hand(drawn, faults):
    columns = ["mean in lesions", "mean outside", "deviation outside", "deviation between draws"]
    states = pd.DataFrame([(0.89, 0.0, 0.46, 0.46), drawn], ["diffused", "drawn"], columns)
    limits = {"mean_in_lesions": 0.1, "mean_outside": 0.02, "deviation_outside": 0.05, "between_draws": 0.9}
    assert state_faults(states, limits, "diffused") == faults


def test_overlap_of_states_is_a_dice_without_their_noise(networks):
    """Half of each lesion and as much outside: a Dice of one half; noise of mean 0 changes nothing."""
    run, states = networks.run, {}
    for subject in run.subjects("validation"):
        volume = run.volume(subject)
        mask = 0.5 * (volume.mask == 1)
        outside = np.argwhere(volume.brain & (volume.mask != 1))[: (volume.mask == 1).sum()]
        mask[tuple(outside.T)] = 0.5
        fresh = np.random.default_rng(0).standard_normal(mask.shape)
        for part in (volume.mask == 1, volume.brain & (volume.mask != 1)):
            fresh[part] -= fresh[part].mean()
        states[subject] = -0.8 + 1.6 * mask + 0.5 * fresh
    found = state_overlap(run, states, -0.8, 0.8)
    assert found == {"in_lesions": pytest.approx(0.0, abs=1e-6), "overlap": pytest.approx(0.5)}
