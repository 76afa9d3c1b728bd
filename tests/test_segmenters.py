import math

import pytest
import torch

from pdlib.segmenters import build_segmenter, segmentation_loss

HYPERPARAMETERS = {
    "unet": dict(channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="batch", dropout=0.0),
    "attention_unet": dict(channels=(8, 16, 32), strides=(2, 2), dropout=0.0),
}


@pytest.fixture(params=HYPERPARAMETERS)
def segmenter(request):
    torch.manual_seed(0)
    return build_segmenter(request.param, **HYPERPARAMETERS[request.param])


def bright_square():
    """Two images of noise with a square each that is bright in the first channel, and its mask."""
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, :, 3:8, 4:9] = 1
    mask[1, :, 8:13, 14:19] = 1
    image = torch.randn(2, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    image[:, :1] += 3 * mask
    return image, mask


def test_shape_and_factor(segmenter):
    assert segmenter.factor == 4
    assert segmenter(torch.randn(2, 2, 16, 24)).shape == (2, 1, 16, 24)
    with pytest.raises(ValueError, match="image of 16 x 22 pixels: pad it to a multiple of 4"):
        segmenter(torch.randn(2, 2, 16, 22))


def test_every_weight_learns(segmenter):
    segmenter(torch.randn(2, 2, 16, 24)).square().sum().backward()
    for name, parameter in segmenter.named_parameters():
        assert parameter.grad is not None, name
        # A bias before batch normalisation has no gradient by construction; a weight always has one.
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name, loss_name", [("unet", "ce"), ("attention_unet", "dice_ce")])
def test_learns_two_images_by_heart(name, loss_name):
    torch.manual_seed(0)
    segmenter = build_segmenter(name, **HYPERPARAMETERS[name])
    image, mask = bright_square()
    loss_of = segmentation_loss(loss_name)
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
    both = segmentation_loss("dice_ce")(logit, target).item()
    assert both == pytest.approx(cross_entropy + dice_loss, abs=1e-5)


def test_pooled_dice_forgives_an_empty_slice():
    """Silence on a slice without lesion costs nothing if the batch is pooled, but does image by image."""
    logit = torch.full((2, 1, 1, 2), -12.0)
    logit[0] = 12.0
    target = (logit > 0).float()
    assert segmentation_loss("dice_ce", batch=True)(logit, target).item() == pytest.approx(0.0, abs=1e-3)
    assert segmentation_loss("dice_ce")(logit, target).item() > 0.1


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown segmenter 'u-net'; known: attention_unet, unet"):
        build_segmenter("u-net")
    with pytest.raises(ValueError, match="unknown loss 'mse'; known: ce, dice_ce"):
        segmentation_loss("mse")
