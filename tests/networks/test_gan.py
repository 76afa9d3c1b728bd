"""TDPM's game of generator and discriminator against another library, and what a draw depends on."""

import copy

import numpy as np
import pytest
import torch
from toys import hold_in_mixed_precision, streams_of, toy, updates

from pdlib.diffusion.sampler import build_diffusion
from pdlib.kernels import noise
from pdlib.networks.gan import build_generator
from pdlib.training.bank import Batch
from pdlib.training.objectives import adversarial_objective, marginal

SCHEDULE = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
DIFFUSION = build_diffusion(schedule=SCHEDULE, codec="zero_one", prediction="eps")
SIGNAL, DEVIATION = 0.78691051**0.5, (1 - 0.78691051) ** 0.5  # of the cosine schedule at index 299
GAN = dict(
    in_channels=2,
    out_channels=1,
    channels=(4, 8),
    strides=(2,),
    num_res_units=0,
    norm="batch",
    noise_scales=(1, 4),
    discriminator_channels=(4, 8),
    discriminator_strides=(2,),
    **marginal(DIFFUSION, 299),
)
GAME = adversarial_objective(DIFFUSION, 300, 10)


@pytest.fixture
def gan():
    torch.manual_seed(0)
    return build_generator(**GAN)


def test_gradients_of_the_game_reach_one_player_each(gan):
    for part, player in (("g_loss", gan.generator), ("d_loss", gan.discriminator)):
        gan.zero_grad()
        GAME(gan, toy())[part].backward()
        touched = {id(p) for p in gan.parameters() if p.grad is not None}
        assert touched == {id(p) for p in player.parameters()}
        assert all(p.grad.abs().sum() > 0 for p in player.parameters() if p.ndim > 1)


def test_the_marginal_is_that_of_the_schedule_and_the_codec():
    """At index 299 of the cosine schedule abar is 0.78691051."""
    assert marginal(DIFFUSION, 299) == pytest.approx({"background": 0.0, "lesion": SIGNAL, "deviation": DEVIATION})
    other = build_diffusion(schedule=SCHEDULE, codec="minus_one_one", prediction="eps")
    assert marginal(other, 299) == pytest.approx({"background": -SIGNAL, "lesion": SIGNAL, "deviation": DEVIATION})


@pytest.mark.parametrize(("step", "share"), [(0, 0.5), (5, 0.25), (10, 0.0), (500, 0.0)])
def test_losses_of_the_game_are_cross_entropies(gan, step, share):
    """The discriminator's of real against drawn and mismatched; the generator's as if a draw were real."""
    batch, seen = toy(), []
    gan.register_forward_hook(lambda module, args, output: seen.append(output))
    parts = GAME(gan, Batch(batch.image, batch.mask, step, batch.generator))

    def loss(score, target):
        return torch.nn.functional.binary_cross_entropy_with_logits(score, torch.full_like(score, target)).item()

    (scores,) = seen
    assert parts["g_loss"].item() == pytest.approx(loss(scores.fooled, 1.0))
    refused = (1 - share) * loss(scores.drawn, 0.0) + share * loss(scores.mismatched, 0.0)
    assert parts["d_loss"].item() == pytest.approx(loss(scores.real, 1.0) + refused)


def test_the_discriminator_sees_states_at_t_prime_with_the_same_noise(gan):
    """Real ones are references diffused to index 299; a mismatched one is the real one of the image before it."""
    seen = []
    gan.discriminator.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    mask = torch.ones(3, 1, 128, 128)
    mask[1] = 0
    image = torch.randn(3, 2, 128, 128)
    GAME(gan, Batch(image, mask, 0, torch.Generator().manual_seed(0)))
    drawn, real, mismatched = seen[-1].chunk(3)
    assert real[:, 2].mean(dim=(1, 2)).tolist() == pytest.approx([SIGNAL, 0.0, SIGNAL], abs=0.012)
    assert real[:, 2].std(dim=(1, 2)).tolist() == pytest.approx([DEVIATION] * 3, rel=0.02)
    assert all(torch.equal(one[:, :2], image) for one in (drawn, real, mismatched))
    assert torch.equal(mismatched[:, 2], real[:, 2].roll(1, 0))
    missed = (real - drawn)[:, 2] / SIGNAL  # mask minus soft mask: the noise is gone
    assert missed[[0, 2]].min() >= -1e-6 and missed[1].max() <= 1e-6 and missed.abs().max() <= 1


