"""Pre-segmentations to train on: how often each kind comes, and what corruption does to lesions."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from pdlib.training.corruption import Mixture, corrupted, mixed_presegs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def squares(*corners, size=3, shape=(24, 24)):
    mask = np.zeros(shape, dtype=bool)
    for y, x in corners:
        mask[y : y + size, x : x + size] = True
    return mask


def test_each_kind_comes_as_often_as_its_share_says_and_the_same_for_the_same_generator():
    reference = torch.from_numpy(squares((2, 2), (12, 12))).float().expand(2000, 1, -1, -1)
    given = torch.from_numpy(squares((8, 3))).float().expand(2000, 1, -1, -1)
    mixture = Mixture(corrupted=0.3, empty=0.1, dropped=0.0, added=0.0)
    found = mixed_presegs(reference, given, mixture, generator())
    empty, kept = ~found.any(dim=(1, 2, 3)), (found == given).all(dim=(1, 2, 3))
    others = found[~empty & ~kept, 0].numpy() > 0
    assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert len(others) / 2000 == pytest.approx(0.3, abs=0.03)
    sizes = Counter(
        others.sum(axis=(1, 2)).tolist()
    )  # two squares of 9 pixels: eroded to 1, as they are, dilated to 21
    assert set(sizes) == {2, 18, 42} and min(sizes.values()) > len(others) / 4
    assert torch.equal(found, mixed_presegs(reference, given, mixture, generator()))
    assert not torch.equal(found, mixed_presegs(reference, given, mixture, generator(1)))
    assert torch.equal(given, torch.from_numpy(squares((8, 3))).float().expand(2000, 1, -1, -1)), "left as they were"


def test_whole_lesions_are_dropped_and_added_each_by_its_own_chance():
    own, other = squares((1, 1), (1, 9), (1, 17)), squares((17, 1), (17, 9))
    mixture, rng, lost, gained = Mixture(1.0, 0.0, dropped=0.3, added=0.2), np.random.default_rng(0), 0, 0
    for _ in range(1000):
        found = corrupted(own, other, mixture, rng)
        labels, count = ndimage.label(found)
        assert {int((labels == i).sum()) for i in range(1, count + 1)} <= {1, 9, 21}, "lesions are whole"
        lost += 3 - ndimage.label(found[:9])[1]
        gained += ndimage.label(found[14:])[1]
    assert lost / 3000 == pytest.approx(0.3, abs=0.03) and gained / 2000 == pytest.approx(0.2, abs=0.03)


def test_lesions_that_meet_at_a_corner_are_one():
    mask, mixture = squares((2, 2), (5, 5)), Mixture(1.0, 0.0, 0.5, 0.0)
    found = [corrupted(mask, np.zeros_like(mask), mixture, np.random.default_rng(seed)) for seed in range(40)]
    assert all(one[2:5, 2:5].any() == one[5:8, 5:8].any() for one in found) and len({one.any() for one in found}) == 2


def test_without_shares_nothing_is_changed_and_alone_in_a_batch_an_image_has_its_own_lesions():
    reference, given = (torch.from_numpy(squares(corner)).float()[None, None] for corner in ((2, 2), (8, 3)))
    assert torch.equal(mixed_presegs(reference, given, Mixture(0.0, 0.0, 0.5, 0.5), generator()), given)
    assert not mixed_presegs(reference, given, Mixture(1.0, 0.0, 1.0, 0.0), generator()).any()
    assert mixed_presegs(reference, given, Mixture(1.0, 0.0, 1.0, 1.0), generator()).any()
