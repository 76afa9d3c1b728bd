"""Chains over fixed buffers that are captured once and replayed, with a stand-in for the CUDA graph."""

from dataclasses import replace

import pytest
import torch

from pdlib.diffusion import steps
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, sample
from pdlib.diffusion.schedule import build_schedule
from pdlib.inference import slices
from pdlib.kernels import noise
from pdlib.networks.guided_unet import PreparedDenoiser

DIFFUSION = Diffusion(
    build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999), build_codec("zero_one"), "x_start"
)
CHAIN = Chain("preseg", "run_to_zero", 300, 60, "ddpm", 1.0, "consistent")


@pytest.fixture
def plain(random_network):
    return PreparedDenoiser(random_network, 1000, "32-true")


@pytest.fixture
def denoise(random_network):
    """One that believes it is on a GPU."""
    made = PreparedDenoiser(random_network, 1000, "32-true")
    made.device = torch.device("cuda")
    return made


@pytest.fixture
def captured(monkeypatch):
    """Replaces the capture; the kinds of buffers that were captured."""
    kinds = []

    def capture(denoise, buffers):
        kinds.append(buffers.kind)
        fixed = steps._copy(buffers)
        output = torch.empty_like(denoise(fixed.x, torch.zeros(len(fixed.x), dtype=torch.int32)))

        class Graph:
            def replay(self):
                output.copy_(steps.advance(denoise, fixed))

        return Graph(), fixed, output

    monkeypatch.setattr(steps, "_capture", capture)
    return kinds


class Seen(list):
    """What each step shows."""

    def __call__(self, *seen):
        self.append(seen)


def drawn(denoise, rows, seed, chain, **how):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, 2, 6, 4, generator=generator)
    preseg = (torch.rand(rows, 1, 6, 4, generator=generator) < 0.4).float()
    streams = noise.subject_streams(seed, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    with torch.inference_mode():
        return sample(denoise, image, preseg, chain=chain, diffusion=DIFFUSION, streams=streams, **how)


def test_a_replayed_step_serves_every_chain_of_its_shapes(denoise, plain, captured):
    short = replace(CHAIN, t_prime=100, stride=30)
    for seed, (rows, chain) in enumerate([(3, CHAIN), (3, short), (2, CHAIN), (3, CHAIN), (2, short)]):
        calls, found, expected = [], Seen(), Seen()
        ours = drawn(denoise, rows, seed, chain, on_call=calls.append, on_step=found)
        theirs = drawn(plain, rows, seed, chain, on_step=expected)
        assert torch.equal(ours, theirs) and calls == [rows] * len(chain.indices)
        for (t, *mine), (index, *other) in zip(found, expected, strict=True):
            assert t == index and all(map(torch.equal, mine, other))
        assert torch.equal(drawn(denoise, rows, seed, chain), theirs)
    assert len(captured) == 2, "one for three rows, one for two"


def test_a_denoiser_keeps_the_graphs_of_its_latest_shapes(denoise, plain, captured):
    for rows in (1, 2, 3, 4, 5, 1):
        assert torch.equal(drawn(denoise, rows, 0, CHAIN), drawn(plain, rows, 0, CHAIN))
        assert len(denoise.graphs) <= steps.GRAPHS
    assert len(captured) == 6


def test_a_solver_that_computes_between_calls_is_not_captured(denoise, plain, captured):
    solver = replace(CHAIN, step="dpm_solver")
    assert torch.equal(drawn(denoise, 2, 0, solver), drawn(plain, 2, 0, solver)) and not captured


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to capture on")
def test_where_nothing_can_be_captured_the_chain_says_so_and_goes_on(denoise, plain):
    with pytest.warns(RuntimeWarning, match="no CUDA graph"):
        found = drawn(denoise, 2, 0, CHAIN)
    assert torch.equal(found, drawn(plain, 2, 0, CHAIN))


def test_rows_that_fit_are_judged_once_by_one_row(denoise, monkeypatch):
    silent = {"empty_cache": lambda: None, "reset_peak_memory_stats": lambda: None}
    numbers = {"mem_get_info": (1000, 4000), "memory_allocated": 100, "max_memory_allocated": 150}
    for name, answer in (silent | {name: lambda value=value: value for name, value in numbers.items()}).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert slices._rows_that_fit(denoise, torch.zeros(1, 3, 6, 4)) == int(slices.MEMORY_SHARE * 1000 / 50)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 4000))
    assert slices._rows_that_fit(denoise, torch.ones(1, 3, 6, 4)) == int(slices.MEMORY_SHARE * 1000 / 50)
    assert slices._rows_that_fit(denoise, torch.zeros(1, 3, 8, 4)) == 1