def test_nothing_pulls_the_generator_to_the_reference(gan):
    """Other references: another loss of the discriminator, the same loss and gradient of the generator."""
    batch, found = toy(), []
    for mask in (batch.mask, batch.mask.flip(0), 1 - batch.mask):
        one = copy.deepcopy(gan)
        parts = GAME(one, Batch(batch.image, mask, 0, torch.Generator().manual_seed(5)))
        parts["g_loss"].backward()
        found.append((parts["d_loss"].item(), parts["g_loss"].item(), one.generator.model[0].conv.weight.grad))
    assert len({d_loss for d_loss, _, _ in found}) == 3
    assert len({g_loss for _, g_loss, _ in found}) == 1
    assert all(torch.equal(gradient, found[0][2]) for _, _, gradient in found)


def test_thirty_updates_of_the_game_stay_finite_and_move_both(gan):
    before = copy.deepcopy(gan.state_dict())
    history = list(updates(gan, GAME, [toy(step) for step in range(30)]))
    assert all(np.isfinite(value) for parts in history for value in parts.values())
    assert all(not torch.equal(before[name], p) for name, p in gan.named_parameters() if p.ndim > 1)


def test_a_draw_of_the_generator_is_its_streams_alone(gan):
    gan.eval()
    before = copy.deepcopy(gan.state_dict())
    image, streams = toy(count=1).image.expand(4, -1, -1, -1), streams_of(range(4))
    drawn = gan(image, streams)
    assert drawn.shape == (4, 1, 16, 16)
    order = torch.tensor([2, 0])
    torch.testing.assert_close(gan(image[order], streams[order]), drawn[order], atol=1e-5, rtol=0)
    changed = gan(image, streams_of(range(4), slices=1)) != drawn
    assert changed.float().mean() > 0.99, "noise reaches every pixel"
    assert all(torch.equal(value, before[key]) for key, value in gan.state_dict().items())
    with pytest.raises(ValueError, match="draws at random: pass it streams"):
        gan(image)


def test_a_draw_is_a_soft_mask_and_the_noise_of_the_marginal(gan):
    image, streams = toy().image, streams_of(range(4))
    with torch.no_grad():
        drawn = gan.eval()(image, streams)
        mask = gan.draw_mask(image, noise.normal(streams, noise.LATENT, 2, 16, 16))
    assert 0 < mask.min() and mask.max() < 1
    expected = SIGNAL * mask + DEVIATION * noise.normal(streams, noise.START, 1, 16, 16)
    torch.testing.assert_close(drawn, expected)


def test_generator_pads_and_takes_any_channels():
    """A coarse map repeats every fourth of its numbers."""
    torch.manual_seed(0)
    about = dict(in_channels=3, out_channels=2, channels=(4, 8, 8), strides=(1, 4), discriminator_strides=(2,))
    gan = build_generator(**GAN | about).eval()
    image, streams = torch.randn(2, 3, 13, 18), streams_of([0, 1])
    seen = []
    gan.generator.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    drawn = gan(image, streams)
    (given,) = seen
    assert given.shape == (2, 5, 16, 20) and given[..., 13:, :].abs().max() == 0 == given[..., 18:].abs().max()
    fresh = noise.normal(streams, noise.LATENT, 2, 13, 18)
    assert torch.equal(given[:, 3, :13, :18], fresh[:, 0]) and drawn.shape == (2, 2, 13, 18)
    y, x = torch.arange(13) // 4 * 4, torch.arange(18) // 4 * 4
    assert torch.equal(given[:, 4, :13, :18], fresh[:, 1][:, y][:, :, x])


def test_weights_rebuild_the_generator(gan):
    torch.manual_seed(1)
    other = build_generator(**GAN)
    other.load_state_dict(gan.state_dict())
    image, streams = toy().image, streams_of(range(4))
    assert torch.equal(gan.eval()(image, streams), other.eval()(image, streams))


def test_training_runs_in_mixed_precision(gan):
    hold_in_mixed_precision(gan, GAME)
