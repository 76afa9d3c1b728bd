"""The losses against hand-written ones."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pdlib.diffusion.sampler import build_diffusion
from pdlib.training.bank import Batch
from pdlib.training.corruption import Mixture, mixed_presegs
from pdlib.training.objectives import (
    build_objective,
    diffusion_objective,
    distillation_objective,
    hybrid_objective,
    noise_level_objective,
    one_step_objective,
    refiner_objective,
    segmentation_objective,
    start_matched_objective,
)


def diffusion(prediction, codec="zero_one"):
    schedule = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
    return build_diffusion(schedule=schedule, codec=codec, prediction=prediction)


def cosine_abar(t):
    """In closed form, from paper time t = k + 1; max_beta is reached only at the very end."""
    f = np.cos((np.append(0, t) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return (f[1:] / f[0]).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_start", "logit"])
def test_diffusion_loss_is_the_hand_written_one(prediction, codec):
    rng = torch.Generator().manual_seed(2)
    image, mask = torch.randn(6, 2, 5, 4, generator=rng), (torch.rand(6, 1, 5, 4, generator=rng) < 0.3).float()

    def network(x, t):
        return 0.3 * x[:, 2:] + 0.2 * x[:, :1] - 0.1 * x[:, 1:2] + t.reshape(-1, 1, 1, 1) / 1000

    objective = diffusion_objective(diffusion(prediction, codec), 900)
    loss = objective(network, Batch(image, mask, 0, torch.Generator().manual_seed(7)))["train_loss"]

    again = torch.Generator().manual_seed(7)
    k = torch.randint(900, (6,), generator=again).numpy()
    eps = torch.randn(6, 1, 5, 4, generator=again).double().numpy()
    abar, (flair, t1) = cosine_abar(k + 1), image.double().numpy().swapaxes(0, 1)[:, :, None]
    x_0 = mask.double().numpy() * (2 if codec == "minus_one_one" else 1) - (codec == "minus_one_one")
    x_t = np.sqrt(abar) * x_0 + np.sqrt(1 - abar) * eps
    output = 0.3 * x_t + 0.2 * flair - 0.1 * t1 + k.reshape(-1, 1, 1, 1) / 1000
    if prediction == "logit":
        likelihood = np.where(mask.numpy() == 1, 1 / (1 + np.exp(-output)), 1 / (1 + np.exp(output)))
        assert loss.item() == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)
        return
    target = {"eps": eps, "x_start": x_0, "v": np.sqrt(abar) * eps - np.sqrt(1 - abar) * x_0}[prediction]
    assert loss.item() == pytest.approx(np.mean((output - target) ** 2), rel=1e-5)


def test_the_bound_teaches_the_variance_and_the_simple_loss_the_prediction():
    """In the hybrid loss neither half of the network's channels feels the other's part."""
    rng = torch.Generator().manual_seed(2)
    image, mask = torch.randn(6, 2, 5, 4, generator=rng), (torch.rand(6, 1, 5, 4, generator=rng) < 0.3).float()
    network = torch.nn.Conv2d(3, 2, 1)
    setting = diffusion("eps")

    def parts(vlb_weight=0.001):
        batch = Batch(image, mask, 0, torch.Generator().manual_seed(7))
        return hybrid_objective(setting, 1000, vlb_weight)(lambda x, t: network(x), batch)

    def gradient(loss):
        return torch.autograd.grad(loss, network.weight)[0].abs().sum((1, 2, 3))

    hybrid = parts()
    assert (gradient(hybrid["train_loss"]) > 0).tolist() == [True, False]
    hybrid = parts()
    assert (gradient(hybrid["vlb_loss"]) > 0).tolist() == [False, True]
    assert parts(0.002)["vlb_loss"].item() == pytest.approx(2 * hybrid["vlb_loss"].item())

    first = diffusion_objective(setting, 1000)
    alone = first(lambda x, t: network(x)[:, :1], Batch(image, mask, 0, torch.Generator().manual_seed(7)))
    assert alone["train_loss"].item() == pytest.approx(hybrid["train_loss"].item())


def test_every_index_below_t_max_is_trained_and_no_other():
    seen = []

    def network(x, t):
        seen.extend(t.tolist())
        return x[:, 2:]

    objective = diffusion_objective(diffusion("eps"), 8)
    empty = torch.zeros(400, 2, 1, 1)
    objective(network, Batch(empty, empty[:, :1], 0, torch.Generator().manual_seed(0)))
    assert set(seen) == set(range(8))


@pytest.mark.parametrize("mask_only", [False, True])
def test_the_last_network_of_addpm_learns_the_mask_from_its_own_noise_level(mask_only):
    rng = torch.Generator().manual_seed(2)
    image, mask = torch.randn(5, 2, 6, 4, generator=rng), (torch.rand(5, 1, 6, 4, generator=rng) < 0.3).float()
    seen = []

    def network(x):
        seen.append(x)
        return x[:, -1:]

    objective = one_step_objective(diffusion("eps"), 250, mask_only, nn.functional.mse_loss)
    loss = objective(network, Batch(image, mask, 0, torch.Generator().manual_seed(7)))["train_loss"]
    eps = torch.randn(5, 1, 6, 4, generator=torch.Generator().manual_seed(7)).double().numpy()
    abar = cosine_abar(np.full(1, 250)).item()  # paper time 250: index 249
    x_t = np.sqrt(abar) * mask.double().numpy() + np.sqrt(1 - abar) * eps
    assert abar == pytest.approx(0.84701216, abs=1e-8)
    np.testing.assert_allclose(seen[0][:, -1:], x_t, atol=1e-5)
    assert seen[0].shape[1] == (1 if mask_only else 3) and (mask_only or torch.equal(seen[0][:, :2], image))
    assert loss.item() == pytest.approx(np.mean((x_t - mask.double().numpy()) ** 2), rel=1e-4)


@pytest.mark.parametrize("prediction", ["v", "x_start"])
def test_distillation_loss_is_the_hand_written_one(prediction):
    """For x_start the error of x, for v the same weighted by SNR + 1 = 1 / (1 - abar)."""
    rng = torch.Generator().manual_seed(2)
    image, masks = torch.randn(16, 2, 5, 4, generator=rng), (torch.rand(16, 2, 5, 4, generator=rng) < 0.3).float()
    grid = (299, 224, 149, 74)

    def teacher(x, t):
        return 1.3 * x[:, 2:] + 0.2 * x[:, :1] + t.reshape(-1, 1, 1, 1) / 1000

    def student(x, t):
        return 0.4 * x[:, 2:] - 0.1 * x[:, 1:2] - t.reshape(-1, 1, 1, 1) / 1000

    objective = distillation_objective(diffusion(prediction), teacher, grid, 0.5)
    loss = objective(student, Batch(image, masks, 0, torch.Generator().manual_seed(7)))["train_loss"]

    again = torch.Generator().manual_seed(7)
    i = 2 * torch.randint(2, (16,), generator=again).numpy()
    guessed = torch.rand(16, generator=again).numpy().reshape(-1, 1, 1, 1) < 0.5
    eps = torch.randn(16, 1, 5, 4, generator=again).double().numpy()
    times = np.append(grid, -1)
    flair, t1 = image.double().numpy().swapaxes(0, 1)[:, :, None]
    reference, preseg = masks.double().numpy().swapaxes(0, 1)[:, :, None]
    assert {*i} == {0, 2} and 0 < guessed.sum() < 16 and (preseg != reference).any()

    def levels(k):
        abar = np.where(k.reshape(-1, 1, 1, 1) < 0, 1, cosine_abar(np.maximum(k, 0) + 1))
        return np.sqrt(abar), np.sqrt(1 - abar)

    def x_of(output, state, k):
        signal, sigma = levels(k)
        return output if prediction == "x_start" else signal * state - sigma * output

    start, at = np.where(guessed, preseg, reference), [times[i + step] for step in range(3)]
    (signal, sigma), kept = levels(at[0]), []
    state = first = signal * start + sigma * eps
    for here, there in pairwise(at):
        output = 1.3 * state + 0.2 * flair + here.reshape(-1, 1, 1, 1) / 1000
        x, (signal_here, sigma_here), (signal_next, sigma_next) = x_of(output, state, here), levels(here), levels(there)
        state = signal_next * x + sigma_next * (state - signal_here * x) / sigma_here
        with np.errstate(divide="ignore"):
            kept.append((x, signal_next / sigma_next - signal_here / sigma_here))
    (x_1, gone_1), (x_2, gone_2) = kept
    target = np.where(np.isinf(gone_2), x_2, x_1 + (x_2 - x_1) / (1 + gone_1 / gone_2))
    error = x_of(0.4 * first - 0.1 * t1 - at[0].reshape(-1, 1, 1, 1) / 1000, first, at[0]) - target
    weight = 1 if prediction == "x_start" else 1 / sigma**2
    assert np.abs(target).max() > 1, "the teacher is not clamped"
    assert loss.item() == pytest.approx(np.mean(weight * error**2), rel=1e-4)


@pytest.mark.parametrize("prediction", ["v", "x_start"])
def test_a_perfect_teacher_s_student_has_nothing_to_learn_but_the_reference(prediction):
    reference = (torch.rand(8, 1, 5, 4, generator=torch.Generator().manual_seed(2)) < 0.3).double()
    image, setting = torch.zeros(8, 2, 5, 4, dtype=torch.float64), diffusion(prediction)

    def perfect(x, t):
        abar = setting.schedule.abar(t).reshape(-1, 1, 1, 1)
        v = (abar.sqrt() * x[:, 2:] - reference) / (1 - abar).sqrt()
        return (v if prediction == "v" else reference).float()

    batch = Batch(image, torch.cat([reference, 1 - reference], dim=1), 0, torch.Generator().manual_seed(7))
    loss = distillation_objective(setting, perfect, (299, 149), 0.0)(perfect, batch)["train_loss"]
    assert loss.item() < 1e-9
    worse = distillation_objective(setting, perfect, (299, 149), 0.0)(lambda x, t: perfect(x, t) + 0.1, batch)
    assert worse["train_loss"].item() == pytest.approx(0.01, rel=1e-3)


def test_what_predicts_eps_is_not_distilled():
    with pytest.raises(ValueError, match="predicts eps cannot be distilled: train it to predict v or x_start"):
        distillation_objective(diffusion("eps"), torch.zeros_like, (29, 14), 0.5)


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
def test_start_matched_loss_is_the_hand_written_one(codec):
    rng = torch.Generator().manual_seed(2)
    image, pair = torch.randn(6, 2, 5, 4, generator=rng), (torch.rand(6, 2, 5, 4, generator=rng) < 0.3).float()
    mixture, seen = Mixture(corrupted=0.5, empty=0.2, dropped=0.4, added=0.4), []

    def network(x, t):
        seen.append((x.double().numpy(), t.numpy()))
        return 0.3 * x[:, 3:] + 0.2 * x[:, 2:3] - 0.1 * x[:, :1]

    objective = start_matched_objective(diffusion("logit", codec), 299, mixture)
    loss = objective(network, Batch(image, pair, 0, torch.Generator().manual_seed(7)))["train_loss"]

    again, low = torch.Generator().manual_seed(7), -1.0 * (codec == "minus_one_one")
    encoded = [low + (1 - low) * x for x in (pair[:, :1], mixed_presegs(pair[:, :1], pair[:, 1:], mixture, again))]
    x_0, preseg = (x.double().numpy() for x in encoded)
    k = torch.randint(300, (6,), generator=again).numpy()
    eps = torch.randn(6, 1, 5, 4, generator=again).double().numpy()
    signal, at_start = np.sqrt(cosine_abar(k + 1)), np.sqrt(0.78691051)
    share = (1 - signal) / signal * at_start / (1 - at_start)
    x_t = signal * (x_0 + share * (preseg - x_0)) + np.sqrt(1 - signal**2) * eps
    ((shown, t),) = seen
    np.testing.assert_allclose(shown, np.concatenate([image.double().numpy(), preseg, x_t], axis=1), atol=1e-5)
    assert (t == k).all() and k.max() <= 299
    output = 0.3 * x_t + 0.2 * preseg - 0.1 * image[:, :1].double().numpy()
    mask, chance = pair[:, :1].double().numpy(), 1 / (1 + np.exp(-output))
    assert loss.item() == pytest.approx(-np.mean(mask * np.log(chance) + (1 - mask) * np.log(1 - chance)), rel=1e-5)
    with pytest.raises(ValueError, match="predicts the mask's logit, not eps"):
        start_matched_objective(diffusion("eps"), 299, mixture)


def test_a_refiner_sees_the_same_pre_segmentations_and_learns_the_reference():
    rng = torch.Generator().manual_seed(2)
    image, pair = torch.randn(6, 2, 5, 4, generator=rng), (torch.rand(6, 2, 5, 4, generator=rng) < 0.3).float()
    mixture, seen = Mixture(corrupted=0.5, empty=0.2, dropped=0.4, added=0.4), []

    def network(x):
        seen.append(x)
        return x[:, 2:]

    objective = refiner_objective(diffusion("eps"), mixture, nn.functional.mse_loss)
    loss = objective(network, Batch(image, pair, 0, torch.Generator().manual_seed(7)))["train_loss"]
    preseg = mixed_presegs(pair[:, :1], pair[:, 1:], mixture, torch.Generator().manual_seed(7))
    assert torch.equal(seen[0], torch.cat([image, preseg], dim=1))
    assert loss.item() == pytest.approx(float(((preseg - pair[:, :1]) ** 2).mean()))


def test_objectives_by_name():
    batch = Batch(torch.randn(2, 2, 8, 8), torch.ones(2, 1, 8, 8), 0, torch.Generator().manual_seed(0))

    class Drawing(nn.Module):
        latent = 6

        def forward(self, image, mask, fresh):
            return image[:, :1], fresh.square().sum(dim=1)

    parts = build_objective("probabilistic", beta=1.0, warmup_steps=1, dice_nats=0.0)(Drawing(), batch)
    assert parts.keys() == {"reconstruction_loss", "kl_loss"}
    network = nn.Conv2d(2, 1, 1)
    built = build_objective("segmentation", loss="ce")(network, batch)["train_loss"]
    by_hand = segmentation_objective(nn.functional.binary_cross_entropy_with_logits)(network, batch)["train_loss"]
    assert torch.equal(built, by_hand)
    with pytest.raises(ValueError, match="unknown objective 'elbo'; known: probabilistic, segmentation"):
        build_objective("elbo")


def test_noise_level_loss_is_the_hand_written_one():
    """Also where the estimate rounds to a state without noise, whose logarithm would be infinite."""
    seen, found = [], torch.tensor([0.5, 0.9, 0.99, 0.999, 0.25, 1.0])

    def network(x):
        seen.append(x)
        return found

    image, mask = torch.randn(6, 2, 5, 4), torch.zeros(6, 1, 5, 4)
    batch = Batch(image, mask, 0, torch.Generator().manual_seed(7))
    loss = noise_level_objective(diffusion("eps"), 300)(network, batch)
    again = torch.Generator().manual_seed(7)
    abar = cosine_abar(torch.randint(300, (6,), generator=again).numpy() + 1)
    noise = torch.randn(6, 1, 5, 4, generator=again).numpy()
    assert torch.equal(seen[0][:, :2], image) and np.allclose(seen[0][:, 2:], np.sqrt(1 - abar) * noise, atol=1e-6)
    error = np.log(1 - abar.ravel()) - np.log(np.maximum(1 - found.double().numpy(), 2.0**-23))
    assert loss["train_loss"].item() == pytest.approx(np.mean(error**2), rel=1e-5)
