"""The door to the kernels: what it refuses, which implementation it chooses, and ensembles against numpy."""

import numpy as np
import pytest
import torch

from pdlib.kernels import noise, ops


def streams(rows):
    return noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def group_norm(x, **changed):
    how = {"groups": 1, "eps": 1e-5, "silu": True, "shift": None, "residual": None}
    return ops.group_norm_silu(x, torch.ones(1), torch.zeros(1), **(how | changed))


def test_bad_arguments_are_named():
    x, weights = torch.zeros(2, 1, 4, 4), torch.ones(2)
    table = ops.StepTable(torch.zeros(1, dtype=torch.int32), torch.zeros(1, 7), (0.0, 1.0), False)
    rows = torch.zeros(2, dtype=torch.int32)
    for call, words in (
        (lambda: ops.q_sample(x, weights, x[:1]), "shapes differ"),
        (lambda: ops.q_sample(x, torch.ones(3, 2), x), r"weights must be \[2\] or \[2, 2\]"),
        (lambda: ops.q_sample_start(x, weights, streams(3)), "streams: 3 for 2 rows"),
        (lambda: ops.q_sample_start(x, weights[:1], streams(2)), "weights must be"),
        (lambda: ops.reverse_step_(x, x[..., :2], table, rows, streams(2)), "shapes differ"),
        (lambda: ops.reverse_step_(x, x, table, rows, streams(3)), "streams: 3 for 2 rows"),
        (lambda: ops.reverse_step_(x, x, table, rows[:1], streams(2)), "rows: 1 for 2 rows"),
        (lambda: group_norm(x, groups=3), "do not divide into 3"),
        (lambda: group_norm(x, residual=x[:1]), "residual has shape"),
        (lambda: group_norm(x, shift=x[:, :, 0]), "shift has shape"),
        (lambda: ops.ensemble_stats(x, 0.5, "loud"), "unknown vote"),
        (lambda: ops.ensemble_stats(x[:0], 0.5, "soft"), "at least one member"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_kernels_are_chosen_on_gpus_that_they_are_compiled_for(monkeypatch, capability, chosen):
    class OnGpu:
        is_cuda, device = True, torch.device("cuda")

    monkeypatch.setattr(ops, "_TRITON", True)
    monkeypatch.setattr(ops, "_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ops._supported.cache_clear()
    assert ops.fused(OnGpu()) == chosen and not ops.fused(torch.zeros(1))
    monkeypatch.setattr(ops, "_TRITON", False)
    assert not ops.fused(OnGpu())
    ops._supported.cache_clear()


def test_ensemble_stats_against_numpy():
    members = torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(0))
    mean, variance, mask = ops.ensemble_stats(members, 0.5, "soft")
    assert np.allclose(mean, members.numpy().mean(0)) and np.allclose(variance, members.numpy().var(0), atol=1e-6)
    assert np.array_equal(mask, members.numpy().mean(0) >= 0.5)
    majority = ops.ensemble_stats(members, 0.5, "majority")[2]
    assert np.array_equal(majority, (members.numpy() >= 0.5).sum(0) >= 3)
    assert not np.array_equal(majority, mask)
