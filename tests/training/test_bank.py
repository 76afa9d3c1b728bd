"""Batches: what they depend on, and how slices are cropped, padded and flipped."""

from dataclasses import replace

import pytest
import torch

from pdlib.training.bank import LesionBank, SliceBank
from pdlib.training.fit import Fit

PLAN = Fit(
    steps=7,
    batch_size=3,
    crop=(6, 5),
    flip_probability=0.5,
    learning_rate=0.05,
    final_learning_rate=0.0,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    ema_decay=0.9,
    validate_every=2,
    keep_validated=True,
    seed=0,
)


def small_bank():
    rng = torch.Generator().manual_seed(1)
    images = [torch.randn(2, 9, 8, generator=rng), torch.randn(2, 6, 7, generator=rng)]
    return SliceBank(images, [(image[:1] > 0.5).float() for image in images])


def test_a_batch_depends_on_seed_and_step_alone():
    def batch(step=3, seed=0):
        drawn = small_bank().draw(step, replace(PLAN, seed=seed))
        return torch.cat([drawn.image.flatten(), drawn.mask.flatten(), torch.rand(2, generator=drawn.generator)])

    torch.manual_seed(5)
    assert torch.equal(batch(), batch())
    assert all(not torch.equal(batch(), other) for other in (batch(step=4), batch(seed=1)))
    assert small_bank().draw(3, PLAN).generator.initial_seed() == 3291213472928352369, "trained weights hang on it"


def numbered(height, width):
    """A slice whose pixels all differ; the mask marks the one at (1, 1)."""
    image = torch.arange(1.0, 1 + height * width).reshape(1, height, width)
    mask = torch.zeros(1, height, width)
    mask[0, 1, 1] = 1
    return torch.cat([image, -image]), mask


def crops(size, crop, flip, batch=200):
    image, mask = numbered(*size)
    plan = replace(PLAN, crop=crop, flip_probability=flip, batch_size=batch)
    drawn = SliceBank([image], [mask]).draw(0, plan)
    images, masks = drawn.image, drawn.mask
    assert images.shape == (batch, 2, *crop) and masks.shape == (batch, 1, *crop)
    assert torch.equal(images[:, 0], -images[:, 1])
    assert torch.equal(masks[:, 0] == 1, images[:, 0] == 1 * size[1] + 2), "mask and image are cut alike"
    return images[:, 0]


def test_every_crop_offset_is_reached_the_last_included():
    corners = {divmod(int(crop[0, 0]) - 1, 4) for crop in crops((5, 4), (3, 2), flip=0.0)}
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_a_slice_as_large_as_the_crop_is_taken_whole():
    assert (crops((5, 4), (5, 4), flip=0.0) == numbered(5, 4)[0][0]).all()


def test_a_smaller_slice_is_padded_with_zeros():
    padded = torch.zeros(5, 6)
    padded[:3, :4] = numbered(3, 4)[0][0]
    assert (crops((3, 4), (5, 6), flip=0.0) == padded).all()


def test_flips_are_left_to_right_and_as_frequent_as_asked():
    whole = numbered(5, 4)[0][0]
    assert (crops((5, 4), (5, 4), flip=1.0) == whole.flip(1)).all()
    flipped = (crops((5, 4), (5, 4), flip=0.25, batch=2000)[:, 0, 0] == 4).float().mean()
    assert float(flipped) == pytest.approx(0.25, abs=0.04)


def test_a_share_of_the_crops_has_no_t1_and_the_rest_is_as_without_it():
    image, mask = numbered(5, 4)
    plan = replace(PLAN, crop=(3, 3), batch_size=2000)
    whole, dropped = (SliceBank([image], [mask], share).draw(0, plan) for share in (0.0, 0.2))
    missing = (dropped.image[:, 1] == 0).all(dim=(1, 2))
    assert float(missing.float().mean()) == pytest.approx(0.2, abs=0.04)
    assert torch.equal(dropped.image[:, 0], whole.image[:, 0]) and torch.equal(dropped.mask, whole.mask)
    assert torch.equal(dropped.image[~missing], whole.image[~missing])


def test_no_slices_is_said():
    with pytest.raises(ValueError, match="no training slices"):
        SliceBank([], [])


def test_rich_batches_hold_a_lesion_and_the_others_are_any():
    """Two of three crops are around a lesion: every one that holds it, each place of it in the crop as often."""
    image, mask = numbered(9, 8)
    bare = torch.zeros_like(mask)
    plan = replace(PLAN, crop=(3, 3), batch_size=300, flip_probability=0.0)
    drawn = LesionBank([image, image], [bare, mask], 0.0, 2 / 3).draw(0, plan)
    held = drawn.mask.amax(dim=(1, 2, 3))
    assert held[:200].min() == 1 and held[200:].mean() < 0.3
    places = drawn.mask[:200].nonzero()[:, 2:]  # the lesion is the pixel (1, 1), so a crop begins at 0 or 1
    assert {tuple(place) for place in places.tolist()} == {(y, x) for y in (0, 1) for x in (0, 1)}


def test_a_rich_bank_needs_a_lesion():
    with pytest.raises(ValueError, match="no training slice with a lesion"):
        LesionBank([torch.zeros(2, 4, 4)], [torch.zeros(1, 4, 4)], 0.0, 0.5)
