"""The core under volumes and photographs: any number of classes, each member as if it were sampled alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.formulas import q_sample
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.diffusion.steps import CAPTURE_FROM
from pdlib.inference import slices
from pdlib.inference.precision import Compute
from pdlib.inference.slices import Calls, Refine, draw_slices, sample_slices
from pdlib.kernels import noise
from pdlib.kernels.noise import Streams
from pdlib.networks.prepared import PreparedDenoiser

SCHEDULE = build_schedule("cosine", steps=20, offset=0.008, max_beta=0.999)
DIFFUSION = Diffusion(SCHEDULE, build_codec("zero_one"), "eps")
PD = Chain("preseg", "run_to_zero", 6, 3, "ddim", 1.0, "consistent")
ADDPM = replace(PD, finish="one_step", calls=2, t_stop=4)
MEMBERS, IMAGES, CLASSES = 2, 3, 2
CPU = Compute(torch.device("cpu"), "32-true", 4)


class OnGpu:
    """A stand-in for a device: tensors stay where they are, and the code takes the road of a GPU."""

    type = "cuda"


class Mixing(nn.Conv2d):
    """A network that looks around each pixel at every channel, and at the index or the stream where it is given one."""

    def forward(self, x, about=None):
        value = about.members if isinstance(about, Streams) else 0 if about is None else about
        return super().forward(x) + 0.01 * torch.as_tensor(value).reshape(-1, 1, 1, 1)


def network(inputs):
    torch.manual_seed(inputs)
    return Mixing(inputs, CLASSES, 3, padding=1)


@pytest.fixture
def batch():
    """Images [N, 3, H, W], a mask for all members [1, N, C, H, W], streams [E, N] of unlike subjects and slices."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(IMAGES, 3, 8, 12, generator=rng)
    start = (torch.rand(1, IMAGES, CLASSES, 8, 12, generator=rng) < 0.3).float()
    keys = torch.tensor([[noise.stream_key(0, name) for name in "aab"]] * MEMBERS)
    streams = Streams(keys, torch.tensor([[4, 7, 4]] * MEMBERS), torch.tensor([[0] * 3, [1] * 3]))
    return image, start, streams


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("starts", [1, MEMBERS])
@pytest.mark.parametrize(("chain", "calls"), [(PD, 3), (ADDPM, 2 + 1)])
def test_members_of_two_classes_are_those_of_hand_written_calls(batch, chain, calls, starts, batch_size):
    image, start, streams = batch
    start = torch.cat([start, 1 - start])[:starts]
    denoiser, last, shown = network(3 + CLASSES), network(3 + CLASSES).requires_grad_(False), []
    sampler = Sampler(denoiser, DIFFUSION, chain, Refine(last, chain.t_stop, False))
    timed = sample_slices(sampler, image, start, streams, replace(CPU, batch_size=batch_size), shown.append)
    assert timed.values.shape == (MEMBERS, IMAGES, CLASSES, 8, 12)
    assert timed.calls == calls and sum(shown) == MEMBERS * IMAGES * calls and timed.seconds > 0
    by_hand = replace(sampler, refine=lambda x: torch.sigmoid(last(x)))
    for member in range(MEMBERS):
        for i in range(IMAGES):
            with torch.no_grad():
                begun = start[member % starts, i : i + 1]
                alone = by_hand.sample(image[i : i + 1], begun, streams[member, i : i + 1])
            assert torch.allclose(torch.from_numpy(timed.values[member, i]), alone[0], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_draws_are_the_network_s_own_answers_in_order(batch, batch_size):
    image, _, streams = batch
    segmenter, shown = network(3), []
    timed = draw_slices(segmenter, image, streams[1], replace(CPU, batch_size=batch_size), shown.append)
    assert timed.calls == 1 and sum(shown) == IMAGES
    with torch.no_grad():
        expected = nn.functional.conv2d(image, segmenter.weight, segmenter.bias, padding=1) + 0.01  # of member 1
    assert torch.allclose(torch.from_numpy(timed.values), expected, atol=1e-6)


def test_a_last_network_that_sees_no_image_sees_every_class(batch):
    """A chain that stops where it starts hands it the noised mask alone, both channels of it."""
    image, start, streams = batch
    sampler = Sampler(network(5), DIFFUSION, replace(ADDPM, calls=0, t_stop=6), Refine(nn.Identity(), 6, True))
    timed = sample_slices(sampler, image, start, streams, CPU, lambda images: None)
    assert timed.calls == 1
    for member in range(MEMBERS):
        fresh = noise.normal(streams[member], noise.START, CLASSES, 8, 12)
        noised = torch.sigmoid(q_sample(start[0], 5, fresh, SCHEDULE))
        assert torch.allclose(torch.from_numpy(timed.values[member]), noised, atol=1e-6)


# --- batches that do not fit the memory ------------------------------------------------------------------------------


class Limited(nn.Module):
    """A network that fits so many rows; fails_at: it fits any number until so many calls have been made."""

    def __init__(self, inner, rows, fails_at=None):
        super().__init__()
        self.inner, self.rows, self.fails_at, self.seen = inner, rows, fails_at, []

    def forward(self, x, about=None):
        self.seen.append(len(x))
        if len(x) > self.rows and (self.fails_at is None or len(self.seen) == self.fails_at):
            raise torch.OutOfMemoryError("full")
        return self.inner(x, about)


def test_a_batch_that_does_not_fit_is_halved_and_counted_once(batch):
    image, start, streams = batch
    inner = network(3 + CLASSES)
    expected = sample_slices(Sampler(inner, DIFFUSION, PD), image, start, streams, CPU, lambda images: None)
    limited, shown = Limited(inner, 2), []
    sampler = Sampler(limited, DIFFUSION, PD)
    timed = sample_slices(sampler, image, start, streams, replace(CPU, batch_size=6), shown.append)
    assert torch.allclose(torch.from_numpy(timed.values), torch.from_numpy(expected.values), atol=1e-6)
    assert limited.seen == [6, 3, *[2] * 9], "six rows in three batches of two, three calls each"
    assert timed.calls == 3 and sum(shown) == MEMBERS * IMAGES * 3 and min(shown) > 0


def test_calls_of_a_batch_that_fails_halfway_do_not_count(batch):
    image, start, streams = batch
    limited, shown = Limited(network(3 + CLASSES), 3, fails_at=3), []
    sampler = Sampler(limited, DIFFUSION, PD)
    timed = sample_slices(sampler, image, start, streams, replace(CPU, batch_size=6), shown.append)
    assert shown == [6, 6, -12, *[3] * 6]
    assert timed.calls == 3 and sum(shown) == MEMBERS * IMAGES * 3


def test_draws_are_halved_too_and_one_row_that_does_not_fit_is_an_error(batch):
    image, _, streams = batch
    timed = draw_slices(Limited(network(3), 1), image, streams[0], CPU, lambda images: None)
    assert timed.calls == 1 and len(timed.values) == IMAGES
    with pytest.raises(torch.OutOfMemoryError):
        draw_slices(Limited(network(3), 0), image, streams[0], CPU, lambda images: None)


# --- the road of a GPU -----------------------------------------------------------------------------------------------


def batches_of(rows, batch_size, device):
    """The batches drawn and warmed up for, without a network."""
    drawn, warm = [], []

    def draw(part, calls):
        drawn.append(part.tolist())
        calls(len(part))
        return part.float()

    compute = Compute(device, "32-true", batch_size)
    calls = Calls(lambda images: None)
    values, _ = slices._in_batches(draw, lambda part: warm.append(len(part)), rows, compute, calls)
    assert values.tolist() == list(range(rows)) == [row for part in drawn for row in part] and calls.images == rows
    return [len(part) for part in drawn], warm


def test_a_gpu_s_batches_are_equally_large_and_warmed_up_for():
    assert batches_of(10, 8, OnGpu()) == ([5, 5], [5, 5])
    assert batches_of(225, 80, OnGpu()) == ([75, 75, 75], [75, 75, 75])
    assert batches_of(7, 8, OnGpu()) == ([7], [7])
    assert batches_of(10, 8, torch.device("cpu")) == ([8, 2], [])


def test_the_clock_starts_after_the_warm_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(slices, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    compute, calls = Compute(OnGpu(), "32-true", 2), Calls(lambda images: None)

    def warm_up(part):
        assert [next(clock) for _ in range(9)]

    _, seconds = slices._in_batches(lambda part, calls: part.float(), warm_up, 4, compute, calls)
    assert seconds == 2, "one tick for each of two batches"


def test_a_shape_is_warmed_up_once_by_few_calls(batch, monkeypatch):
    """The first batch of a shape runs a short chain before: long enough to be captured, and not counted."""
    image, start, streams = batch
    long, shown = replace(PD, t_prime=20, calls=20), []
    denoiser = network(3 + CLASSES)
    seen = []
    denoiser.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.no_grad())
    compute = Compute(OnGpu(), "32-true", 4)
    for repeat in range(2):
        seen.clear(), shown.clear()
        timed = sample_slices(Sampler(denoiser, DIFFUSION, long), image, start, streams, compute, shown.append)
        assert sum(shown) == MEMBERS * IMAGES * 20 and timed.calls == 20
        assert len(seen) == 2 * 20 + (CAPTURE_FROM if repeat == 0 else 0)


def test_a_batch_is_as_large_as_the_memory_and_a_bucket(random_network, batch, monkeypatch):
    image, start, streams = batch
    denoiser = PreparedDenoiser(random_network, 20, "32-true")
    made = []

    def in_batches(draw, warm_up, rows, compute, calls):
        made.append(compute.batch_size)
        return torch.zeros(rows, 1, 8, 12), 0.0

    monkeypatch.setattr(slices, "_in_batches", in_batches)
    monkeypatch.setattr(slices, "_rows_that_fit", lambda denoiser, row: 35)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    for asked in (80, 20):
        compute = Compute(OnGpu(), "32-true", asked)
        sample_slices(Sampler(denoiser, DIFFUSION, PD), image, start, streams, compute, lambda images: None)
    assert made == [32, 20]


def test_rows_that_fit_are_judged_once_by_one_row(random_network, monkeypatch):
    denoiser = PreparedDenoiser(random_network, 20, "32-true")
    silent = {"empty_cache": lambda: None, "reset_peak_memory_stats": lambda: None}
    numbers = {"mem_get_info": (800, 4000), "memory_reserved": 300, "memory_allocated": 100}
    numbers |= {"max_memory_allocated": 150}
    for name, answer in (silent | {name: lambda value=value: value for name, value in numbers.items()}).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert slices._rows_that_fit(denoiser, torch.zeros(1, 3, 6, 4)) == int(slices.MEMORY_SHARE * 1000 / 50)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 100)
    assert slices._rows_that_fit(denoiser, torch.ones(1, 3, 6, 4)) == int(slices.MEMORY_SHARE * 1000 / 50)
    assert slices._rows_that_fit(denoiser, torch.zeros(1, 3, 8, 4)) == 1
