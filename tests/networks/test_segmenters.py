import copy
import math

import pytest
import torch
from torch import nn

from pdlib.kernels import noise
from pdlib.networks.segmenters import StreamDropout, build_segmenter, segmentation_loss

UNET = dict(channels=(4, 8, 16), strides=(2, 2), num_res_units=0, norm="batch")
HYPERPARAMETERS = {
    "unet": dict(channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="batch", dropout=0.0),
    "attention_unet": dict(channels=(8, 16, 32), strides=(2, 2), dropout=0.0),
    "unet_plus_plus": dict(channels=(4, 4, 8, 8, 16, 4), norm="batch", dropout=0.0),
    "bayesian_unet": UNET | dict(dropout=0.5, dropout_from=1),
    "probabilistic_unet": UNET
    | dict(block_convolutions=1, latent=6, log_sigma_range=(-5.0, 2.0), combination_layers=3, code_gain=1.0),
}
STOCHASTIC = ["bayesian_unet", "probabilistic_unet"]


def build(name, in_channels=2, out_channels=1):
    torch.manual_seed(0)
    return build_segmenter(name, in_channels=in_channels, out_channels=out_channels, **HYPERPARAMETERS[name])


def streams_of(members, subject="a", slices=0):
    members = torch.as_tensor(members)
    return noise.subject_streams(0, subject, torch.full_like(members, slices), members)


