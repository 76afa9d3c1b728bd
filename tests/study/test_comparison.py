"""Rows of Table 1 with a run's networks: their members, what they cost, and what tells their scores apart."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import rewritten

from pdlib.evaluation import metrics, records
from pdlib.methods import CHAIN, METHODS, Method
from pdlib.report import tables
from pdlib.study import run as run_module
from pdlib.study.comparison import Row, scores_of
from pdlib.study.members import TrainedChain, chain_members, draws
from pdlib.study.run import Run
from pdlib.training import weights as weights_module
from pdlib.training.weights import Weights

EVERY = {"t_prime": 300, "stride": 1}  # every index of a chain from T' = 3


def dice(run, subject, mask):
    return metrics.score_volume(run.labels(subject), mask, run.volume(subject).spacing_mm)["dice"]


def found(rows, subject):
    return rows[rows.subject == subject].set_index("metric").value


@pytest.mark.parametrize(
    ("name", "members", "each", "before"),  # network calls on a slice: of a member, and of what the chain starts from
    [
        ("attention_unet", 1, 1, 0),
        ("bayesian_unet", 3, 1, 0),
        ("probabilistic_unet", 3, 1, 0),
        ("deep_ensemble", 2, 1, 0),
        ("ddpm", 3, 10, 0),
        ("wolleb2021", 3, 10, 0),
        ("pd_ddpm", 3, 3, 1),
        ("pd_ddpm_1", 1, 3, 1),
        ("es_ddpm", 3, 3, 3),
        ("tdpm", 3, 3, 3),
        ("addpm", 3, 1 + 1, 1),
        ("addpm_mask_only", 3, 1 + 1, 1),
        ("x0_jump", 3, 1, 1),
    ],
)
def test_a_row_is_scored_with_its_members_and_every_call_is_counted(trained, calls, name, members, each, before):
    row, shown = Row.of(trained.run, name, **EVERY), []
    rows = row.scores("test", shown.append)
    assert calls.since() == trained.run.slice_count("test") * (members * each + before)
    assert sum(shown) == trained.run.slice_count("test") * members * each, "the bar counts the members' calls"
    assert row.calls_per_member() == each
    assert list(rows.columns) == list(records.COLUMNS) and set(rows.method) == {name}
    assert set(rows.subject) == set(trained.run.subjects("test"))
    assert set(rows.ensemble_size) == {members} and set(rows.nfe) == {members * each + before}
    assert (rows.seconds > 0).all() and rows.t_prime.isna().all() == (row.first.trained is None)
    if members > 1:
        assert (rows[rows.metric == "uncertainty"].value > 0).all(), "members differ"
    again = row.scores("test")
    pd.testing.assert_frame_equal(again, rows)
    assert calls.since() == 0


def test_scores_are_those_of_the_members(trained):
    run = trained.run
    for row in (Row.of(run, "attention_unet"), Row.of(run, CHAIN, **EVERY)):
        scores = row.scores("test")
        for subject in run.subjects("test"):
            members = row.members(subject).values
            assert found(scores, subject)["dice"] == dice(run, subject, members.mean(axis=0) >= 0.5)
            assert set(scores[scores.subject == subject].site) == {run.site(subject)}


def test_a_deep_ensemble_averages_its_networks(trained):
    run, subject = trained.run, trained.run.subjects("test")[0]
    row = Row.of(run, "deep_ensemble")
    stack = np.concatenate([draws(run, run.weights(f"attention_unet_{seed}"), subject, 1).values for seed in (0, 1)])
    assert np.abs(stack[0] - stack[1]).max() > 1e-3
    scores = found(row.scores("test"), subject)
    np.testing.assert_array_equal(row.members(subject).values, stack)
    assert scores["dice"] == dice(run, subject, stack.mean(axis=0) >= 0.5)
    assert scores["uncertainty"] == pytest.approx(stack.var(axis=0)[run.volume(subject).brain].mean(), rel=1e-4)


def test_a_rerun_has_the_same_scores_to_the_bit(trained):
    def scores():
        return Row.of(trained.run, CHAIN, 2, **EVERY).scores("test").drop(columns="seconds")

    first = scores()
    for path in trained.place.runs.rglob("*.npz"):
        path.unlink()
    pd.testing.assert_frame_equal(scores(), first, check_exact=True)


# Each file once.
def test_each_weights_file_is_read_and_hashed_once(trained, monkeypatch):
    """Three subjects, five members, every kind of row, test and validation: a file is opened once."""
    reads, opened, hashed = Counter(), Counter(), []
    read, read_bytes, sha256 = Weights.read.__func__, Path.read_bytes, weights_module.hashlib.sha256

    def counted_read(cls, path):
        reads[path] += 1
        return read(cls, path)

    def counted_bytes(path):
        opened[path] += path.suffix == ".safetensors"
        return read_bytes(path)

    monkeypatch.setattr(Weights, "read", classmethod(counted_read))
    monkeypatch.setattr(Path, "read_bytes", counted_bytes)
    monkeypatch.setattr(weights_module.hashlib, "sha256", lambda *data: hashed.append(len(data[0])) or sha256(*data))
    names = [CHAIN, "addpm", "addpm_mask_only", "es_ddpm", "tdpm", "deep_ensemble", "ddpm", "wolleb2021"]
    rows = [Row.of(trained.run, name, 5, **EVERY) for name in names]
    scored = scores_of(rows, "test")
    rows[0].scores("validation")
    Row.of(trained.run, CHAIN, 5, calls=2).scores("test")
    used = {path for path in opened if opened[path]}
    assert len(scored.subject.unique()) == 3 and used == set(reads) and len(used) == 8
    assert {path.parent.name for path in used} == {
        *("attention_unet_0", "attention_unet_1", "probabilistic_unet_0", "tdpm_0300", "denoiser_0", "wolleb2021"),
        *("one_step_0200", "one_step_0200_mask"),
    }
    assert set(reads.values()) == set(opened.values()) - {0} == {1}
    sizes = sorted(path.stat().st_size for path in used)
    assert sorted(size for size in hashed if size > 1000) == sizes, "nor hashed again"


# Rows are asked for by name and settings.
def test_changes_go_through_the_chain_s_settings(trained):
    run = trained.run
    chain = Row.of(run, CHAIN).chain
    assert (chain.t_prime, chain.calls, chain.rule, chain.eta) == (4, 2, "ddpm", 1.0), "as the profile has it"
    other = Row.of(run, CHAIN, t_prime=600, rule="ddim", eta=0.25, calls=5).chain
    assert other == replace(chain, t_prime=6, rule="ddim", eta=0.25, calls=5)
    assert Row.of(run, "addpm", t_prime=500).chain.t_stop == 2 and Row.of(run, "addpm").first.trained.refine is not None
    assert Row.of(run, CHAIN, 7).size == 7 and Row.of(run, "pd_ddpm_1", 7).size == 1


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 6])
def test_as_many_calls_as_are_asked_for(trained, calls):
    """Strides give 6, 3 and 2 of six indices, never 5."""
    row = Row.of(trained.run, CHAIN, 2, t_prime=600, calls=calls)
    scores = row.scores("test")
    assert set(scores.nfe) == {2 * calls + 1} and set(scores.calls) == {calls} == {len(row.chain.indices)}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("nnunet", {}, "unknown method 'nnunet': choose one of .*'pd_ddpm'"),
        (CHAIN, {"t_prime": 1001}, "t_prime 1001 exceeds paper_steps 1000"),
        (CHAIN, {"eat": 0.0}, "eat"),
        (CHAIN, {"rule": "euler"}, "ddpm"),
        (CHAIN, {"calls": 5}, r"calls 5 must be in 1\.\.4"),
        ("tdpm", {"t_prime": 350}, r"weights/tdpm_0350/best\.safetensors"),
        ("addpm", {"t_stop": 100}, r"weights/one_step_0100/best\.safetensors"),
    ],
)
def test_what_cannot_be_a_row_is_refused(trained, name, changes, words):
    with pytest.raises(ValueError, match=words):
        Row.of(trained.run, name, **changes)


def test_a_t_prime_above_what_the_denoiser_knows_is_refused(trained):
    rewritten(trained.place.weights("denoiser_0") / "best.safetensors", t_max=5)
    assert Row.of(trained.run, CHAIN, t_prime=500).chain.t_prime == 5
    with pytest.raises(ValueError, match=r"denoiser_0/best\.safetensors: trained on 5 steps, and T' is 6"):
        Row.of(trained.run, CHAIN, t_prime=600)
    with pytest.raises(ValueError, match=r"trained on 5 steps, and T' is 10"):
        Row.of(trained.run, "ddpm")


def test_a_segmenter_by_itself_has_no_chain(trained):
    with pytest.raises(ValueError, match=r"Attention U-Net: a row without a chain"):
        _ = Row.of(trained.run, "attention_unet").chain


def test_a_new_row_takes_one_entry(trained, calls, monkeypatch):
    """From the U-Net's mask, deterministic after it; nothing but the registry knows it."""
    unet = trained.place.weights("unet_0") / "best.safetensors"
    unet.parent.mkdir()
    unet.write_bytes((trained.place.weights("attention_unet_1") / "best.safetensors").read_bytes())
    settings = {"rule": "ddim", "eta": 0.0}
    entry = Method("PD-DDPM from the U-Net, eta 0", "unet", start="preseg", members="one", settings=settings)
    monkeypatch.setitem(METHODS, "pd_ddpm_unet", entry)
    row = Row.of(trained.run, "pd_ddpm_unet", **EVERY)
    assert row.first.source.path == unet and (row.chain.rule, row.chain.eta, row.chain.t_prime) == ("ddim", 0.0, 3)
    scores = row.scores("test")
    assert set(scores.method) == {"pd_ddpm_unet"} and set(scores.rule) == {"ddim"} and set(scores.nfe) == {3 + 1}
    same = Row.of(trained.run, CHAIN, 1, rule="ddim", eta=0.0, **EVERY).starting_from({0: row.first.source}, "unet")
    calls.since()
    for subject in trained.run.subjects("test"):
        np.testing.assert_array_equal(row.members(subject).values, same.members(subject).values)
    assert calls.since() == 0, "it is the same chain"
    assert Row.of(trained.run, CHAIN, **EVERY).chain.rule == "ddpm", "others stay"


