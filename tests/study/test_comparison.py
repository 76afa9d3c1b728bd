"""The registry's rows: what each is made of, which networks it asks for, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest

from pdlib.diffusion import sampler
from pdlib.methods import METHODS, jobs
from pdlib.networks.segmenters import SEGMENTERS
from pdlib.study import experiment
from pdlib.study.comparison import Plan, best, method_members, method_rows

PLAN = Plan("attention_unet", [0, 1], 3, 200, 1000, 1, "ddpm", 1.0, "consistent")


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_made_of_what_there_is(name):
    method = METHODS[name]
    assert method.start in (None, *sampler.STARTS) and method.finish in sampler.FINISHES
    assert method.members in ("one", "ensemble", "seeds")
    assert method.source in (None, "presegmenter", "tdpm", *SEGMENTERS)
    assert (method.source is None) == (method.start == "gaussian")


def test_pd_ddpm_and_es_ddpm_differ_in_their_source_alone():
    pd_ddpm, es_ddpm = METHODS["pd_ddpm"], METHODS["es_ddpm"]
    assert replace(es_ddpm, title="PD-DDPM", source="presegmenter", own_t_prime=False) == pd_ddpm


def test_the_published_baseline_has_a_network_of_its_own(trained):
    own, shared = (experiment.Denoiser.load(trained.run, METHODS[name].denoiser) for name in ("wolleb2021", "ddpm"))
    assert own.digest != shared.digest and float(own.diffusion.schedule.betas[-1]) == pytest.approx(0.9)
    assert replace(METHODS["wolleb2021"], title="DDPM", denoiser="denoiser") == METHODS["ddpm"]


def test_chains_have_the_paper_s_calls():
    calls = {name: len(PLAN.chain(METHODS[name], 300, 1000).indices) for name in METHODS if METHODS[name].start}
    assert calls["ddpm"] == 1000 and calls["x0_jump"] == 1 and calls["addpm"] == calls["addpm_mask_only"] == 100
    assert {calls[name] for name in ("pd_ddpm", "es_ddpm", "tdpm", "pd_ddpm_1")} == {300}
    short = PLAN.chain(METHODS["addpm"], 300, 100)
    assert short.indices == tuple(range(29, 19, -1)) and short.t_stop == 20


def test_rows_ask_for_the_trainings_they_use():
    common = {"presegmenter": "attention_unet", "deep_ensemble_seeds": [0, 1]}
    assert jobs(["unet"], **common) == ["02_train_segmenters.unet_0"]
    assert jobs(["ddpm"], **common) == jobs(["tdpm"], **common) == ["03_train_ddpm"]
    assert jobs(["wolleb2021"], **common) == ["12_wolleb2021"]
    assert jobs(["deep_ensemble"], **common) == [f"02_train_segmenters.attention_unet_{seed}" for seed in (0, 1)]
    assert jobs(["es_ddpm"], **common) == ["02_train_segmenters.probabilistic_unet_0", "03_train_ddpm"]
    assert set(jobs(["pd_ddpm", "addpm"], **common)) == {
        "02_train_segmenters.attention_unet_0",
        "03_train_ddpm",
        "08_truncate_both_ends",
    }
    with pytest.raises(ValueError, match="unknown method 'nnunet': choose one of"):
        jobs(["nnunet"], **common)


@pytest.mark.parametrize(
    ("name", "members", "nfe"),
    [
        ("attention_unet", 1, 1),
        ("bayesian_unet", 3, 3),
        ("probabilistic_unet", 3, 3),
        ("deep_ensemble", 2, 2),
        ("ddpm", 3, 3 * 10),
        ("wolleb2021", 3, 3 * 10),
        ("pd_ddpm", 3, 3 * 3 + 1),
        ("pd_ddpm_1", 1, 3 + 1),
        ("es_ddpm", 3, 3 * (3 + 1)),
        ("tdpm", 3, 3 * (3 + 1)),
        ("addpm", 3, 3 * (1 + 1) + 1),
        ("addpm_mask_only", 3, 3 * (1 + 1) + 1),
        ("x0_jump", 3, 3 + 1),
    ],
)
def test_a_row_is_scored_with_its_members_and_its_calls(trained, name, members, nfe):
    rows = method_rows(trained.run, name, plan=PLAN, t_prime=300, split="test", on_batch=experiment.silent)
    assert set(rows.method) == {name} and set(rows.subject) == set(trained.run.subjects("test"))
    assert set(rows.ensemble_size) == {members} and set(rows.nfe) == {nfe}
    if members > 1:
        assert (rows[rows.metric == "uncertainty"].value > 0).all(), "members differ"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].start and METHODS[name].members != "one"])
def test_the_mean_of_members_settles_as_one_over_root_k(trained, name):
    """Sixteen members instead of four halve the standard error of their mean: a chain's members are independent."""
    run, plan = trained.run, replace(PLAN, ensemble_size=64)
    subject = run.subjects("test")[0]
    members = method_members(run, name, plan=plan, t_prime=300, subject=subject, on_batch=experiment.silent)
    values = members[:, run.volume(subject).brain]  # [64, voxels]
    error = {k: values.reshape(-1, k, values.shape[1]).mean(axis=1).var(axis=0, ddof=1).mean() ** 0.5 for k in (4, 16)}
    assert len(values) == 64 and error[4] / error[16] == pytest.approx(2.0, abs=0.3)


