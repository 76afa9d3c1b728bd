"""The fit loop: exact resume, averaged weights, the kept checkpoint, the batches, the losses, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import nn

from pdlib.diffusion.sampler import Chain, sample
from pdlib.inference.volumes import build_diffusion
from pdlib.kernels import noise
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.training.fit import (
    Batch,
    Fit,
    SliceBank,
    diffusion_objective,
    fit_network,
    hybrid_objective,
    one_step_objective,
    read_weights,
    segmentation_objective,
)

PLAN = Fit(
    steps=7,
    batch_size=3,
    crop=(6, 5),
    flip_probability=0.5,
    learning_rate=0.05,
    final_learning_rate=0.0,
    weight_decay=1e-3,
    betas=(0.9, 0.999),
    ema_decay=0.9,
    validate_every=2,
    keep_validated=True,
    seed=0,
)


class Killed(BaseException):
    """Nothing catches this."""


def small_bank():
    rng = torch.Generator().manual_seed(1)
    images = [torch.randn(2, 9, 8, generator=rng), torch.randn(2, 6, 7, generator=rng)]
    return SliceBank(images, [(image[:1] > 0.5).float() for image in images])


def small_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.SiLU(), nn.Conv2d(4, 1, 1)]
    return nn.Sequential(*layers)


def likelihood(network):
    batch = small_bank().draw(0, 0, PLAN)
    image, mask = batch.image, batch.mask
    with torch.no_grad():
        return {"score": -float(nn.functional.binary_cross_entropy_with_logits(network(image), mask))}


def fit_small(folder, *, plan=PLAN, card=None, network=None, objective=None, validate=likelihood, on_step=None):
    return fit_network(
        network or small_network(),
        objective or segmentation_objective(nn.functional.binary_cross_entropy_with_logits),
        small_bank(),
        validate,
        select="score",
        fit=plan,
        fabric=Fabric(accelerator="cpu", devices=1),
        folder=folder,
        card=card or {"kind": "test"},
        on_step=on_step or (lambda step, loss: None),
    )


def kill_after(step):
    def on_step(done, loss):
        if done == step:
            raise Killed

    return on_step


def kill_at_validation(number):
    calls = []

    def validate(network):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return likelihood(network)

    return validate


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return fit_small(folder), contents(folder)


@pytest.mark.parametrize(
    "death",
    [
        {"on_step": kill_after(1)},
        {"on_step": kill_after(2)},
        {"on_step": kill_after(5)},
        {"on_step": kill_after(7)},
        {"validate": kill_at_validation(3)},
    ],
    ids=["before the first checkpoint", "before its validation", "between", "at the end", "while validating"],
)
def test_a_killed_training_ends_with_the_same_bytes(tmp_path, uninterrupted, death):
    """Weights of every validation, the best, the checkpoint and the history; batch norm and dropout included."""
    history, files = uninterrupted
    with pytest.raises(Killed):
        fit_small(tmp_path, **death)
    torch.manual_seed(99)
    resumed = fit_small(tmp_path)
    pd.testing.assert_frame_equal(resumed, history)
    assert contents(tmp_path) == files


def test_a_finished_training_is_not_repeated(tmp_path, uninterrupted):
    fit_small(tmp_path)
    again = fit_small(tmp_path, on_step=kill_after(1), validate=kill_at_validation(1))
    pd.testing.assert_frame_equal(again, uninterrupted[0])


@pytest.mark.parametrize(
    "changed", [{"plan": replace(PLAN, learning_rate=0.01)}, {"card": {"kind": "another"}}], ids=["fit", "card"]
)
def test_another_recipe_in_the_same_folder_starts_anew(tmp_path, changed):
    fit_small(tmp_path / "used")
    fit_small(tmp_path / "used", **changed)
    fit_small(tmp_path / "fresh", **changed)
    assert contents(tmp_path / "used") == contents(tmp_path / "fresh")


class Slope(nn.Module):
    """One number; the loss is that number, so its gradient is 1 and each Adam update subtracts the learning rate."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return self.place


def fit_slope(tmp_path, **changes):
    """The averaged number after each update."""
    plan = replace(PLAN, weight_decay=0.0, validate_every=1, keep_validated=False, **changes)
    seen = []

    def validate(network):
        seen.append(network.place.item())
        return {"score": 0.0}

    def objective(network, batch):
        return {"train_loss": network(batch).sum()}

    fit_small(tmp_path, plan=plan, network=Slope(), objective=objective, validate=validate)
    return seen