def test_a_subject_is_segmented_by_the_networks_of_its_repeat(trained, monkeypatch):
    shutil.copytree(trained.place.weights("denoiser_0"), trained.place.weights("denoiser_1"))
    rewritten(trained.place.weights("denoiser_1") / "best.safetensors", shift=0.1)
    one, *others = trained.run.subjects("test")
    monkeypatch.setattr(Run, "seed_of", lambda run, subject: int(subject == one))
    repeats = trained.profile.repeats.model_copy(update={"seeds": (0, 1)})
    run = Run.at(trained.place, trained.profile.model_copy(update={"repeats": repeats}))
    row = Row.of(run, CHAIN, 2, **EVERY)
    for subject, seed in ((one, 1), (others[0], 0)):
        networks = TrainedChain(row.chain, run.weights(f"denoiser_{seed}"))
        own = chain_members(trained.run, networks, run.weights(f"attention_unet_{seed}"), subject, 2)
        np.testing.assert_array_equal(row.members(subject).values, own.values)
    scores = row.scores("test")
    assert set(scores[scores.subject == one].seed) == {1} and set(scores[scores.subject != one].seed) == {0}
    empty = row.starting_from(None, "empty").networks(one)
    assert empty.source is None and empty.trained.denoiser == run.weights("denoiser_1")
    assert row.jump().networks(one).trained.denoiser == run.weights("denoiser_1")


