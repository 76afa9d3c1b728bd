"""Networks that draw: the Probabilistic U-Net's bound and TDPM's game, against closed forms and other libraries."""

import copy

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from pdlib.inference.volumes import build_diffusion
from pdlib.kernels import noise
from pdlib.networks.generators import build_generator, build_probabilistic_unet
from pdlib.training.bank import Batch
from pdlib.training.objectives import (
    adversarial_objective,
    build_objective,
    probabilistic_objective,
    segmentation_objective,
)

UNET = dict(in_channels=2, out_channels=1, channels=(4, 8), num_res_units=0, norm="batch")
PROBABILISTIC = UNET | dict(
    strides=(2,), block_convolutions=1, latent=6, log_sigma_range=(-5.0, 2.0), combination_layers=3
)
GAN = UNET | dict(strides=(1,), discriminator_channels=4, discriminator_layers=1, discriminator_norm="batch")
SCHEDULE = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
DIFFUSION = build_diffusion(schedule=SCHEDULE, codec="zero_one", prediction="eps")
GAME = adversarial_objective(DIFFUSION, 300)


@pytest.fixture
def probabilistic():
    torch.manual_seed(0)
    return build_probabilistic_unet(**PROBABILISTIC)


@pytest.fixture
def gan():
    torch.manual_seed(0)
    return build_generator(**GAN)


def toy(step=0, count=4):
    """Noise with a bright square, its mask, and a generator that starts the same each time."""
    mask = torch.zeros(count, 1, 16, 16)
    for row in range(count):
        mask[row, :, 2 + row : 7 + row, 4:9] = 1
    image = torch.randn(count, 2, 16, 16, generator=torch.Generator().manual_seed(step)) + 2 * mask
    return Batch(image, mask, step, torch.Generator().manual_seed(100 + step))


def streams_of(members, slices=0):
    members = torch.as_tensor(members)
    return noise.subject_streams(0, "a", torch.full_like(members, slices), members)


