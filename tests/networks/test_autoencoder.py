"""The auto-encoder of masks: shapes, empty codes, and a real training that brings back masks it has not seen."""

import pytest
import torch
from torch import nn

from pdlib.networks.autoencoder import MaskAutoencoder
from pdlib.training.bank import Batch
from pdlib.training.objectives import reconstruction_objective


def build(factor, classes=1, latent_channels=4):
    torch.manual_seed(0)
    return MaskAutoencoder(classes=classes, factor=factor, latent_channels=latent_channels, channels=[16, 16])


def blobs(count, seed):
    """Masks [N, 1, 24, 32] with a disc and an isolated pixel each."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    masks = []
    for _ in range(count):
        (top, left), radius = torch.randint(5, 18, (2,), generator=rng), 1 + 3 * torch.rand(1, generator=rng)
        disc = (y - top) ** 2 + (x - left) ** 2 < radius**2
        disc[int(torch.randint(24, (1,), generator=rng)), int(torch.randint(28, 32, (1,), generator=rng))] = True
        masks.append(disc.float())
    return torch.stack(masks)[:, None]


@pytest.mark.parametrize(("factor", "classes"), [(1, 1), (2, 2), (4, 1)])
def test_a_code_has_a_coarser_grid_and_is_zero_where_the_mask_is_empty(factor, classes):
    network, mask = build(factor, classes), torch.zeros(2, classes, 48, 64)
    mask[:, :, :4, :4] = 1
    code = network.encoder(mask)
    assert code.shape == (2, 4, 48 // factor, 64 // factor) and network(mask).shape == mask.shape
    seen = 4 // factor + 2  # two 3x3 convolutions
    assert code[:, :, :seen, :seen].abs().max() > 0
    assert not code[:, :, seen:].any() and not code[:, :, :, seen:].any()


def test_a_short_training_brings_back_masks_that_it_has_not_seen():
    network, objective = build(2), reconstruction_objective(5.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(250):
        losses = objective(network, Batch(torch.zeros(0), blobs(8, step), step, torch.Generator()))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    mask = blobs(20, 10_000)
    with torch.no_grad():
        found = (network(mask) > 0).float()
    assert 2 * (found * mask).sum() / (found + mask).sum() > 0.95
    isolated = mask[..., 28:].bool()
    assert found[..., 28:][isolated].mean() > 0.75, "single pixels too"


def test_the_loss_is_weighted_cross_entropy_and_the_batch_s_soft_dice():
    from monai.losses import DiceLoss

    rng = torch.Generator().manual_seed(0)
    logit, mask = torch.randn(3, 1, 8, 8, generator=rng), (torch.rand(3, 1, 8, 8, generator=rng) < 0.2).float()
    losses = reconstruction_objective(5.0)(lambda x: logit, Batch(logit, mask, 0, rng))
    weight = torch.where(mask == 1, 5.0, 1.0)
    expected = nn.functional.binary_cross_entropy_with_logits(logit, mask, weight=weight)
    assert losses["cross_entropy_loss"] == pytest.approx(float(expected), rel=1e-5)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logit, mask)
    assert losses["dice_loss"] == pytest.approx(float(dice), rel=1e-5)
