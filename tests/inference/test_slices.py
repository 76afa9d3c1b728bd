"""The core under volumes and photographs: any number of classes, each member as if it were sampled alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, sample
from pdlib.diffusion.schedule import build_schedule
from pdlib.inference.slices import OneStep, draw_slices, sample_slices
from pdlib.kernels import noise, ops
from pdlib.kernels.noise import Streams

SCHEDULE = build_schedule("cosine", steps=20, offset=0.008, max_beta=0.999)
DIFFUSION = Diffusion(SCHEDULE, build_codec("zero_one"), "eps")
PD = Chain("preseg", "run_to_zero", 6, 2, "ddim", 1.0, "consistent")
ADDPM = replace(PD, finish="one_step", t_stop=4)
MEMBERS, IMAGES, CLASSES = 2, 3, 2


class Mixing(nn.Conv2d):
    """A network that looks around each pixel at every channel, and at the index or the stream where it is given one."""

    device = torch.device("cpu")

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
    timed = sample_slices(
        denoiser,
        image,
        start,
        streams,
        chain=chain,
        diffusion=DIFFUSION,
        one_step=OneStep(last, chain.t_stop, False),
        batch_size=batch_size,
        precision="32-true",
        on_batch=shown.append,
    )
    assert timed.values.shape == (MEMBERS, IMAGES, CLASSES, 8, 12)
    assert timed.calls == calls and sum(shown) == MEMBERS * IMAGES * calls and timed.seconds > 0
    for member in range(MEMBERS):
        for i in range(IMAGES):
            with torch.no_grad():
                alone = sample(
                    denoiser,
                    image[i : i + 1],
                    start[member % starts, i : i + 1],
                    chain=chain,
                    diffusion=DIFFUSION,
                    streams=streams[member, i : i + 1],
                    refine=lambda x: torch.sigmoid(last(x)),
                )
            assert torch.allclose(torch.from_numpy(timed.values[member, i]), alone[0], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_draws_are_the_network_s_own_answers_in_order(batch, batch_size):
    image, _, streams = batch
    segmenter, shown = network(3), []
    how = {"batch_size": batch_size, "precision": "32-true", "on_batch": shown.append}
    timed = draw_slices(segmenter, image, streams[1], **how)
    assert timed.calls == 1 and sum(shown) == IMAGES
    with torch.no_grad():
        expected = nn.functional.conv2d(image, segmenter.weight, segmenter.bias, padding=1) + 0.01  # of member 1
    assert torch.allclose(torch.from_numpy(timed.values), expected, atol=1e-6)


def test_a_last_network_that_sees_no_image_sees_every_class(batch):
    """A chain that stops where it starts hands it the noised mask alone, both channels of it."""
    image, start, streams = batch
    timed = sample_slices(
        network(3 + CLASSES),
        image,
        start,
        streams,
        chain=replace(ADDPM, t_stop=6),
        diffusion=DIFFUSION,
        one_step=OneStep(nn.Identity(), 6, True),
        batch_size=4,
        precision="32-true",
        on_batch=lambda images: None,
    )
    assert timed.calls == 1
    for member in range(MEMBERS):
        fresh = noise.normal(streams[member], noise.START, CLASSES, 8, 12)
        noised = torch.sigmoid(ops.q_sample(start[0], 5, fresh, SCHEDULE))
        assert torch.allclose(torch.from_numpy(timed.values[member]), noised, atol=1e-6)
