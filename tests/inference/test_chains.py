"""A row as a chain: the paper's counts, those that are asked for, and whose settings come first."""

import pytest

from pdlib.inference.chains import chain_of, settings_of
from pdlib.methods import METHODS, Method
from pdlib.profiles import load_profile

PAPER = load_profile("paper").chain
U_NET = Method("From the U-Net", "unet", start="preseg", settings={"rule": "ddim", "eta": 0.0})


def test_rows_have_the_paper_s_calls():
    chains = {name: chain_of(method, PAPER, 1000) for name, method in METHODS.items() if method.start}
    calls = {name: len(chain.indices) for name, chain in chains.items()}
    assert calls["ddpm"] == calls["wolleb2021"] == 1000 and calls["x0_jump"] == 1
    assert {calls[name] for name in ("pd_ddpm", "es_ddpm", "tdpm", "pd_ddpm_1")} == {300}
    assert chains["addpm"].indices == chains["addpm_mask_only"].indices == tuple(range(299, 249, -1))
    assert chains["refiner"].indices == () and chains["refiner"].t_stop == chains["refiner"].t_prime
    assert {name for name, chain in chains.items() if chain.t_stop} == {"addpm", "addpm_mask_only", "refiner"}


def test_t_prime_and_t_stop_are_scaled_to_the_schedule():
    short = chain_of(METHODS["addpm"], PAPER, 100, t_stop=200)
    assert short.indices == tuple(range(29, 19, -1)) and (short.t_prime, short.t_stop) == (30, 20)
    assert chain_of(METHODS["ddpm"], PAPER, 100, t_prime=200).t_prime == 100, "pure noise is at the schedule's end"


@pytest.mark.parametrize("calls", [1, 2, 15, 16, 20, 29, 30])
def test_as_many_calls_as_are_asked_for(calls):
    for name, last in (("pd_ddpm", 29), ("ddpm", 99)):
        indices = chain_of(METHODS[name], PAPER, 100, calls=calls, stride=7).indices
        assert len(indices) == calls and indices[0] == last and (calls == 1 or indices[-1] == 0)
    assert chain_of(METHODS["x0_jump"], PAPER, 100, calls=calls).calls == 1


def test_a_row_s_own_settings_stand_in_for_the_profile_s_and_a_change_for_both():
    chain = chain_of(U_NET, PAPER, 100)
    assert (chain.start, chain.rule, chain.eta) == ("preseg", "ddim", 0.0) and (PAPER.rule, PAPER.eta) == ("ddpm", 1.0)
    assert chain_of(U_NET, PAPER, 100, eta=0.5).eta == 0.5 and chain_of(U_NET, PAPER, 100, calls=3).eta == 0.0
    assert settings_of(METHODS["pd_ddpm"], PAPER) == PAPER


def test_what_is_no_chain_is_refused():
    for name, changes, words in (
        ("unet", {}, "U-Net: a row without a chain"),
        ("pd_ddpm", {"eat": 0.0}, "eat"),
        ("pd_ddpm", {"eta": 2.0}, "eta"),
        ("pd_ddpm", {"t_prime": 1001}, "t_prime 1001 exceeds paper_steps 1000"),
        ("pd_ddpm", {"calls": 31}, "calls 31 must be in 1..30"),
    ):
        with pytest.raises(ValueError, match=words):
            chain_of(METHODS[name], PAPER, 100, **changes)
