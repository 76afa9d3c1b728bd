"""The Probabilistic U-Net's bound in closed form, and what its draws depend on."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toys import hold_in_mixed_precision, streams_of, toy, updates

from pdlib.kernels import noise
from pdlib.networks.probabilistic_unet import build_probabilistic_unet
from pdlib.training.bank import Batch
from pdlib.training.objectives import probabilistic_objective

PROBABILISTIC = dict(
    in_channels=2,
    out_channels=1,
    channels=(4, 8),
    strides=(2,),
    num_res_units=0,
    norm="batch",
    block_convolutions=1,
    latent=6,
    log_sigma_range=(-5.0, 2.0),
    combination_layers=3,
    code_gain=1.0,
)


@pytest.fixture
def probabilistic():
    torch.manual_seed(0)
    return build_probabilistic_unet(**PROBABILISTIC)


def test_bound_in_closed_form(probabilistic):
    """Bernoulli log-likelihood summed over pixels, and KL of diagonal Gaussians, both means over the batch."""
    batch = toy()
    prior = probabilistic.prior(batch.image)
    posterior = probabilistic.posterior(torch.cat([batch.image, batch.mask], dim=1))
    fresh = torch.randn(4, 6, generator=torch.Generator().manual_seed(100))
    logit, _ = copy.deepcopy(probabilistic)(batch.image, mask=batch.mask, fresh=fresh)
    parts = probabilistic_objective(0.5, 1, 0.0)(probabilistic, batch)

    likelihood = torch.distributions.Bernoulli(logits=logit).log_prob(batch.mask)
    assert parts["reconstruction_loss"].item() == pytest.approx(-likelihood.sum().item() / 4, rel=1e-5)
    (m_p, s_p), (m_q, s_q) = ((g.mean.detach().double(), g.stddev.detach().double()) for g in (prior, posterior))
    kl = (torch.log(s_p / s_q) + (s_q**2 + (m_q - m_p) ** 2) / (2 * s_p**2) - 0.5).sum(dim=1)
    assert kl.min() > 0 and parts["kl_loss"].item() == pytest.approx(0.5 * kl.mean().item(), rel=1e-4)


def test_the_dice_term_is_monais_and_leaves_the_bound_alone(probabilistic):
    """In nats: 3 a pixel of the 16 x 16, for a Dice of 0; the two parts of the bound are the authors'."""
    from monai.losses import DiceLoss

    logits = []
    probabilistic.eval().register_forward_hook(lambda module, args, output: logits.append(output[0]))
    bound, parts = (probabilistic_objective(0.5, 1, nats)(probabilistic, toy()) for nats in (0.0, 3.0))
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits[1], toy().mask)
    assert parts["dice_loss"].item() == pytest.approx(3.0 * 256 * dice.item(), rel=1e-5)
    assert {name: parts[name].item() for name in bound} == {name: one.item() for name, one in bound.items()}


def test_beta_warms_up(probabilistic):
    """A tenth more with each update, then it stays."""
    seen = [
        probabilistic_objective(2.0, 10, 0.0)(probabilistic.eval(), Batch(one.image, one.mask, step, one.generator))[
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


def test_the_code_starts_with_a_share_of_its_weights():
    found = []
    for gain in (1.0, 0.25):
        torch.manual_seed(0)
        found.append(build_probabilistic_unet(**PROBABILISTIC | {"code_gain": gain}).combination[0].weight)
    whole, part = found
    assert torch.equal(part[:, -6:], 0.25 * whole[:, -6:]) and torch.equal(part[:, :-6], whole[:, :-6])


def test_sigma_stays_in_its_range(probabilistic):
    for bias, sigma in ((100.0, np.exp(2.0)), (-100.0, np.exp(-5.0))):
        nn.init.constant_(probabilistic.prior.moments.bias, bias)
        assert probabilistic.prior(toy().image).stddev.detach().numpy() == pytest.approx(sigma)


def test_every_weight_of_the_probabilistic_unet_learns(probabilistic):
    sum(probabilistic_objective(1.0, 1, 0.0)(probabilistic, toy()).values()).backward()
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
    list(updates(network, probabilistic_objective(1.0, 1000, 0.0), batches, learning_rate=5e-3))
    with torch.no_grad():
        drawn = network.eval()(image.expand(200, -1, -1, -1), streams_of(range(200))) > 0
    like = (drawn[:, None] == (answers > 0)).float().mean(dim=(2, 3, 4)) > 0.95  # [200, 2]
    assert like.any(dim=1).float().mean() > 0.6
    assert like.float().mean(dim=0).min() > 0.2


def test_training_runs_in_mixed_precision(probabilistic):
    """Moments and divergence are float32."""
    hold_in_mixed_precision(probabilistic, probabilistic_objective(1.0, 1, 0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, kl = probabilistic(toy().image, mask=toy().mask, fresh=torch.zeros(4, 6))
        assert kl.dtype == torch.float32 == probabilistic.prior(toy().image).mean.dtype
