"""What a run will cost: the counted work, the measured prices, and what is said of them."""

import json
import math
from collections import Counter

import pytest

from pdlib.graph import graph, place_of
from pdlib.inference.precision import Compute
from pdlib.paths import Layout
from pdlib.profiles import load_profile, profile_names
from pdlib.study import cost
from pdlib.study.cost import Machine, about, cheaper, report, wall_seconds
from pdlib.study.speed import Head, compute_of, measure, seconds_of_call, seconds_of_update, trials
from pdlib.study.work import Count, missing, works

HEAD = Head(6, 16, 16, (6, 16, 16), (3.0, 4.0, 4.0))
TINY = {
    "machine": {"device": "cpu", "precision": "32-true"},
    "segmenters": {"fit": {"steps": 20, "batch_size": 2, "crop": [16, 16], "validate_every": 10}},
    "denoiser": {"fit": {"steps": 30, "batch_size": 2, "crop": [16, 16], "validate_every": 30}},
}


def test_work_is_counted_by_hand():
    profile = load_profile("smoke", TINY | {"chain": {"stride": 1}, "sweep": {"t_primes": [500, 1000]}})
    work = works(profile, subjects=10, slices=6)  # two subjects in validation, two in the test
    steps = profile.denoiser.diffusion.schedule.steps
    unet = work["02_train_segmenters.unet_0"]
    assert unet[("update", "unet")] == 20 and unet[("call", "unet")] == 6 * (2 * 2 + 4)
    assert work["03_train_ddpm.0"][("update", "denoiser")] == 30
    half, whole = (work[f"05_sweep_t_prime.{t_prime}"] for t_prime in (500, 1000))
    assert half[("call", "denoiser")] == 3 * (steps // 2) * 4 * 6 and whole[("call", "denoiser")] == 3 * steps * 4 * 6
    assert work["01_prepare_data"][("case", "")] == 10
    assert all(one[("start", "")] == 1 for one in work.values())


def test_key_rows_are_counted_on_all_further_subjects_and_the_others_on_a_few():
    repeats = {"seeds": [0, 1], "further_per_site": 5, "others_per_site": 2, "key_methods": ["pd_ddpm"]}
    changes = {"repeats": repeats, "comparison": {"methods": ["pd_ddpm", "ddpm"]}, "sweep": {"t_primes": [50]}}
    profile = load_profile("smoke", changes)
    work = works(profile, subjects=10 + 3 * 5, slices=6)
    steps, size = 20, 3
    assert work["01_prepare_data"][("case", "")] == 25
    assert all(work[f"03_train_ddpm.{seed}"] == work["03_train_ddpm.0"] for seed in (0, 1))
    calls = {"pd_ddpm": (15, len(range(0, 6, 4))), "ddpm": (6, steps // 4)}  # T' = 6 of 20, about every fourth index
    expected = sum(subjects * size * chain * 6 for subjects, chain in calls.values())
    alone = Count(profile, subjects=25, slices=6).job("04_compare_methods")  # as if no job had kept samples
    assert alone[("call", "denoiser")] == expected and alone[("score", "")] == 15 + 6
    assert work["05_sweep_t_prime.50"][("score", "")] == 2 + 6, "validation and the few"


def test_what_an_earlier_job_has_sampled_costs_nothing_again():
    profile = load_profile("smoke")
    work = works(profile, subjects=10, slices=6)
    assert not work["05_sweep_t_prime"][("call", "denoiser")], "the points have sampled all of it"
    alone = works(load_profile("smoke", {"sweep": {"t_primes": [50]}}), subjects=10, slices=6)
    assert alone["04_compare_methods"][("call", "denoiser")] > work["04_compare_methods"][("call", "denoiser")]


@pytest.mark.parametrize("profile", profile_names())
def test_every_job_of_every_profile_has_a_count_and_every_unit_a_trial(profile):
    profile = load_profile(profile)
    work, known = works(profile, subjects=60, slices=40), trials(profile, HEAD)
    assert set(work) == set(graph(profile))
    for units in work.values():
        assert all(count >= 0 for count in units.values())
        assert {name for kind, name in units if kind in ("update", "call")} <= set(known)
    trained = {name for units in work.values() for kind, name in units if kind == "update"}
    assert ("tdpm" in trained) == ("tdpm" in profile.rows)
    assert ("fundus_denoiser" in trained) == (profile.fundus is not None)


def test_only_jobs_that_have_not_run_are_counted(tmp_path):
    profile, place = load_profile("smoke"), Layout(tmp_path, "smoke")
    assert missing(profile, place, []) == list(graph(profile))
    target = "02_train_segmenters.unet_0"
    assert missing(profile, place, [target]) == ["01_prepare_data", target]
    place.done("01_prepare_data").parent.mkdir(parents=True)
    place.done("01_prepare_data").touch()
    assert missing(profile, place, [target]) == [target] and "01_prepare_data" not in missing(profile, place, [])


def test_jobs_run_beside_each_other_and_after_what_they_wait_for():
    profile = load_profile("smoke")
    jobs = ["01_prepare_data", "02_train_segmenters.unet_0", "02_train_segmenters.bayesian_unet_0", "03_train_ddpm.0"]
    seconds = dict(zip(jobs, (10.0, 5.0, 5.0, 10.0), strict=True))
    assert wall_seconds(profile, seconds, 1) == 30
    assert wall_seconds(profile, seconds, 2) == 20
    assert wall_seconds(profile, seconds, 9) == 20


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (3, "about 10 s"),
        (44, "about 40 s"),
        (200, "about 3 min"),
        (38 * 60, "about 40 min"),
        (100 * 60, "about 1.5 h"),
        (9 * 86400 + 5, "about 9 days"),
    ],
)
def test_no_estimate_is_more_precise_than_it_is(seconds, said):
    assert about(seconds) == said


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_what_is_said_to_be_cheaper_can_be_asked_for_and_is(profile):
    profile = load_profile(profile)
    found = cheaper(profile)
    assert found
    whole = sum(units[("start", "")] for units in works(profile, 60, 40).values())
    for text, other in found.items():
        assert load_profile(profile.name, json.loads(text)) == other
        assert place_of(other, "/out").own_networks is False
        assert sum(units[("start", "")] for units in works(other, 60, 40).values()) <= whole


def test_a_report_has_a_line_for_each_notebook_and_a_total():
    profile = load_profile("smoke")
    units = {unit for work in works(profile, 12, 12).values() for unit in work}
    told = report(profile, list(graph(profile)), Machine(12, 12, dict.fromkeys(units, 0.01), 2))
    first, *rest = told.splitlines()
    assert first.startswith(f"{len(graph(profile))} jobs to run, 2 at a time on this machine: about ")
    assert {line.split()[0] for line in rest if "_" in line.split()[0]} == {
        job.partition(".")[0] for job in graph(profile)
    }
    assert any("CHANGES='" in line for line in rest)
    assert "other programs" not in told
    crowded = report(profile, list(graph(profile)), Machine(12, 12, dict.fromkeys(units, 0.01), 2, share=0.5))
    assert "  as long as other programs run beside it; without them about " in crowded


def test_every_kind_of_network_is_tried():
    profile = load_profile("smoke", TINY)
    known, compute = trials(profile, HEAD), compute_of(profile)
    assert compute == Compute(compute.device, "32-true", profile.machine.batch_size)
    assert {"unet", "wolleb2021", "tdpm", "start_matched", "refiner", "student", "latent", "fundus_denoiser"} <= {
        *known
    }
    for name in known:
        assert 0 < seconds_of_update(known[name], compute) < 60
        assert 0 < seconds_of_call(known[name], compute, HEAD.slices) < 60
    prices = measure(profile, HEAD, [("score", ""), ("call", "unet")])
    assert set(prices) == {("score", ""), ("call", "unet")} and all(math.isfinite(one) for one in prices.values())


def test_subjects_are_looked_at_where_they_are_and_else_made(networks, tmp_path):
    subjects, head, _ = cost.look(networks.profile, networks.place, "")
    assert subjects == 9 and 1 <= head.slices <= head.grid[0] and head.height % networks.profile.data.multiple == 0
    root = json.loads(networks.place.cases.read_text(encoding="utf-8"))["root"]
    assert cost.look(networks.profile, Layout(tmp_path, "smoke"), root)[0] == 9


def test_nothing_is_measured_where_nothing_is_to_be_done(tmp_path, monkeypatch, capsys):
    place = Layout(tmp_path, "smoke")
    place.done("01_prepare_data").parent.mkdir(parents=True)
    place.done("01_prepare_data").touch()
    monkeypatch.setattr(cost, "look", lambda *given: pytest.fail("measured"))
    asked = {"profile": "smoke", "changes": {}, "out": str(tmp_path), "fold": 0, "data": "", "started": 0.0}
    cost.main(2, asked | {"targets": ["01_prepare_data"]})
    assert capsys.readouterr().out == ""


def test_counts_are_whole():
    for units in works(load_profile("cpu"), 60, 40).values():
        assert isinstance(units, Counter) and all(isinstance(count, int) for count in units.values())
