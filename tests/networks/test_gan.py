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
from pdlib.training.objectives import adversarial_objective

GAN = dict(
    in_channels=2,
    out_channels=1,
    channels=(4, 8),
    strides=(1,),
    num_res_units=0,
    norm="batch",
    discriminator_channels=4,
    discriminator_layers=1,
    discriminator_norm="batch",
)
SCHEDULE = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
GAME = adversarial_objective(build_diffusion(schedule=SCHEDULE, codec="zero_one", prediction="eps"), 300)


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


def test_losses_of_the_game_are_monais_least_squares(gan):
    from monai.losses import PatchAdversarialLoss

    loss, seen = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True), []
    gan.register_forward_hook(lambda module, args, output: seen.extend(output))
    parts = GAME(gan, toy())
    fooled, fake, true = seen
    assert parts["g_loss"].item() == pytest.approx(loss(fooled, True, False).item())
    d_loss = (loss(fake, False, True).item() + loss(true, True, True).item()) / 2
    assert parts["d_loss"].item() == pytest.approx(d_loss)


def test_real_states_are_references_diffused_to_t_prime():
    """At index 299 of the cosine schedule abar is 0.78691051."""
    seen = {}

    def network(image, *, real, fresh):
        seen.update(real=real, fresh=fresh)
        return real, real, real

    mask = torch.ones(2, 1, 128, 128)
    mask[1] = 0
    GAME(network, Batch(torch.zeros(2, 3, 128, 128), mask, 0, torch.Generator().manual_seed(0)))
    assert seen["real"].mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.78691051**0.5, 0.0], abs=0.012)
    assert seen["real"].std(dim=(1, 2, 3)).tolist() == pytest.approx([(1 - 0.78691051) ** 0.5] * 2, rel=0.02)
    assert seen["fresh"].shape == mask.shape and seen["fresh"].std().item() == pytest.approx(1.0, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([seen["fresh"].flatten(), seen["real"].flatten()]))[0, 1]) < 0.02


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
    assert history[-1]["d_loss"] < history[0]["d_loss"]
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


def test_generator_pads_and_takes_any_channels():
    torch.manual_seed(0)
    gan = build_generator(**GAN | dict(in_channels=3, out_channels=2, channels=(4, 8, 8), strides=(1, 4))).eval()
    image, streams = torch.randn(2, 3, 13, 18), streams_of([0, 1])
    seen = []
    gan.generator.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    drawn = gan(image, streams)
    given, output = seen[0]
    assert given.shape == (2, 4, 16, 20) and given[..., 13:, :].abs().max() == 0 == given[..., 18:].abs().max()
    assert torch.equal(given[:, 3:, :13, :18], noise.normal(streams, noise.LATENT, 1, 13, 18))
    assert torch.equal(drawn, output[..., :13, :18]) and drawn.shape == (2, 2, 13, 18)


def test_weights_rebuild_the_generator(gan):
    torch.manual_seed(1)
    other = build_generator(**GAN)
    other.load_state_dict(gan.state_dict())
    image, streams = toy().image, streams_of(range(4))
    assert torch.equal(gan.eval()(image, streams), other.eval()(image, streams))


def test_training_runs_in_mixed_precision(gan):
    hold_in_mixed_precision(gan, GAME)
