"""The start-matched denoiser and its control: what they are trained on, what they are sampled with."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHANGES, DENOISER, rewritten

from pdlib.inference.window import brain_slices
from pdlib.profiles import ProfileError, load_profile
from pdlib.study import start_matched
from pdlib.study.comparison import Row
from pdlib.study.members import starts

SHORT = {"steps": 2, "batch_size": 2, "crop": [16, 16], "validate_every": 2}
SECTION = {"network": DENOISER | {"in_channels": 4}, "fit": SHORT, "halves": SHORT, "refiner": {"fit": SHORT}}


@pytest.fixture(scope="module")
def run(networks, tmp_path_factory):
    """Halves, a start-matched denoiser and its controls of two updates each, in a copy of the networks' place."""
    place = replace(networks.place, out=tmp_path_factory.mktemp("matched") / "out")
    shutil.copytree(networks.place.out, place.out)
    one = replace(networks, place=place, profile=load_profile("smoke", CHANGES | {"start_matched": SECTION})).run
    for half in start_matched.HALVES:
        start_matched.train_half(one, half)
    bank = one.training_slices(presegs=start_matched.out_of_fold(one))
    start_matched.train_start_matched(one, 0, bank)
    start_matched.train_refiner(one, bank)
    start_matched.train_unmatched(one)
    return one


def test_halves_share_no_subject_and_are_alike(run):
    first, second = (start_matched.half_of(run, half) for half in start_matched.HALVES)
    assert sorted(first + second) == run.subjects("train") and not set(first) & set(second)
    for site in {run.site(subject) for subject in run.subjects("train")}:
        held = [sum(run.site(subject) == site for subject in half) for half in (first, second)]
        assert abs(held[0] - held[1]) <= 1


def test_a_pre_segmentation_to_train_on_comes_from_the_half_that_has_not_seen_the_subject(run):
    halves = [run.weights(start_matched.half_name(run, half)) for half in start_matched.HALVES]
    assert halves[0].digest != halves[1].digest
    presegs = start_matched.out_of_fold(run)
    for half, other in zip(halves, reversed(halves), strict=True):
        assert half.card["half"] == start_matched.half_of(run, halves.index(half))
        for subject in other.card["half"]:
            assert subject not in half.card["half"]
            np.testing.assert_array_equal(presegs[subject], starts(run, half, subject, 1).values[0])
    bank = run.training_slices(presegs=presegs)
    subject = run.subjects("train")[0]
    _, window = brain_slices(run.volume(subject), 1)
    first = np.stack([window.cut(run.volume(subject).mask)[0], window.cut(presegs[subject])[0]])
    np.testing.assert_array_equal(bank.masks[0], first)


def test_what_is_learnt_by_heart_is_told_by_the_half_that_has_seen_the_subject(run):
    seen, unseen = start_matched.out_of_fold(run, seen=True), start_matched.out_of_fold(run)
    for half in (run.weights(start_matched.half_name(run, half)) for half in start_matched.HALVES):
        for subject in run.subjects("train"):
            kept = seen if subject in half.card["half"] else unseen
            np.testing.assert_array_equal(kept[subject], starts(run, half, subject, 1).values[0])


def test_a_network_meets_in_sampling_what_its_training_has_not_shown(run):
    row = Row.of(run, "pd_ddpm", 1)
    found, index = start_matched.mismatch(row), row.chain.t_prime - 1
    abar = float(row.first.trained.sampler(run).diffusion.schedule.abar(index))
    apart = (abar / (1 - abar)) ** 0.5
    wrong = [apart if kind == "extra" else -apart if kind == "missed" else 0.0 for kind in found.index]
    np.testing.assert_allclose(found.deviations, wrong, atol=1e-5)
    kept = {*found.index}
    counts = dict.fromkeys(start_matched.KINDS, 0)
    for subject in run.subjects("validation"):
        truth, start = run.volume(subject).mask == 1, row.starts(subject, 1).values[0] > 0
        for kind, mask in {"extra": ~truth & start, "missed": truth & ~start, "hit": truth & start}.items():
            counts[kind] += int(mask[run.volume(subject).brain].sum())
    assert {kind for kind, count in counts.items() if count} | {"background"} == kept
    assert found.filter(like="predicted").stack().between(0, 1).all()


