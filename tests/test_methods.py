"""The registry's rows: what each is made of, and which trainings it asks for."""

from dataclasses import replace

import pytest

from pdlib.diffusion import sampler
from pdlib.methods import METHODS, RULES, jobs, preseg_starts, rule_key
from pdlib.networks.segmenters import SEGMENTERS
from pdlib.sections.design import ChainSettings

COMMON = {"presegmenter": "attention_unet", "deep_ensemble_seeds": [0, 1], "seeds": [0]}


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_made_of_what_there_is(name):
    method = METHODS[name]
    assert method.start in (None, *sampler.STARTS) and method.finish in sampler.FINISHES
    assert method.members in ("one", "ensemble", "seeds")
    assert method.source in (None, "presegmenter", "tdpm", *SEGMENTERS)
    assert (method.source is None) == (method.start == "gaussian")
    assert set(method.settings) <= set(ChainSettings.model_fields)


def test_pd_ddpm_and_es_ddpm_differ_in_their_source_alone():
    pd_ddpm, es_ddpm = METHODS["pd_ddpm"], METHODS["es_ddpm"]
    assert replace(es_ddpm, title="PD-DDPM", source="presegmenter", own_t_prime=False) == pd_ddpm


def test_the_published_baseline_is_a_ddpm_with_a_network_of_its_own():
    assert replace(METHODS["wolleb2021"], title="DDPM", denoiser="denoiser") == METHODS["ddpm"]


def test_rows_ask_for_the_trainings_they_use():
    assert jobs(["unet"], **COMMON) == ["02_train_segmenters.unet_0"]
    assert jobs(["ddpm"], **COMMON) == ["03_train_ddpm.0"]
    assert jobs(["tdpm"], **COMMON) == ["17_tdpm_generator", "03_train_ddpm.0"]
    assert jobs(["wolleb2021"], **COMMON) == ["12_wolleb2021"]
    assert jobs(["deep_ensemble"], **COMMON) == [f"02_train_segmenters.attention_unet_{seed}" for seed in (0, 1)]
    assert jobs(["es_ddpm"], **COMMON) == ["02_train_segmenters.probabilistic_unet_0", "03_train_ddpm.0"]
    preseg = "02_train_segmenters.attention_unet_0"
    assert set(jobs(["pd_ddpm", "addpm"], **COMMON)) == {preseg, "03_train_ddpm.0", "08_truncate_both_ends"}
    assert set(jobs(["distilled"], **COMMON)) == {preseg, "14_distillation"}
    assert set(jobs(["latent"], **COMMON)) == {preseg, "15_latent"}
    assert set(jobs(["noise_level"], **COMMON)) == {preseg, "03_train_ddpm.0", "18_noise_level"}
    with pytest.raises(ValueError, match="unknown method 'nnunet': choose one of"):
        jobs(["nnunet"], **COMMON)


def test_every_repeat_trains_what_a_verdict_hangs_on():
    three = COMMON | {"seeds": [0, 1, 2]}
    assert set(jobs(["pd_ddpm"], **three)) == {
        job for seed in (0, 1, 2) for job in (f"02_train_segmenters.attention_unet_{seed}", f"03_train_ddpm.{seed}")
    }
    assert [job for job in jobs(["start_matched"], **three) if job.startswith("16")] == [
        f"16_start_matched.{seed}" for seed in (0, 1, 2)
    ]
    for control in ("refiner", "unmatched"):
        assert [job for job in jobs([control], **three) if job.startswith("16")] == ["16_start_matched.0"]
    assert jobs(["unet"], **three) == ["02_train_segmenters.unet_0"], "other networks are trained once"
    alone = [f"02_train_segmenters.attention_unet_{seed}" for seed in (0, 1, 2)]
    assert jobs(["attention_unet"], **three) == alone, "the pre-segmenter by itself"


def test_a_rule_s_key_says_how_a_step_is_made():
    assert [rule_key(rule.step, rule.eta) for rule in RULES.values()] == list(RULES)
    assert rule_key("ddim", 0.25) == "ddim_eta_0.25" and rule_key("ddpm", 0.25) == "ddpm"
    assert rule_key("ddpm", 1.0, "x0_jump") == "x0_jump"


def test_checkpoints_are_named_by_rank():
    assert preseg_starts(3) == ["empty", "checkpoint_1", "checkpoint_2", "best"]
