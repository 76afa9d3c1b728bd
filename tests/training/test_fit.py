"""The fit loop: exact resume, averaged weights, the kept checkpoint, the batches, the losses, and that it learns."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.kernels import noise
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.training.bank import SliceBank
from pdlib.training.fit import Fit, Learner, Training, TrainingDiverged, fit_network, update
from pdlib.training.objectives import diffusion_objective, segmentation_objective
from pdlib.training.weights import Weights

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
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # as every training builds its network


def likelihood(network):
    batch = small_bank().draw(0, PLAN)
    image, mask = batch.image, batch.mask
    with torch.no_grad():
        return {"score": -float(nn.functional.binary_cross_entropy_with_logits(network(image), mask))}


def silent(step, losses):
    """Show no progress."""


def fit_small(
    folder, *, plan=PLAN, card=None, network=None, objective=None, validate=likelihood, on_step=silent, start=None
):
    return fit_network(
        network or small_network(),
        objective or segmentation_objective(nn.functional.binary_cross_entropy_with_logits),
        small_bank(),
        validate,
        Training(plan, folder, card or {"kind": "test"}, "score", torch.device("cpu"), "32-true", on_step, start),
    )


def test_a_training_goes_on_from_other_weights_where_it_is_given_some(tmp_path):
    fit_small(tmp_path / "first")
    start = Weights.read(tmp_path / "first" / "best.safetensors")
    still = replace(PLAN, steps=1, learning_rate=0.0, weight_decay=0.0)
    fit_small(tmp_path / "second", plan=still, start=start)
    again = Weights.read(tmp_path / "second" / "best.safetensors").tensors
    for name, tensor in start.tensors.items():
        assert "running" in name or "num_batches" in name or torch.allclose(again[name], tensor), name
    with pytest.raises(ValueError, match=str(start.path)):
        fit_small(tmp_path / "third", network=nn.Sequential(nn.Conv2d(2, 1, 1)), start=start)


def kill_after(step):
    def on_step(done, losses):
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


@pytest.mark.fault("interrupted write or computation")
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


def test_a_folder_without_its_best_weights_starts_anew(tmp_path, uninterrupted):
    fit_small(tmp_path)
    (tmp_path / "best.safetensors").unlink()
    fit_small(tmp_path)
    assert contents(tmp_path) == uninterrupted[1]


def finished(folder):
    return Weights.read(folder / "best.safetensors").finished


def test_best_weights_say_whether_their_training_has_ended(tmp_path):
    """From the first validation to the last the answer is no, also after a kill in between and while resuming."""
    seen = []

    def validate(network):
        seen.append((tmp_path / "best.safetensors").exists() and finished(tmp_path))
        return likelihood(network)

    with pytest.raises(Killed):
        fit_small(tmp_path, on_step=kill_after(7), validate=validate)
    assert not finished(tmp_path)
    fit_small(tmp_path, validate=validate)
    assert len(seen) == 4 and not any(seen)
    assert finished(tmp_path)


@pytest.mark.fault("interrupted write or computation")
def test_a_kill_before_the_last_mark_is_made_good(tmp_path, uninterrupted, monkeypatch):
    def killed(best):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("pdlib.training.fit._mark_finished", killed)
        fit_small(tmp_path)
    assert not finished(tmp_path)
    fit_small(tmp_path, on_step=kill_after(1))
    assert contents(tmp_path) == uninterrupted[1]


def broken_from(step, value=math.nan):
    """The small segmenter's objective, whose loss is not finite from the update with this number (from 1) on."""
    healthy = segmentation_objective(nn.functional.binary_cross_entropy_with_logits)

    def objective(network, batch):
        (loss,) = healthy(network, batch).values()
        return {"plain_loss": loss, "odd_loss": loss * (value if batch.step + 1 >= step else 1.0)}

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_and_the_files_of_before_stay(tmp_path, value):
    with pytest.raises(Killed):
        fit_small(tmp_path, objective=broken_from(99), on_step=kill_after(3))
    before = contents(tmp_path)
    assert before.keys() == {"best.safetensors", "last.safetensors", "step_000002.safetensors"}
    said = rf"odd_loss is {value} in update 3; the last good checkpoint is {tmp_path}/last.safetensors, of update 2"
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match=said):
            fit_small(tmp_path, objective=broken_from(3, value))
        assert contents(tmp_path) == before
    fit_small(tmp_path, objective=broken_from(99))
    fit_small(tmp_path / "healthy", objective=broken_from(99))
    assert {**contents(tmp_path / "healthy")} == {
        path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")
    }


def test_a_loss_that_is_not_finite_from_the_start_leaves_nothing(tmp_path):
    with pytest.raises(TrainingDiverged, match=rf"odd_loss is nan in update 1; {tmp_path} holds no checkpoint yet"):
        fit_small(tmp_path, objective=broken_from(1))
    assert contents(tmp_path) == {}


