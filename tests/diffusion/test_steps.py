"""Network calls that are captured once and replayed, with a stand-in for the CUDA graph."""

import warnings
from dataclasses import replace

import pytest
import torch

from pdlib.diffusion import steps
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise
from pdlib.networks.prepared import PreparedDenoiser

DIFFUSION = Diffusion(
    build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999), build_codec("zero_one"), "x_start"
)
CHAIN = Chain("preseg", "run_to_zero", 300, 9, "ddpm", 1.0, "consistent")


@pytest.fixture
def plain(random_network):
    return PreparedDenoiser(random_network, 1000, "32-true")


@pytest.fixture
def denoiser(random_network):
    """One that believes it is on a GPU."""
    made = PreparedDenoiser(random_network, 1000, "32-true")
    made.device = torch.device("cuda")
    return made


@pytest.fixture
def captured(monkeypatch):
    """Replaces the capture by a graph that computes; the shapes that were captured."""
    shapes = []

    def capture(denoiser, shape):
        shapes.append(shape)
        x, t = steps._buffers(shape, torch.device("cpu"))
        output = torch.empty_like(denoiser(x, t))

        class Graph:
            def replay(self):
                output.copy_(denoiser(x, t))

        return steps.CapturedCall(Graph(), x, t, output)

    monkeypatch.setattr(steps, "_capture", capture)
    return shapes


def drawn(denoiser, rows, seed, chain, **how):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, 2, 6, 4, generator=generator)
    preseg = (torch.rand(rows, 1, 6, 4, generator=generator) < 0.4).float()
    streams = noise.subject_streams(seed, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    with torch.inference_mode():
        return Sampler(denoiser, DIFFUSION, chain).sample(image, preseg, streams, **how)


class Seen(list):
    """What each step shows."""

    def __call__(self, *seen):
        self.append(seen)


@pytest.mark.parametrize("rule", ["ddpm", "ddim", "dpm_solver"])
def test_a_replayed_call_serves_every_chain_of_its_shapes(denoiser, plain, captured, rule):
    chain = replace(CHAIN, rule=rule)
    short = replace(chain, t_prime=100, calls=8)
    for seed, (rows, one) in enumerate([(3, chain), (3, short), (2, chain), (3, chain), (2, short)]):
        calls, found, expected = [], Seen(), Seen()
        ours = drawn(denoiser, rows, seed, one, on_call=calls.append, on_step=found)
        theirs = drawn(plain, rows, seed, one, on_step=expected)
        assert torch.equal(ours, theirs) and calls == [rows] * one.calls
        for (t, *mine), (index, *other) in zip(found, expected, strict=True):
            assert t == index and all(map(torch.equal, mine, other))
        assert torch.equal(drawn(denoiser, rows, seed, one), theirs)
    assert captured == [(3, 3, 6, 4), (2, 3, 6, 4)], "one for three rows, one for two"


def test_rows_share_a_bucket_and_its_spare_rows_are_thrown_away(denoiser, plain, captured):
    for rows in (33, 35, 36, 34):
        calls = []
        found = drawn(denoiser, rows, rows, CHAIN, on_call=calls.append)
        torch.testing.assert_close(found, drawn(plain, rows, rows, CHAIN), rtol=0, atol=1e-5)
        assert len(found) == rows and calls == [rows] * 9, "only real rows are counted"
    assert captured == [(36, 3, 6, 4)]


def test_buckets_hold_their_rows_and_waste_an_eighth_at_most():
    for rows in range(1, 600):
        size, below = steps.bucket(rows), steps.bucket_below(rows)
        assert below <= rows <= size <= max(rows, 1.125 * rows)
        assert steps.bucket(size) == size == steps.bucket_below(size) and steps.bucket(below) == below
    assert len({steps.bucket(rows) for rows in range(1, 129)}) == 16 + 3 * 8


def test_a_chain_of_few_calls_is_not_worth_a_capture(denoiser, plain, captured):
    few = replace(CHAIN, calls=steps.CAPTURE_FROM - 1)
    assert torch.equal(drawn(denoiser, 2, 0, few), drawn(plain, 2, 0, few)) and not captured
    drawn(denoiser, 2, 0, CHAIN)
    assert torch.equal(drawn(denoiser, 2, 0, few), drawn(plain, 2, 0, few)) and len(captured) == 1


def test_a_denoiser_keeps_the_graphs_of_its_latest_shapes(denoiser, plain, captured, monkeypatch):
    monkeypatch.setattr(steps, "GRAPHS", 4)
    for rows in (1, 2, 3, 4, 5, 1):
        assert torch.equal(drawn(denoiser, rows, 0, CHAIN), drawn(plain, rows, 0, CHAIN))
        assert len(denoiser.graphs) <= 4
    assert len(captured) == 6


def test_buffers_serve_training_code_too(captured):
    with torch.inference_mode():
        x, t = steps._buffers((2, 3, 6, 4), torch.device("cpu"))
    assert not x.is_inference() and not t.is_inference() and x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to capture on")
def test_where_nothing_can_be_captured_the_chain_says_so_once_and_goes_on(denoiser, plain):
    with pytest.warns(RuntimeWarning, match="no CUDA graph"):
        found = drawn(denoiser, 2, 0, CHAIN)
    assert torch.equal(found, drawn(plain, 2, 0, CHAIN))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(drawn(denoiser, 2, 0, CHAIN), found)


@pytest.mark.parametrize("nested", [False, True])
def test_a_capture_that_does_not_fit_the_memory_is_no_reason_to_go_on(denoiser, monkeypatch, nested):
    def capture(denoiser, shape):
        try:
            raise torch.OutOfMemoryError("full")
        except torch.OutOfMemoryError:
            if nested:
                raise RuntimeError("the capture was invalidated") from None
            raise

    monkeypatch.setattr(steps, "_capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        drawn(denoiser, 2, 0, CHAIN)
    assert not denoiser.graphs


def test_graphs_of_other_shapes_make_room_for_a_new_one(denoiser, plain, captured, monkeypatch):
    drawn(denoiser, 3, 0, CHAIN)
    without_room, tries = steps._capture, []

    def capture(denoiser, shape):
        tries.append(len(denoiser.graphs))
        if denoiser.graphs:
            raise torch.OutOfMemoryError("full")
        return without_room(denoiser, shape)

    monkeypatch.setattr(steps, "_capture", capture)
    assert torch.equal(drawn(denoiser, 2, 0, CHAIN), drawn(plain, 2, 0, CHAIN))
    assert tries == [1, 0] and list(denoiser.graphs) == [(2, 3, 6, 4)]
