"""Volumes through networks: what is cut and put back, what a prediction may depend on, what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.inference.precision import Compute
from pdlib.inference.volumes import Subject, combine, draw_member, sample_members
from pdlib.inference.window import Window, brain_slices
from pdlib.kernels import noise
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.training.weights import load_weights

CHAIN = Chain("preseg", "run_to_zero", 4, 4, "ddpm", 1.0, "consistent")
DEVICE = torch.device("cpu")


def box(shape, *corners):
    brain = np.zeros(shape, dtype=bool)
    for (top, bottom), (left, right) in corners:
        brain[1:-1, top:bottom, left:right] = True
    return brain


BRAINS = {
    "inside": box((4, 20, 18), ((5, 13), (6, 11))),
    "at the low border": box((4, 20, 18), ((0, 9), (0, 3))),
    "at the high border": box((4, 20, 18), ((11, 20), (15, 18))),
    "the whole slice": box((3, 20, 18), ((0, 20), (0, 18))),
    "smaller than the multiple": box((3, 5, 6), ((1, 5), (0, 6))),
    "one voxel in a corner": box((3, 9, 9), ((8, 9), (8, 9))),
    "two parts": box((5, 20, 18), ((0, 2), (16, 18)), ((12, 17), (3, 4))),
    "a slice without brain": box((6, 20, 18), ((3, 9), (6, 11))) & (np.arange(6) != 2)[:, None, None],
}


@pytest.mark.parametrize("multiple", [1, 4, 8])
@pytest.mark.parametrize("brain", BRAINS.values(), ids=BRAINS)
def test_window_holds_the_brain_and_comes_back_unchanged(brain, multiple):
    window = Window.around(brain, multiple)
    array = np.random.default_rng(0).random(brain.shape) * brain
    cut = window.cut(array)
    rows, columns = np.flatnonzero(brain.any(axis=(0, 2))), np.flatnonzero(brain.any(axis=(0, 1)))
    for side, indices in ((window.height, rows), (window.width, columns)):
        assert side % multiple == 0 and 0 <= side - (indices[-1] - indices[0] + 1) < multiple
    assert cut.shape == (brain.any(axis=(1, 2)).sum(), window.height, window.width)
    np.testing.assert_array_equal(window.put_back(cut, brain.shape), array)
    assert np.sort(cut[cut != 0]).tolist() == np.sort(array[brain]).tolist(), "each brain voxel once, else zeros"
    stack = np.stack([cut, 2 * cut])
    np.testing.assert_array_equal(window.put_back(stack, brain.shape), np.stack([array, 2 * array]))


def test_network_sees_flair_then_t1_of_the_brain_slices(volume):
    image, window = brain_slices(volume, 4)
    assert image.shape == (3, 2, 12, 12) and image.dtype == torch.float32
    assert window.slices.tolist() == [1, 2, 4]
    left, top = window.left, window.top
    assert torch.equal(image[2, 1, -top : 9 - top, 3 - left : 14 - left], torch.from_numpy(volume.image[1, 4, :9, 3:]))


class Logit(nn.Module):
    """A segmenter that answers with one value everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, image, streams):
        return self.value.expand(len(image), 1, *image.shape[2:])


def segment(network, volume, *, name="Utrecht/7", seed=0, member=0, batch_size=2, on_batch=lambda images: None):
    compute = Compute(DEVICE, "32-true", batch_size)
    return draw_member(network, Subject(volume, name, seed, 4), member, compute, on_batch)


def draw(
    sampler, volume, start, *, name="Utrecht/7", seed=0, members=range(2), multiple=4, batch_size=4, on_batch=None
):
    starts = start.reshape(-1, *volume.brain.shape)  # one, or one a member
    subject, compute = Subject(volume, name, seed, multiple), Compute(DEVICE, "32-true", batch_size)
    return sample_members(sampler, subject, starts, members, compute, on_batch or (lambda images: None))


@pytest.fixture
def preseg(volume):
    return (volume.image[0] > 1).astype(np.uint8)


@pytest.fixture(scope="module")
def sampler(networks):
    """The denoiser after two updates, in a chain."""
    weights = load_weights(networks.place.weights("denoiser_0") / "best.safetensors")
    diffusion = build_diffusion(**weights.card["diffusion"])
    denoiser = PreparedDenoiser(weights.build(DEVICE, "denoiser"), diffusion.schedule.steps, "32-true")
    return Sampler(denoiser, diffusion, CHAIN)


@pytest.fixture(scope="module")
def segmenter(networks):
    return load_weights(networks.preseg).build(DEVICE, "segmenter")


def test_every_brain_voxel_is_segmented_and_no_other(volume):
    found = segment(Logit(1.0), volume).values
    assert found.dtype == np.float32 and found.shape == volume.brain.shape
    np.testing.assert_allclose(found, volume.brain / (1 + np.exp(-1.0)), rtol=1e-6)


def test_members_lie_in_the_brain_and_in_range(volume, preseg, sampler):
    members = draw(sampler, volume, preseg).values
    assert members.shape == (2, *volume.brain.shape) and members.dtype == np.float32
    assert members.min() == 0 and members.max() <= 1 and not members[:, ~volume.brain].any()
    assert np.abs(members[0] - members[1])[volume.brain].max() > 1e-3, "members have noise of their own"