class Slope(nn.Module):
    """One number; the loss is that number, so its gradient is 1 and each Adam update subtracts the learning rate."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return self.place


class Root(Slope):
    """Its loss stays finite while its gradient does not: sqrt at 0."""

    def forward(self, image):
        return (self.place * 0).sqrt()


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    """The loss before the last update says nothing of the weights after it."""
    plan = replace(PLAN, steps=1, validate_every=1)
    with pytest.raises(TrainingDiverged, match="place is not finite after update 1"):
        fit_small(tmp_path, plan=plan, network=Root(), objective=lambda network, batch: {"loss": network(batch).sum()})
    assert contents(tmp_path) == {}


def test_both_sides_of_a_game_are_watched(tmp_path):
    def objective(network, batch):
        loss = network(batch.image).square().mean()
        return {"g_loss": loss, "d_loss": loss * math.nan}

    with pytest.raises(TrainingDiverged, match="d_loss is nan in update 1"):
        fit_small(tmp_path, objective=objective)


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
    best = Weights.read(tmp_path / "best.safetensors")
    assert best.card == {"kind": "test", "step": kept, "score": scores[kept - 1], "finished": True}
    then = Weights.read(tmp_path / f"step_{kept:06d}.safetensors").tensors
    assert all(torch.equal(best.tensors[name], then[name]) for name in then)
    assert history[history.metric == "score"].value.tolist() == scores


STALLING = [0.2, 0.5, 0.5005, 0.4, math.nan, 0.9]  # of the validations of a training: the fifth ends it


def stalling(folder, *, death=None, scores=STALLING, **changes):
    """A training with a validation an update that ends at three without a gain of over 0.001."""
    plan = replace(PLAN, steps=len(scores), validate_every=1, patience=3, min_gain=0.001, **changes)
    done = len(list(folder.glob("step_*")))
    given = iter(scores[done:])
    history = fit_small(folder, plan=plan, validate=lambda network: {"score": next(given)}, on_step=death or silent)
    return history[history.metric == "score"].value.tolist(), Weights.read(folder / "best.safetensors").card


def test_a_training_ends_where_its_score_has_stopped_rising(tmp_path):
    """A gain within min_gain and a score that is not a number count as none; what comes later is not looked at."""
    scores, card = stalling(tmp_path)
    assert scores == pytest.approx(STALLING[:5], nan_ok=True)
    assert (card["step"], card["score"], card["finished"]) == (2, 0.5, True)


def test_small_gains_add_up(tmp_path):
    """Each is compared with the best, not with the score before."""
    creeping = [0.5, 0.5006, 0.5012, 0.5018, 0.5024, 0.503]
    assert stalling(tmp_path, scores=creeping)[0] == creeping
    assert Weights.read(tmp_path / "best.safetensors").card["step"] == 5


@pytest.mark.fault("interrupted write or computation")
@pytest.mark.parametrize("kill", [1, 3, 5], ids=["before it stalls", "while it stalls", "at its end"])
def test_a_killed_training_ends_at_the_same_validation(tmp_path, kill):
    whole, card = stalling(tmp_path / "whole")
    with pytest.raises(Killed):
        stalling(tmp_path / "killed", death=kill_after(kill))
    resumed, again = stalling(tmp_path / "killed")
    assert resumed == pytest.approx(whole, nan_ok=True) and again == card
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_training_that_has_stalled_is_not_gone_on_with(tmp_path):
    whole, _ = stalling(tmp_path)
    before = contents(tmp_path)
    assert stalling(tmp_path, death=kill_after(6))[0] == pytest.approx(whole, nan_ok=True)
    assert contents(tmp_path) == before


def test_only_the_best_is_kept_unless_asked(tmp_path):
    fit_small(tmp_path, plan=replace(PLAN, keep_validated=False))
    assert sorted(contents(tmp_path)) == ["best.safetensors", "last.safetensors"]


def test_history_holds_the_mean_loss_since_the_last_validation(tmp_path):
    losses = []
    history = fit_small(tmp_path, on_step=lambda step, parts: losses.append(parts["train_loss"].item()))
    rows = history[history.metric == "train_loss"].set_index("step").value
    expected = {2: losses[0:2], 4: losses[2:4], 6: losses[4:6], 7: losses[6:]}
    assert rows.to_dict() == pytest.approx({step: np.mean(part) for step, part in expected.items()})


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
    plan = replace(plan, validate_every=30, keep_validated=False, weight_decay=0.0)
    history = fit_network(
        network,
        diffusion_objective(setting, 20),
        SliceBank(list(image), list(mask)),
        lambda average: {"score": 0.0},
        Training(plan, tmp_path, {}, "score", torch.device("cpu"), "32-true", silent),
    )
    loss = history[history.metric == "train_loss"].value
    assert loss.iloc[-1] < 0.5 * loss.iloc[0]
    streams = noise.subject_streams(0, "a", torch.arange(2), torch.zeros(2, dtype=torch.int64))
    sampler = Sampler(network.eval(), setting, Chain("gaussian", "run_to_zero", 20, 20, "ddpm", 1.0, "consistent"))
    with torch.no_grad():
        drawn = sampler.sample(image, 0 * mask, streams) >= 0.5
    for one, reference in zip(drawn, mask, strict=True):
        assert 2 * float((one * reference).sum()) / float(one.sum() + reference.sum()) > 0.95


def test_progress_is_shown_unless_somebody_else_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    training = Training(PLAN, tmp_path / "tiny", {}, "score", torch.device("cpu"), "32-true")
    objective = segmentation_objective(nn.functional.binary_cross_entropy_with_logits)
    fit_network(small_network(), objective, small_bank(), likelihood, training)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tiny: 100% of 7 updates") and "score=" in last and "train_loss=" in last


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_update_does_not_wait_for_the_gpu():
    device = torch.device("cuda")
    bank, learner = small_bank().to(device), Learner(small_network(), PLAN, device, "32-true")
    objective = segmentation_objective(nn.functional.binary_cross_entropy_with_logits)
    update(learner, objective, bank.draw(0, PLAN))  # sets up what waits once
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(learner, objective, bank.draw(1, PLAN))
    finally:
        torch.cuda.set_sync_debug_mode("default")