def random_image(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bright_square():
    """Two images of noise with a square each that is bright in the first channel, and its mask."""
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, :, 3:8, 4:9] = 1
    mask[1, :, 8:13, 14:19] = 1
    image = torch.randn(2, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    image[:, :1] += 3 * mask
    return image, mask


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_any_channels_and_sizes_give_one_tensor_of_logits(name):
    segmenter = build(name, in_channels=3, out_channels=2).eval()
    assert segmenter.stochastic == (name in STOCHASTIC)
    assert segmenter(random_image(2, 3, 16, 24), streams_of([0, 1])).shape == (2, 2, 16, 24)
    assert segmenter(random_image(1, 3, 17, 23), streams_of([0])).shape == (1, 2, 17, 23)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_padding_is_that_with_zeros_to_the_factor(name):
    segmenter = build(name).eval()
    image = random_image(2, 2, 18, 21)
    height, width = (math.ceil(side / segmenter.factor) * segmenter.factor for side in (18, 21))
    whole = torch.zeros(2, 2, height, width)
    whole[:, :, :18, :21] = image
    streams = streams_of([0, 1])
    assert torch.equal(segmenter(image, streams), segmenter(whole, streams)[:, :, :18, :21])


@pytest.mark.parametrize("name", ["unet", "attention_unet", "unet_plus_plus", "bayesian_unet"])
def test_every_weight_learns(name):
    segmenter = build(name)
    segmenter(torch.randn(4, 2, 16, 32)).square().sum().backward()
    for key, parameter in segmenter.named_parameters():
        assert parameter.grad is not None, key
        # A bias before batch normalisation has no gradient by construction; a weight always has one.
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_draw_is_its_streams_alone(name):
    """Neither the batch around it nor the global generator changes it, and a draw changes nothing in the network."""
    segmenter = build(name).eval()
    before = copy.deepcopy(segmenter.state_dict())
    image, streams = random_image(1, 2, 16, 24).expand(6, -1, -1, -1), streams_of(range(6))
    drawn = segmenter(image, streams)
    torch.manual_seed(99)
    assert torch.equal(segmenter(image, streams), drawn)
    order = torch.tensor([3, 0, 5])
    torch.testing.assert_close(segmenter(image[order], streams[order]), drawn[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(segmenter(image[4:5], streams[4:5]), drawn[4:5], atol=1e-5, rtol=0)
    for other in (streams_of(range(1, 7)), streams_of(range(6), subject="b"), streams_of(range(6), slices=1)):
        changed = (segmenter(image, other) - drawn).abs().amax(dim=(1, 2, 3))
        assert (changed > 1e-4).all()
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    with pytest.raises(ValueError, match="draws at random: pass it streams"):
        segmenter(image)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_mean_of_members_settles_as_one_over_root_k(name):
    """Sixteen members instead of four halve the standard error of their mean: members are independent."""
    segmenter, members = build(name).eval(), 2048
    with torch.no_grad():
        image = random_image(1, 2, 8, 8).expand(members, -1, -1, -1)
        probability = torch.sigmoid(segmenter(image, streams_of(range(members)))).flatten(1)
    error = {k: probability.reshape(-1, k, 64).mean(dim=1).var(dim=0).mean().sqrt() for k in (4, 16)}
    assert float(error[4] / error[16]) == pytest.approx(2.0, abs=0.2)


def test_dropout_by_streams_drops_as_often_as_asked_and_keeps_the_mean():
    one, other = StreamDropout(0.3, 0).eval(), StreamDropout(0.3, 1).eval()
    one.streams = other.streams = streams_of(range(8))
    x = torch.ones(8, 4, 32, 32)
    kept = one(x)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    both = (kept == 0) & (other(x) == 0)
    assert both.float().mean().item() == pytest.approx(0.09, abs=0.01), "layers drop independently"
    assert (one.train()(x) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("dropout_from", "layers", "alike"), [(0, 4, 1), (1, 3, 2), (2, 1, 3)])
def test_only_the_deep_levels_drop(dropout_from, layers, alike):
    """Of five convolutions (two down, the bottom, two up) the first ones see no dropout: two passes agree in them."""
    hyperparameters = HYPERPARAMETERS["bayesian_unet"] | {"dropout_from": dropout_from}
    segmenter = build_segmenter("bayesian_unet", in_channels=2, out_channels=1, **hyperparameters).eval()
    agree = []
    for module in segmenter.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda module, args, output: agree.append(torch.equal(output[0], output[1])))
    segmenter(random_image(1, 2, 16, 16).expand(2, -1, -1, -1), streams_of([0, 1]))
    assert agree == [True] * alike + [False] * (5 - alike)
    assert sum(isinstance(module, StreamDropout) for module in segmenter.modules()) == layers


def test_a_level_that_is_not_there_cannot_drop():
    with pytest.raises(ValueError, match="dropout_from 3: the network has no dropout in a level so deep"):
        build_segmenter(
            "bayesian_unet", in_channels=2, out_channels=1, **HYPERPARAMETERS["bayesian_unet"] | {"dropout_from": 3}
        )


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_weights_rebuild_the_network(name):
    first = build(name).eval()
    torch.manual_seed(1)
    second = build_segmenter(name, in_channels=2, out_channels=1, **HYPERPARAMETERS[name]).eval()
    second.load_state_dict(first.state_dict())
    image, streams = random_image(2, 2, 16, 16), streams_of([0, 1])
    assert torch.equal(first(image, streams), second(image, streams))


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("unet", {"name": "ce"}),
        ("attention_unet", {"name": "dice_ce", "lambda_ce": 1.0}),
        ("unet_plus_plus", {"name": "dice_ce", "lambda_ce": 0.1}),
    ],
)
def test_learns_two_images_by_heart(name, loss):
    segmenter = build(name)
    image, mask = bright_square()
    loss_of = segmentation_loss(**loss)
    optimiser = torch.optim.Adam(segmenter.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss_of(segmenter(image), mask).backward()
        optimiser.step()
    prediction = segmenter(image) > 0
    dice = 2 * (prediction * mask).sum() / (prediction.sum() + mask.sum())
    assert dice > 0.95


def test_losses_in_closed_form():
    """Two pixels, logits 0 and log 3 (probabilities 1/2 and 3/4), of which the second is a lesion."""
    logit = torch.tensor([0.0, math.log(3)]).reshape(1, 1, 1, 2)
    target = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    cross_entropy = (math.log(2) + math.log(4 / 3)) / 2
    dice_loss = 1 - 2 * (3 / 4) / (1 / 2 + 3 / 4 + 1)  # 1/3
    assert segmentation_loss("ce")(logit, target).item() == pytest.approx(cross_entropy, abs=1e-6)
    both = segmentation_loss("dice_ce", lambda_ce=0.3)(logit, target).item()
    assert both == pytest.approx(0.3 * cross_entropy + dice_loss, abs=1e-5)


def test_pooled_dice_forgives_an_empty_slice():
    """Silence on a slice without lesion costs nothing if the batch is pooled, but does image by image."""
    logit = torch.full((2, 1, 1, 2), -12.0)
    logit[0] = 12.0
    target = (logit > 0).float()
    assert segmentation_loss("dice_ce", lambda_ce=1.0, batch=True)(logit, target).item() == pytest.approx(0.0, abs=1e-3)
    assert segmentation_loss("dice_ce", lambda_ce=1.0)(logit, target).item() > 0.1


def test_classes_may_overlap():
    """A pixel of two classes, both certain: no loss, with either."""
    logit = torch.full((1, 2, 1, 2), 20.0)
    for name, options in (("ce", {}), ("dice_ce", {"lambda_ce": 1.0})):
        assert segmentation_loss(name, **options)(logit, torch.ones(1, 2, 1, 2)).item() == pytest.approx(0.0, abs=1e-4)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown segmenter 'u-net'; known: attention_unet, bayesian_unet"):
        build_segmenter("u-net")
    with pytest.raises(ValueError, match="unknown loss 'mse'; known: ce, dice_ce"):
        segmentation_loss("mse")