# What tells scores apart.
def test_a_row_s_key_selects_its_own_scores(trained):
    run = trained.run
    row = Row.of(run, CHAIN, 2, **EVERY)
    rows = [
        *(row, Row.of(run, CHAIN, 2, t_prime=300, calls=2), Row.of(run, CHAIN, 2, t_prime=400, calls=3)),
        *(Row.of(run, CHAIN, 2, rule="ddim", eta=eta, **EVERY) for eta in (0.0, 0.5, 1.0)),
        *(Row.of(run, CHAIN, 2, rule="dpm_solver", **EVERY), row.jump(), Row.of(run, "x0_jump", 2, **EVERY)),
        *(row.starting_from(None, "empty"), row.starting_from({0: run.weights("attention_unet_1")}, "checkpoint_1")),
        *(Row.of(run, "addpm", 2, **EVERY), Row.of(run, "addpm_mask_only", 2, **EVERY), Row.of(run, "ddpm", 2)),
        *(Row.of(run, "es_ddpm", 2, **EVERY), Row.of(run, "bayesian_unet", 2), Row.of(run, "attention_unet")),
    ]
    scores = run.write("scores", scores_of(rows, "test"))
    assert len({tuple(one.key.items()) for one in rows}) == len(rows)
    for one in rows:
        mine, own = tables.select(scores, one.key), one.scores("test")
        assert len(mine) == len(own) and set(mine.nfe) == set(own.nfe)
        values = own.set_index(["subject", "metric"]).value
        pd.testing.assert_series_equal(mine.set_index(["subject", "metric"]).value.loc[values.index], values, rtol=1e-5)
        assert one.selection("method", "rule") == {k: v for k, v in one.key.items() if k in ("method", "rule")}


