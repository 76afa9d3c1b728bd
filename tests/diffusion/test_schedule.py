"""Schedules against published values, and the indices that a chain visits."""

import math
from itertools import pairwise

import pytest
import torch

from pdlib.diffusion.schedule import (
    build_schedule,
    calls_of_stride,
    chain_indices,
    scale_t_prime,
    trailing_indices,
)

COSINE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)


def test_cosine_schedule_has_the_published_values():
    abar = COSINE.alphas_cumprod
    assert abar.dtype == torch.float64 and len(abar) == COSINE.steps == 1000
    known = {0: 0.99995872, 99: 0.97209274, 199: 0.89870592, 249: 0.84701216, 299: 0.78691051, 499: 0.49384359}
    for k, value in known.items():
        assert abs(float(abar[k]) - value) < 5e-9
    assert float(abar[998]) == pytest.approx(2.43e-6, rel=2e-3)
    assert float(abar[999]) == pytest.approx(2.43e-9, rel=2e-3)
    linear = build_schedule("linear", steps=1000, first_beta=1e-4, last_beta=0.02)
    assert float(linear.alphas_cumprod[999]) == pytest.approx(4.04e-5, rel=2e-3)


def test_the_clean_image_is_index_minus_one():
    assert float(COSINE.abar(-1)) == 1 and float(COSINE.posterior_variance(0, -1)) == 0
    assert float(COSINE.step_beta(0, -1)) == pytest.approx(float(COSINE.betas[0]), rel=1e-9)
    assert float(COSINE.step_beta(300, 299)) == pytest.approx(float(COSINE.betas[300]), rel=1e-9)


def test_a_schedule_made_while_sampling_serves_training():
    with torch.inference_mode():
        COSINE.abar(3)
        fresh = build_schedule("linear", steps=10, first_beta=1e-4, last_beta=0.02)
        fresh.abar(3)
    leaf = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for schedule in (COSINE, fresh):
        (leaf * schedule.abar(3)).sum().backward()


@pytest.mark.parametrize("t_prime", range(1, 61))
def test_a_chain_makes_as_many_calls_as_are_asked_for(t_prime):
    for t_stop in (0, t_prime // 2, t_prime - 1):
        for calls in range(1, t_prime - t_stop + 1):
            visited = chain_indices(t_prime, calls, t_stop)
            assert len(visited) == calls and visited[0] == t_prime - 1
            assert calls == 1 or visited[-1] == t_stop
            assert list(visited) == sorted(set(visited), reverse=True)
            gaps = [a - b for a, b in pairwise(visited)]
            assert calls < 3 or max(gaps) - min(gaps) <= 1, "evenly spread"


def test_all_indices_or_some_of_them():
    assert chain_indices(300, 300) == tuple(range(299, -1, -1))
    assert chain_indices(30, 4) == (29, 19, 10, 0)
    assert [len(chain_indices(30, calls)) for calls in (16, 20)] == [16, 20]
    assert chain_indices(1, 1) == (0,) and chain_indices(30, 1) == (29,)
    assert chain_indices(300, 50, 250) == tuple(range(299, 249, -1))
    assert chain_indices(300, 3, 250) == (299, 274, 250)
    assert chain_indices(30, 0, 30) == ()


@pytest.mark.parametrize("t_prime", range(1, 61))
def test_trailing_strides_begin_at_t_prime_and_nest(t_prime):
    for calls in range(1, t_prime + 1):
        visited = trailing_indices(t_prime, calls)
        assert len(visited) == calls and visited[0] == t_prime - 1 and visited[-1] >= 0
        gaps = [a - b for a, b in pairwise((*visited, -1))]
        assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 2, "the last stride, to the clean image, is like the others"
        assert calls % 2 or visited[::2] == trailing_indices(t_prime, calls // 2)


def test_the_grids_of_a_distillation():
    assert trailing_indices(300, 4) == (299, 224, 149, 74) and trailing_indices(30, 1) == (29,)
    assert trailing_indices(30, 8) == (29, 25, 21, 18, 14, 10, 7, 3)
    assert set(trailing_indices(30, 8)) < set(trailing_indices(30, 16))


@pytest.mark.parametrize("t_stop", [0, 7])
def test_a_stride_becomes_a_count(t_stop):
    for t_prime in range(t_stop + 1, 61):
        length = t_prime - t_stop
        for stride in (1, 3, 8):
            calls = calls_of_stride(t_prime, stride, t_stop)
            assert calls == max(math.ceil(length / stride), min(length, 2))
            assert len(chain_indices(t_prime, calls, t_stop)) == calls
    assert calls_of_stride(30, 3, 30) == 0


def test_a_share_of_the_paper_s_steps_carries_over():
    assert [scale_t_prime(value, 1000, 100) for value in (300, 4, 0)] == [30, 1, 0]


def test_impossible_counts_and_names_are_refused():
    for call, words in (
        (lambda: chain_indices(0, 1), "at least 1"),
        (lambda: chain_indices(30, 1, 31), "t_stop 31 in 0..t_prime"),
        (lambda: chain_indices(30, 31), "calls 31 must be in 1..30"),
        (lambda: chain_indices(30, 0), "calls 0 must be in 1..30"),
        (lambda: chain_indices(30, 6, 25), "calls 6 must be in 1..5"),
        (lambda: chain_indices(30, 1, 30), "calls 1 must be in 0..0"),
        (lambda: calls_of_stride(30, 0), "stride 0"),
        (lambda: build_schedule("square"), "unknown schedule"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