def test_average_follows_its_closed_form(tmp_path):
    """After update n (from 0) the average keeps min(decay, (1 + n) / (10 + n)) of itself; the weights are -rate n."""
    expected, average = [], 0.0
    for n in range(12):
        keep = min(0.4, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * -0.1 * (n + 1)
        expected.append(average)
    seen = fit_slope(tmp_path, steps=12, learning_rate=0.1, final_learning_rate=0.1, ema_decay=0.4)
    assert seen == pytest.approx(expected, rel=1e-5)


def test_learning_rate_falls_along_a_cosine(tmp_path):
    seen = fit_slope(tmp_path, steps=8, learning_rate=0.3, final_learning_rate=0.1, ema_decay=0.0)
    rates = -np.diff([0.0, *seen])
    assert rates == pytest.approx([0.2 + 0.1 * math.cos(math.pi * n / 8) for n in range(8)], rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "kept"), [([0.2, 0.5, 0.5, 0.4], 2), ([0.1, 0.2, 0.3, 0.4], 4), ([0.4, 0.1, 0.4, 0.2], 1)]
)
def test_the_best_is_the_highest_and_of_equals_the_first(tmp_path, scores, kept):
    given = iter(scores)
    plan = replace(PLAN, steps=4, validate_every=1)
    history = fit_small(tmp_path, plan=plan, card={"kind": "test"}, validate=lambda network: {"score": next(given)})
    best, card = read_weights(tmp_path / "best.safetensors")
    assert card == {"kind": "test", "step": kept, "score": scores[kept - 1]}
    then, _ = read_weights(tmp_path / f"step_{kept:06d}.safetensors")
    assert all(torch.equal(best[name], then[name]) for name in best)
    assert history[history.metric == "score"].value.tolist() == scores


def test_only_the_best_is_kept_unless_asked(tmp_path):
    fit_small(tmp_path, plan=replace(PLAN, keep_validated=False))
    assert sorted(contents(tmp_path)) == ["best.safetensors", "last.safetensors"]


def test_history_holds_the_mean_loss_since_the_last_validation(tmp_path):
    losses = []
    history = fit_small(tmp_path, on_step=lambda step, loss: losses.append(loss.item()))
    rows = history[history.metric == "train_loss"].set_index("step").value
    expected = {2: losses[0:2], 4: losses[2:4], 6: losses[4:6], 7: losses[6:]}
    assert rows.to_dict() == pytest.approx({step: np.mean(part) for step, part in expected.items()})


def test_a_batch_depends_on_seed_step_and_rank_alone():
    def batch(step=3, rank=1, seed=0):
        drawn = small_bank().draw(step, rank, replace(PLAN, seed=seed))
        return torch.cat([drawn.image.flatten(), drawn.mask.flatten(), torch.rand(2, generator=drawn.generator)])

    torch.manual_seed(5)
    assert torch.equal(batch(), batch())
    assert all(not torch.equal(batch(), other) for other in (batch(step=4), batch(rank=0), batch(seed=1)))


def numbered(height, width):
    """A slice whose pixels all differ; the mask marks the one at (1, 1)."""
    image = torch.arange(1.0, 1 + height * width).reshape(1, height, width)
    mask = torch.zeros(1, height, width)
    mask[0, 1, 1] = 1
    return torch.cat([image, -image]), mask


def crops(size, crop, flip, batch=200):
    image, mask = numbered(*size)
    plan = replace(PLAN, crop=crop, flip_probability=flip, batch_size=batch)
    drawn = SliceBank([image], [mask]).draw(0, 0, plan)
    images, masks = drawn.image, drawn.mask
    assert images.shape == (batch, 2, *crop) and masks.shape == (batch, 1, *crop)
    assert torch.equal(images[:, 0], -images[:, 1])
    assert torch.equal(masks[:, 0] == 1, images[:, 0] == 1 * size[1] + 2), "mask and image are cut alike"
    return images[:, 0]


def test_every_crop_offset_is_reached_the_last_included():
    corners = {divmod(int(crop[0, 0]) - 1, 4) for crop in crops((5, 4), (3, 2), flip=0.0)}
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_a_slice_as_large_as_the_crop_is_taken_whole():
    assert (crops((5, 4), (5, 4), flip=0.0) == numbered(5, 4)[0][0]).all()


