"""How the processes of a training share an update. What they come to together: tests/slow/test_fabric.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_fit import PLAN, small_bank

from pdlib.training.processes import share

FIT = replace(PLAN, batch_size=6)


def of(rank, processes, step=3):
    return share(small_bank(), step, FIT, SimpleNamespace(global_rank=rank, world_size=processes))


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_are_the_batch_of_one_process(processes):
    whole, shares = of(0, 1), [of(rank, processes) for rank in range(processes)]
    together = torch.stack([one.image for one in shares], dim=1).flatten(0, 1)
    assert torch.equal(together, whole.image)
    assert torch.equal(torch.stack([one.mask for one in shares], dim=1).flatten(0, 1), whole.mask)


def test_each_process_draws_noise_of_its_own():
    drawn = [torch.randn(4, generator=of(rank, 2, step).generator) for rank in range(2) for step in range(2)]
    assert len({tuple(one.tolist()) for one in drawn}) == 4
    assert torch.equal(torch.randn(4, generator=of(0, 1, 0).generator), drawn[0])


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ValueError, match="batch_size 6: 4 processes cannot share it equally"):
        of(0, 4)
