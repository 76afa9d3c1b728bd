"""Group norm and SiLU on a CPU, with and without gradients, against float64."""

from functools import partial

import pytest
import torch

from pdlib.kernels import ops, reference


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Also where Triton interprets its kernels on the CPU."""
    monkeypatch.setattr(ops, "fused", lambda x: False)


def exact_norm(x, weight, bias, shift, residual, silu=True):
    total = x if residual is None else x + residual
    y = torch.nn.functional.group_norm(total + shift[:, :, None, None], 32, weight, bias, 1e-5)
    return torch.nn.functional.silu(y) if silu else y, total


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("size", [(2, 3), (7, 9), (32, 33)])  # the last is large
@pytest.mark.parametrize("channels", [32, 64])  # of 32 groups: in a group of one channel the shift makes no difference
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_norm_that_learns_nothing_is_near_that_in_float64(dtype, tolerance, channels, size, with_residual):
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(4))
    images = (3 + draw(2, channels, *size) for _ in range(2))
    x, residual = (image.to(dtype).contiguous(memory_format=torch.channels_last) for image in images)
    weight, bias, shift = draw(channels), draw(channels), draw(2, channels).to(dtype)
    arguments = {"weight": weight, "bias": bias, "shift": shift, "residual": residual if with_residual else None}
    how = {"groups": 32, "eps": 1e-5, "silu": True}
    with torch.no_grad():
        y, total = ops.group_norm_silu(x, **arguments, **how)
    doubles = {name: one if one is None else one.double() for name, one in arguments.items()}
    expected, _ = exact_norm(x.double(), **doubles)
    assert torch.equal(total, x + residual if with_residual else x) and y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y - expected).norm() <= tolerance * expected.norm()
    learned, _ = ops.group_norm_silu(x, **arguments, **how)
    assert torch.equal(learned, reference.group_norm_silu(x, **arguments, **how)[0]), "another way for training"
    assert dtype == torch.float32 or not torch.equal(y, learned)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("channels", [64, 96])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_large_image_s_norm_learns_as_float64_does(dtype, tolerance, channels, silu):
    generator = torch.Generator().manual_seed(5)
    draw = partial(torch.randn, generator=generator)
    x, residual, dy, dtotal = (draw(3, channels, 33, 47) + mean for mean in (2, 0, 0, 0))
    arguments = {"x": x, "weight": draw(channels), "bias": draw(channels), "shift": draw(3, channels)}
    arguments |= {"residual": residual}
    images = {"x", "shift", "residual"}
    rounded = {name: value.to(dtype if name in images else torch.float32) for name, value in arguments.items()}

    def gradients(norm, leaves, dtype):
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        y, total = norm(**leaves)
        torch.autograd.backward([y, total], [dy.to(dtype), dtotal.to(dtype)])
        return {name: leaf.grad for name, leaf in leaves.items()}

    def mine(x, weight, bias, shift, residual):
        x = x.contiguous(memory_format=torch.channels_last)
        return ops.group_norm_silu(x, weight, bias, groups=32, eps=1e-5, silu=silu, shift=shift, residual=residual)

    doubles = {name: value.double() for name, value in rounded.items()}
    expected = gradients(partial(exact_norm, silu=silu), doubles, torch.float64)
    for name, got in gradients(mine, rounded, dtype).items():
        assert (got - expected[name]).norm() <= tolerance * expected[name].norm(), name


def test_a_single_image_learns_whatever_its_outer_stride():
    batch = torch.randn(2, 32, 33, 33, generator=torch.Generator().manual_seed(6))
    batch = batch.contiguous(memory_format=torch.channels_last)
    weight, bias, found = torch.ones(32, requires_grad=True), torch.zeros(32), []
    for x in (batch[:1], batch[0][None]):
        y, _ = ops.group_norm_silu(x, weight, bias, groups=32, eps=1e-5, silu=True, shift=None, residual=None)
        found += [y, torch.autograd.grad(y.square().sum(), weight)[0]]
    assert batch[0][None].stride() != batch[:1].stride()
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