def updates(network, objective, batches, learning_rate=1e-3):
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for batch in batches:
        parts = objective(network.train(), batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        yield {name: part.item() for name, part in parts.items()}


def test_bound_in_closed_form(probabilistic):
    """Bernoulli log-likelihood summed over pixels, and KL of diagonal Gaussians, both means over the batch."""
    batch = toy()
    prior = probabilistic.prior(batch.image)
    posterior = probabilistic.posterior(torch.cat([batch.image, batch.mask], dim=1))
    fresh = torch.randn(4, 6, generator=torch.Generator().manual_seed(100))
    logit, _ = copy.deepcopy(probabilistic)(batch.image, mask=batch.mask, fresh=fresh)
    parts = probabilistic_objective(0.5, 1)(probabilistic, batch)

    likelihood = torch.distributions.Bernoulli(logits=logit).log_prob(batch.mask)
    assert parts["reconstruction_loss"].item() == pytest.approx(-likelihood.sum().item() / 4, rel=1e-5)
    (m_p, s_p), (m_q, s_q) = ((g.mean.detach().double(), g.stddev.detach().double()) for g in (prior, posterior))
    kl = (torch.log(s_p / s_q) + (s_q**2 + (m_q - m_p) ** 2) / (2 * s_p**2) - 0.5).sum(dim=1)
    assert kl.min() > 0 and parts["kl_loss"].item() == pytest.approx(0.5 * kl.mean().item(), rel=1e-4)


def test_beta_warms_up(probabilistic):
    """A tenth more with each update, then it stays."""
    seen = [
        probabilistic_objective(2.0, 10)(probabilistic.eval(), Batch(one.image, one.mask, step, one.generator))[
            "kl_loss"
        ]
        for step in (0, 1, 9, 50)
        for one in [toy()]
    ]
    assert np.array([part.item() for part in seen]) / seen[2].item() == pytest.approx([0.1, 0.2, 1, 1])


def test_code_is_drawn_from_the_prior_at_test_and_from_the_posterior_in_training(probabilistic):
    """The combination's last six channels hold the code, the same in every pixel."""
    batch, streams, codes = toy(), streams_of(range(4)), []
    probabilistic.combination.register_forward_hook(lambda module, args, output: codes.append(args[0][:, -6:]))
    fresh = torch.randn(4, 6)
    probabilistic.eval()(batch.image, streams)
    probabilistic(batch.image, mask=batch.mask, fresh=fresh)
    prior = probabilistic.prior(batch.image)
    posterior = probabilistic.posterior(torch.cat([batch.image, batch.mask], dim=1))
    expected = prior.mean + prior.stddev * noise.normal(streams, noise.LATENT, 6)
    torch.testing.assert_close(codes[0], expected[:, :, None, None].expand_as(codes[0]))
    expected = posterior.mean + posterior.stddev * fresh
    torch.testing.assert_close(codes[1], expected[:, :, None, None].expand_as(codes[1]))


def test_sigma_stays_in_its_range(probabilistic):
    for bias, sigma in ((100.0, np.exp(2.0)), (-100.0, np.exp(-5.0))):
        nn.init.constant_(probabilistic.prior.moments.bias, bias)
        assert probabilistic.prior(toy().image).stddev.detach().numpy() == pytest.approx(sigma)


def test_every_weight_of_the_probabilistic_unet_learns(probabilistic):
    sum(probabilistic_objective(1.0, 1)(probabilistic, toy()).values()).backward()
    for name, parameter in probabilistic.named_parameters():
        assert parameter.grad is not None and (parameter.ndim == 1 or parameter.grad.abs().sum() > 0), name


def test_an_ambiguous_image_gets_either_answer():
    """One image, two candidates, one of them the reference: a draw is either, each about as often as it was seen."""
    torch.manual_seed(0)
    network = build_probabilistic_unet(**PROBABILISTIC | {"channels": (8, 16)})
    answers = torch.zeros(2, 1, 8, 8)
    answers[0, :, 2:6, 0:3], answers[1, :, 2:6, 5:8] = 1, 1
    image = answers.reshape(1, 2, 8, 8)
    batches = [
        Batch(image.expand(8, -1, -1, -1), answers[[0, 1] * 4], step, torch.Generator().manual_seed(step))
        for step in range(250)
    ]
    list(updates(network, probabilistic_objective(1.0, 1000), batches, learning_rate=5e-3))
    with torch.no_grad():
        drawn = network.eval()(image.expand(200, -1, -1, -1), streams_of(range(200))) > 0
    like = (drawn[:, None] == (answers > 0)).float().mean(dim=(2, 3, 4)) > 0.95  # [200, 2]
    assert like.any(dim=1).float().mean() > 0.6
    assert like.float().mean(dim=0).min() > 0.2


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


@pytest.mark.parametrize("name", ["probabilistic", "gan"])
def test_training_runs_in_mixed_precision(name, request):
    """Under Fabric convolutions are bfloat16; moments, divergence and losses are float32."""
    network, dtypes = request.getfixturevalue(name), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    objective = probabilistic_objective(1.0, 1) if name == "probabilistic" else GAME
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    parts = objective(fabric.setup(network), toy())
    fabric.backward(sum(parts.values()))
    assert set(dtypes) == {torch.bfloat16}
    assert all(part.dtype == torch.float32 and torch.isfinite(part) for part in parts.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(toy().image, streams_of(range(4))).isfinite().all()
        if name == "probabilistic":
            _, kl = network(toy().image, mask=toy().mask, fresh=torch.zeros(4, 6))
            assert kl.dtype == torch.float32 == network.prior(toy().image).mean.dtype


def test_objectives_by_name(probabilistic):
    assert build_objective("probabilistic", beta=1.0, warmup_steps=1)(probabilistic, toy()).keys() == {
        "reconstruction_loss",
        "kl_loss",
    }
    network = nn.Conv2d(2, 1, 1)
    built = build_objective("segmentation", loss="ce")(network, toy())["train_loss"]
    by_hand = segmentation_objective(nn.functional.binary_cross_entropy_with_logits)(network, toy())["train_loss"]
    assert torch.equal(built, by_hand)
    with pytest.raises(ValueError, match="unknown objective 'elbo'; known: probabilistic, segmentation"):
        build_objective("elbo")