def test_a_row_says_where_it_starts_and_stops(trained):
    run = trained.run
    addpm = Row.of(run, "addpm", **EVERY)
    about = {"start": "best", "rule": "ddpm", "calls": 1, "t_prime": 3, "t_stop": 2}
    assert addpm.about == addpm.key == {"method": "addpm", **about}
    assert Row.of(run, "ddpm").about["start"] == "noise" and Row.of(run, "attention_unet").key == {
        "method": "attention_unet"
    }
    jump = Row.of(run, CHAIN).jump()
    assert (jump.about["rule"], jump.about["calls"], jump.calls_per_member()) == ("x0_jump", 1, 1)
    np.testing.assert_array_equal(
        jump.members(run.subjects("test")[0]).values, Row.of(run, "x0_jump").members(run.subjects("test")[0]).values
    )


# Members.
def test_addpm_that_stops_at_zero_is_pd_ddpm(trained):
    """Through settings and cache, with no last network to be found."""
    subject = trained.run.subjects("test")[0]
    addpm, pd_ddpm = (Row.of(trained.run, name, t_stop=0).members(subject) for name in ("addpm", CHAIN))
    np.testing.assert_array_equal(addpm.values, pd_ddpm.values)
    assert addpm.calls == pd_ddpm.calls


def test_fewer_members_are_the_first_and_cost_their_share(trained, calls):
    row, subject = Row.of(trained.run, CHAIN, 4, **EVERY), trained.run.subjects("test")[0]
    whole = row.members(subject)
    calls.since()
    two, one = row.members(subject, count=2), Row.of(trained.run, "pd_ddpm_1", **EVERY).members(subject)
    np.testing.assert_array_equal(two.values, whole.values[:2])
    np.testing.assert_array_equal(one.values, whole.values[:1])
    assert (whole.calls, two.calls, one.calls) == (12, 6, 3) and calls.since() == 0


@pytest.mark.parametrize(
    "name", ["ddpm", "wolleb2021", CHAIN, "es_ddpm", "tdpm", "addpm", "addpm_mask_only", "x0_jump"]
)
def test_the_mean_of_members_settles_as_one_over_root_k(trained, name):
    """Sixteen members instead of four halve the standard error of their mean: a chain's members are independent."""
    run, subject = trained.run, trained.run.subjects("test")[0]
    members = Row.of(run, name, size=64, **EVERY).members(subject).values
    values = members[:, run.volume(subject).brain]  # [64, voxels]
    error = {k: values.reshape(-1, k, values.shape[1]).mean(axis=1).var(axis=0, ddof=1).mean() ** 0.5 for k in (4, 16)}
    assert len(values) == 64 and error[4] / error[16] == pytest.approx(2.0, abs=0.3)


def test_no_row_ever_sees_a_reference(trained):
    """Other labels on the test subjects change no prediction of any row, only its score."""
    run = trained.run
    names = ["bayesian_unet", "probabilistic_unet", "es_ddpm", "tdpm", "addpm", "addpm_mask_only", "wolleb2021"]

    def kept():
        scores, files = scores_of([Row.of(run, name, **EVERY) for name in names], "test"), {}
        for path in [*trained.place.runs.rglob("*.npz")]:
            files[path.relative_to(trained.place.runs)] = np.load(path)["values"]
            path.unlink()
        return scores[scores.metric == "dice"].value, files

    dice_before, before = kept()
    for subject in run.subjects("test"):
        volume = run.volume(subject)
        volume.mask[...] = volume.brain & ~volume.ignore & (np.random.default_rng(0).random(volume.mask.shape) < 0.5)
    try:
        dice_after, after = kept()
    finally:
        run_module._read_case.cache_clear()
    assert before.keys() == after.keys() and len(before) > 10 and not dice_before.equals(dice_after)
    assert all(np.array_equal(before[key], after[key]) for key in before)