def test_a_subject_that_both_halves_have_seen_is_refused(run, tmp_path):
    place = replace(run.place, out=tmp_path / "out")
    shutil.copytree(run.place.out, place.out)
    path = place.weights(start_matched.half_name(run, 1)) / "best.safetensors"
    rewritten(path, half=run.subjects("train"))
    with pytest.raises(ValueError, match="were trained on it"):
        start_matched.out_of_fold(replace(run, place=place))


def test_it_is_sampled_from_its_own_t_prime_alone_and_sees_the_pre_segmentation(run):
    row = Row.of(run, "start_matched", 2)
    subject, chain = run.subjects("validation")[0], row.chain
    assert (chain.rule, chain.t_prime, chain.eta) == ("start_matched", 4, 1.0)
    assert row.first.trained.denoiser.card["t_start"] == 3
    members, from_nothing = row.members(subject).values, row.starting_from(None, "empty").members(subject).values
    assert members.shape[0] == 2 and np.abs(members[0] - members[1]).max() > 0
    start = row.starts(subject).values[0] > 0
    assert start.any() and np.abs(members - from_nothing)[:, start].mean() > 0
    for t_prime in (300, 500):
        with pytest.raises(ValueError, match=r"trained from T' = 4 alone, and T' is|trained on 4 steps"):
            Row.of(run, "start_matched", t_prime=t_prime)


def test_the_refiner_is_one_call_of_its_network_on_image_and_pre_segmentation(run):
    row, subject = Row.of(run, "refiner"), run.subjects("validation")[0]
    drawn, volume = row.members(subject), run.volume(subject)
    assert drawn.values.shape[0] == 1 and drawn.calls == 1 == row.calls_per_member()
    image, window = brain_slices(volume, run.profile.data.multiple)
    preseg = torch.from_numpy(window.cut(row.starts(subject).values[0]))[:, None]
    with torch.inference_mode():
        network = run.network(run.weights("refiner"), "one_step")
        expected = torch.sigmoid(network(torch.cat([image, preseg], dim=1)))[:, 0].numpy()
    inside = window.put_back(expected, volume.brain.shape) * volume.brain
    np.testing.assert_allclose(drawn.values[0], inside, atol=5e-4)  # members are kept in half precision


def test_both_are_trained_on_the_same_pre_segmentations(run):
    cards = [run.weights(name).card for name in ("start_matched_0", "refiner")]
    assert cards[0]["presegs"] == cards[1]["presegs"] and cards[0]["watched"] == run.subjects("validation")
    assert {"corrupted", "empty", *(start_matched.half_name(run, half) for half in (0, 1))} <= set(cards[0]["presegs"])


def test_the_control_has_the_same_recipe_and_sees_no_pre_segmentation(run):
    ours, theirs = (run.weights(name).card for name in ("start_matched_0", "unmatched"))
    for part in ("diffusion", "t_max", "watched"):
        assert theirs[part] == ours[part], part
    assert theirs["network"] == ours["network"] | {"in_channels": ours["network"]["in_channels"] - 1}
    assert "presegs" not in theirs and theirs["chosen_by"] == ours["chosen_by"] | {"rule": "ddim"}
    row, subject = Row.of(run, "unmatched", 2), run.subjects("validation")[0]
    members, from_nothing = row.members(subject).values, row.starting_from(None, "empty").members(subject).values
    assert 0 <= members.min() and members.max() <= 1 and np.abs(members - from_nothing).max() > 0
    with pytest.raises(ValueError, match=r"rule ddpm: a network that predicts a logit"):
        Row.of(run, "unmatched", 1, rule="ddpm").members(subject)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chain": {"convention": "official"}}, "trained for consistent alone"),
        ({"start_matched": {"presegs": {"corrupted": 0.95}}}, "shares of the same images"),
        ({"start_matched": {"network": {"in_channels": 3}}}, "in_channels 3"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, words):
    rows = {"comparison": {"methods": ["attention_unet", "pd_ddpm", "addpm", "start_matched"]}}
    with pytest.raises(ProfileError, match=words):
        load_profile("smoke", rows | changes)


def test_a_row_of_one_repeat_has_its_networks_for_every_subject(run):
    row = Row(run, "pd_ddpm", 1, lambda seed: f"networks of repeat {seed}")
    subject = run.subjects("test")[0]
    assert row.networks(subject) == "networks of repeat 0"
    assert row.of_repeat(2).networks(subject) == "networks of repeat 2"