def test_a_smaller_slice_is_padded_with_zeros():
    padded = torch.zeros(5, 6)
    padded[:3, :4] = numbered(3, 4)[0][0]
    assert (crops((3, 4), (5, 6), flip=0.0) == padded).all()


def test_flips_are_left_to_right_and_as_frequent_as_asked():
    whole = numbered(5, 4)[0][0]
    assert (crops((5, 4), (5, 4), flip=1.0) == whole.flip(1)).all()
    flipped = (crops((5, 4), (5, 4), flip=0.25, batch=2000)[:, 0, 0] == 4).float().mean()
    assert float(flipped) == pytest.approx(0.25, abs=0.04)


def test_no_slices_is_said():
    with pytest.raises(ValueError, match="no training slices"):
        SliceBank([], [])


def diffusion(prediction, codec="zero_one"):
    schedule = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
    return build_diffusion(schedule=schedule, codec=codec, prediction=prediction)


def cosine_abar(t):
    """In closed form, from paper time t = k + 1; max_beta is reached only at the very end."""
    f = np.cos((np.append(0, t) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return (f[1:] / f[0]).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_start"])
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
    target = {"eps": eps, "x_start": x_0, "v": np.sqrt(abar) * eps - np.sqrt(1 - abar) * x_0}[prediction]
    output = 0.3 * x_t + 0.2 * flair - 0.1 * t1 + k.reshape(-1, 1, 1, 1) / 1000
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
    assert float(parts(0.002)["vlb_loss"]) == pytest.approx(2 * float(hybrid["vlb_loss"]))

    first = diffusion_objective(setting, 1000)
    alone = first(lambda x, t: network(x)[:, :1], Batch(image, mask, 0, torch.Generator().manual_seed(7)))
    assert float(alone["train_loss"]) == pytest.approx(float(hybrid["train_loss"]))


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


def test_bad_weights_files_are_named(tmp_path):
    path = tmp_path / "best.safetensors"
    fit_small(tmp_path)
    whole = path.read_bytes()
    for damage in (lambda: path.write_text("text"), lambda: path.write_bytes(b""), path.unlink):
        damage()
        with pytest.raises(ValueError, match=f"{path}: not a readable weights file"):
            read_weights(path)
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=f"{path}: not a readable weights file"):
        read_weights(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=f"{path}: not a readable weights file"):
        read_weights(path)


def test_a_denoiser_learns_two_masks_by_heart(tmp_path):
    """Trained on two slices, chains from pure noise end at the mask that belongs to the image."""
    image = torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 10, 10)
    mask[0, :, 1:5, 2:6] = 1
    mask[1, :, 5:9, 3:9] = 1
    image[:, :1] += 2 * mask
    schedule = {"name": "cosine", "steps": 20, "offset": 0.008, "max_beta": 0.999}
    setting = build_diffusion(schedule=schedule, codec="zero_one", prediction="x_start")
    torch.manual_seed(0)
    network = GuidedUNet(
        in_channels=3,
        out_channels=1,
        model_channels=32,
        channel_mult=[1],
        num_res_blocks=1,
        attention_downsample=[],
        num_heads=1,
        scale_shift=False,
        dropout=0.0,
        middle_attention=False,
    )
    plan = replace(PLAN, steps=60, batch_size=4, crop=(10, 10), flip_probability=0.0, learning_rate=0.01)
    history = fit_network(
        network,
        diffusion_objective(setting, 20),
        SliceBank(list(image), list(mask)),
        lambda average: {"score": 0.0},
        select="score",
        fit=replace(plan, validate_every=30, keep_validated=False, weight_decay=0.0),
        fabric=Fabric(accelerator="cpu", devices=1),
        folder=tmp_path,
        card={},
        on_step=lambda step, loss: None,
    )
    loss = history[history.metric == "train_loss"].value
    assert loss.iloc[-1] < 0.5 * loss.iloc[0]
    streams = noise.subject_streams(0, "a", torch.arange(2), torch.zeros(2, dtype=torch.int64))
    chain = Chain("gaussian", "run_to_zero", 20, 1, "ddpm", 1.0, "consistent")
    with torch.no_grad():
        drawn = sample(network.eval(), image, 0 * mask, chain=chain, diffusion=setting, streams=streams) >= 0.5
    for one, reference in zip(drawn, mask, strict=True):
        assert 2 * float((one * reference).sum()) / float(one.sum() + reference.sum()) > 0.95
