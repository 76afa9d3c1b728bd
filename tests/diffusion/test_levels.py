"""How much noise a state holds: the closed form against known noise, and chains that follow an estimate."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.formulas import q_sample
from pdlib.diffusion.levels import background_level, nearest_index, next_index, within_reach
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise

SCHEDULE = build_schedule("cosine", steps=100, offset=0.008, max_beta=0.999)
DIFFUSION = Diffusion(SCHEDULE, build_codec("zero_one"), "x_start")
CHAIN = Chain("preseg", "run_to_zero", 31, 6, "noise_level", 0.0, "consistent")
ROWS = 3


def network(x, t):
    """A fixed stand-in that sees image, state and time."""
    return 0.5 + 0.4 * torch.tanh(x[:, 2:] + 0.2 * x[:, :1]) + 0.001 * t.reshape(-1, 1, 1, 1)


def drawn(chain, levels=None, rows=ROWS):
    """What a chain makes of the same images and starts."""
    rng = torch.Generator().manual_seed(1)
    image = torch.randn(rows, 2, 8, 8, generator=rng)
    start = (torch.rand(rows, 1, 8, 8, generator=rng) < 0.2).float()
    streams = noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    return Sampler(visited.denoise, DIFFUSION, chain, levels=levels).sample(image, start, streams)


class Visited:
    """The indices that each row was denoised at, [rows][calls]."""

    def __init__(self):
        self.indices = []

    def denoise(self, x, t):
        self.indices.append(t.tolist())
        return network(x, t)

    def rows(self):
        rows, self.indices = [list(row) for row in zip(*self.indices, strict=True)], []
        return rows


visited = Visited()


def told(*per_call):
    """Levels that say an index for each row and call."""
    answers = iter(per_call)
    return lambda x: SCHEDULE.abar(torch.tensor(next(answers)))


# --- the closed form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
@pytest.mark.parametrize("k", [0, 9, 29, 70])
def test_the_background_tells_the_variance_of_its_noise(codec, k):
    """Unbiased within three standard errors; the error of one state is that of a median absolute deviation."""
    states, side = 200, 40
    fresh = torch.randn(states, 1, side, side, generator=torch.Generator().manual_seed(k))
    empty = build_codec(codec).encode(torch.zeros_like(fresh))
    variance = float(1 - SCHEDULE.abar(k))
    found = (1 - background_level(q_sample(empty, k, fresh, SCHEDULE))).double() / variance
    relative = 2 * 1.1664 / side  # of a variance: twice a deviation's, whose asymptotic error is 1.1664 / sqrt(n)
    assert float(found.std()) == pytest.approx(relative, rel=0.2)
    assert abs(float(found.mean()) - 1) < 3 * relative / math.sqrt(states) + 1 / side**2


def test_few_lesions_do_not_hide_the_background_and_a_plain_variance_would():
    mask = torch.zeros(64, 1, 40, 40)
    mask[..., :8, :8] = 1  # 4 % of the pixels
    fresh = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    state = q_sample(mask, 9, fresh, SCHEDULE)
    true = torch.full((64,), 9)
    assert (nearest_index(background_level(state), SCHEDULE) - true).abs().max() <= 2
    assert (nearest_index(1 - state.flatten(1).var(1), SCHEDULE) - true).min() >= 4


# --- indices ----------------------------------------------------------------------------------------------------------


def test_the_nearest_index_is_the_nearest_alphas_cumprod():
    between = (SCHEDULE.abar(9) + SCHEDULE.abar(10)) / 2
    abar = torch.stack([SCHEDULE.abar(9), between + 1e-6, between - 1e-6, torch.tensor(1.0), torch.tensor(0.0)])
    assert nearest_index(abar, SCHEDULE).tolist() == [9, 9, 10, 0, 99]


@pytest.mark.parametrize(("t", "calls", "rest"), [(30, 6, [24, 18, 12, 6, 0, -1]), (7, 3, [4, 0, -1]), (5, 1, [-1])])
def test_the_calls_that_are_left_are_spread_evenly_down_to_0(t, calls, rest):
    indices = []
    for left in range(calls, 0, -1):
        t = int(next_index(torch.tensor([t]), left)[0])
        indices.append(t)
    assert indices == rest


def test_indices_are_held_where_the_calls_that_are_left_can_still_fall():
    assert within_reach(torch.tensor([0, 12, 99]), 30, 6).tolist() == [5, 12, 30]
    assert within_reach(torch.tensor([0, 12, 99]), torch.tensor([9, 9, 40]), 6).tolist() == [5, 9, 40]


@pytest.mark.parametrize("calls", [1, 2, 5, 31])
def test_whatever_is_estimated_a_chain_makes_its_calls_at_falling_indices_and_ends(calls):
    rng = torch.Generator().manual_seed(calls)
    wild = lambda x: torch.rand(len(x), generator=rng) ** 0.05  # noqa: E731
    out = drawn(replace(CHAIN, calls=calls), wild, rows=20)
    for row in visited.rows():
        assert len(row) == calls and row[0] <= 30 and row[-1] >= 0
        assert all(later < earlier for earlier, later in pairwise(row))
    assert out.min() >= 0 and out.max() <= 1


# --- the chain --------------------------------------------------------------------------------------------------------


def test_told_the_true_levels_it_is_ddim():
    exact = [30, 24, 18, 12, 6, 0]
    ours = drawn(CHAIN, told(*([k] * ROWS for k in exact)))
    assert visited.rows() == [exact] * ROWS
    assert torch.equal(ours, drawn(replace(CHAIN, rule="ddim")))
    assert visited.rows() == [exact] * ROWS


def test_each_row_follows_its_own_level_as_ddim_would_from_there():
    """A row that is told less noise starts lower: its chain is DDIM's over its own indices."""
    chain = replace(CHAIN, calls=3)
    ours = drawn(chain, told([30, 20, 30], [15, 10, 4], [0, 0, 0]))
    assert visited.rows() == [[30, 15, 0], [20, 10, 0], [30, 4, 0]]
    plain = drawn(replace(chain, rule="ddim"))
    visited.rows()
    assert torch.equal(ours[0], plain[0])
    assert not torch.allclose(ours[1], plain[1]) and not torch.allclose(ours[2], plain[2])


def test_levels_and_their_rule_belong_together():
    with pytest.raises(ValueError, match="levels belong to the rule noise_level"):
        Sampler(network, DIFFUSION, CHAIN)
    with pytest.raises(ValueError, match="levels belong to the rule noise_level"):
        Sampler(network, DIFFUSION, replace(CHAIN, rule="ddim"), levels=background_level)