@pytest.mark.parametrize("rule", ["ddpm", "ddim"])
@pytest.mark.parametrize("start", ["preseg", "gaussian"])
def test_members_depend_neither_on_the_batch_nor_on_each_other(volume, preseg, sampler, start, rule):
    sampler = replace(sampler, chain=replace(CHAIN, start=start, rule=rule))
    five = draw(sampler, volume, preseg, members=range(5)).values
    for batch_size in (1, 7, 100):
        other = draw(sampler, volume, preseg, members=range(5), batch_size=batch_size).values
        np.testing.assert_allclose(other, five, atol=1e-6)
    for members in (range(3), range(3, 5)):
        part = draw(sampler, volume, preseg, members=members).values
        np.testing.assert_allclose(part, five[list(members)], atol=1e-6)


def test_a_slice_depends_on_itself_alone(volume, preseg, sampler, segmenter):
    changed, other = volume.image.copy(), preseg.copy()
    changed[:, 2] += 1
    other[2] = 1 - other[2]
    elsewhere = replace(volume, image=changed)
    pairs = [
        (segment(segmenter, volume).values, segment(segmenter, elsewhere).values),
        (
            draw(sampler, volume, preseg).values,
            draw(sampler, elsewhere, other).values,
        ),
    ]
    for before, after in pairs:
        different = np.abs(before - after).reshape(-1, *volume.brain.shape).max(axis=(0, 2, 3)) > 1e-6
        assert np.flatnonzero(different).tolist() == [2]


@pytest.mark.parametrize("change", [{"name": "Utrecht/8"}, {"seed": 1}])
def test_subject_and_seed_change_the_noise(volume, preseg, sampler, change):
    first, second = draw(sampler, volume, preseg), draw(sampler, volume, preseg, **change)
    assert np.abs(first.values - second.values).max() > 1e-3


def test_the_reference_has_no_way_into_a_prediction(volume, preseg, sampler, segmenter):
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(volume.mask.ravel()).reshape(volume.mask.shape)
    for other in (replace(volume, mask=shuffled, ignore=shuffled == 0), replace(volume, mask=None, ignore=None)):
        np.testing.assert_array_equal(segment(segmenter, other).values, segment(segmenter, volume).values)
        with_it = draw(sampler, volume, preseg).values
        np.testing.assert_array_equal(draw(sampler, other, preseg).values, with_it)


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
def test_a_given_state_goes_on_beyond_the_image_as_a_diffused_empty_mask(volume, sampler, codec):
    """By hand: the state inside; outside the codec's background and the noise of the slice and member."""
    setting = replace(sampler.diffusion, codec=build_codec(codec))
    first = []
    given = replace(
        sampler,
        denoiser=lambda x, t: first.append(x[:, 2:].clone()) or sampler.denoiser(x, t),
        diffusion=setting,
        chain=replace(CHAIN, start="given"),
    )
    states = np.random.default_rng(0).standard_normal((2, *volume.brain.shape), dtype=np.float32)
    draw(given, volume, states, multiple=8, batch_size=6)
    _, window = brain_slices(volume, 8)
    assert window.top < 0 and window.height > volume.brain.shape[1], "it sticks out on both sides"
    inside = window.cut(np.ones(volume.brain.shape, dtype=bool))[:, None]
    abar = float(setting.schedule.abar(3))
    background = abar**0.5 * setting.codec.low
    for place, z in enumerate(window.slices):
        for member in range(2):
            streams = noise.subject_streams(0, "Utrecht/7", torch.tensor([z]), torch.tensor([member]))
            empty = background + (1 - abar) ** 0.5 * noise.normal(streams, noise.START, 1, *inside.shape[2:])[0]
            expected = np.where(inside[place], window.cut(states[member])[place], empty)
            np.testing.assert_allclose(first[0][2 * place + member], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("chain", "calls"),
    [
        (CHAIN, 4),
        (replace(CHAIN, t_prime=10, calls=10, start="gaussian"), 10),
        (replace(CHAIN, t_prime=7, calls=3), 3),
        (replace(CHAIN, t_prime=7, calls=1, finish="x0_jump"), 1),
    ],
)
def test_calls_are_counted(volume, preseg, sampler, chain, calls):
    """As many as the chain asks for; and the progress adds up to slices x members x calls."""
    shown, seen = [], []
    network = sampler.denoiser.network
    handle = network.out.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    timed = draw(replace(sampler, chain=chain), volume, preseg, members=range(3), on_batch=shown.append)
    handle.remove()
    assert timed.calls == calls == len(chain.indices)
    assert sum(seen) == sum(shown) == 3 * 3 * calls and timed.seconds > 0
    assert segment(Logit(0.0), volume, on_batch=shown.append).calls == 1


@pytest.mark.parametrize("vote", ["soft", "majority"])
def test_an_ensemble_is_what_numpy_says(vote):
    members = np.random.default_rng(0).random((4, 3, 5, 6), dtype=np.float32)
    found = combine(members, threshold=0.4, vote=vote)
    votes = members.mean(axis=0) >= 0.4 if vote == "soft" else (members >= 0.4).sum(axis=0) > 2
    np.testing.assert_array_equal(found.mask, votes)
    np.testing.assert_allclose(found.mean, members.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, members.astype(float).var(axis=0), atol=1e-7)