def test_addpm_that_stops_at_zero_is_pd_ddpm(trained):
    """Through plan and cache, with no last network to be found."""
    whole = {
        "run": trained.run,
        "t_prime": 300,
        "subject": trained.run.subjects("test")[0],
        "on_batch": experiment.silent,
    }
    plan = replace(PLAN, t_stop=0)
    addpm, pd_ddpm = (method_members(name=name, plan=plan, **whole) for name in ("addpm", "pd_ddpm"))
    np.testing.assert_array_equal(addpm, pd_ddpm)


def test_what_a_row_starts_from(trained):
    run, subject = trained.run, trained.run.subjects("test")[0]
    brain = run.volume(subject).brain

    def begun(training, count=3):
        return experiment.starts(run, best(run, training), subject, count).values

    hard = begun("attention_unet_0")
    assert hard.shape == (1, *brain.shape) and set(np.unique(hard)) <= {0, 1}
    masks, states = begun("probabilistic_unet_0"), begun("tdpm_0300")
    assert set(np.unique(masks)) <= {0, 1} and len(masks) == len(states) == 3
    assert states.min() < 0 and (states[0] != states[1])[brain].mean() > 0.9, "states are not masks; draws differ"
    np.testing.assert_array_equal(begun("tdpm_0300", 2), states[:2])


def test_no_row_ever_sees_a_reference(trained):
    """Other labels on the test subjects change no prediction of any row, only its score."""
    run = trained.run
    names = ["bayesian_unet", "probabilistic_unet", "es_ddpm", "tdpm", "addpm", "addpm_mask_only"]

    def members():
        kept = {}
        for name in names:
            common = {"plan": PLAN, "t_prime": 300, "split": "test", "on_batch": experiment.silent}
            method_rows(run, name, **common)
        for path in [*trained.place.runs.rglob("*.npz")]:
            kept[path.relative_to(trained.place.runs)] = np.load(path)["values"]
            path.unlink()
        return kept

    before = members()
    for subject in run.subjects("test"):
        volume = run.volume(subject)
        volume.mask[...] = volume.brain & ~volume.ignore & (np.random.default_rng(0).random(volume.mask.shape) < 0.5)
    after = members()
    experiment._read_case.cache_clear()
    assert before.keys() == after.keys() and len(before) > 10
    assert all(np.array_equal(before[key], after[key]) for key in before)
