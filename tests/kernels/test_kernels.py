"""Every kernel against its reference under Triton's interpreter (or on the GPU, where there is one)."""

import copy
import math
import os
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton", reason="no triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels need a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from pdlib.diffusion import formulas  # noqa: E402
from pdlib.diffusion.codec import build_codec  # noqa: E402
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler  # noqa: E402
from pdlib.diffusion.schedule import build_schedule  # noqa: E402
from pdlib.kernels import ensemble_stats, group_norm_silu, noise, ops, p_sample, q_sample, reference  # noqa: E402
from pdlib.networks.prepared import PreparedDenoiser  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the references are held to float32
SCHEDULE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)
SHAPES = [(1, 1), (33, 47), (63, 65), (128, 192)]
TOLERANCE = {torch.float32: {"atol": 2e-5, "rtol": 2e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 1.6e-2}}


def rows(count, seed=0):
    slices, members = torch.arange(count) % 3, torch.arange(count) // 3
    return noise.subject_streams(seed, "Utrecht/0", slices, members).to(DEVICE)


def guarded(*shape, dtype=torch.float32, memory_format=torch.contiguous_format, **_):
    """A tensor pre-filled with NaN (whole numbers: -1) inside a longer one of sevens, and whether these still stand."""
    count, band = math.prod(shape), 64
    whole = torch.full((count + 2 * band,), 7, dtype=dtype, device=DEVICE)
    inner = whole[band : band + count].fill_(float("nan") if dtype.is_floating_point else -1)
    if memory_format == torch.channels_last:
        n, c, h, w = shape
        inner = inner.view(n, h, w, c).permute(0, 3, 1, 2)
    else:
        inner = inner.view(shape)
    return inner, lambda: bool((whole[:band] == 7).all() and (whole[band + count :] == 7).all())


@pytest.fixture
def guards(monkeypatch):
    """Guards whatever a kernel's wrapper allocates."""
    checks = []

    def empty(*shape, **options):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        inner, intact = guarded(*shape, **options)
        checks.append(intact)
        return inner

    def empty_like(x, memory_format=torch.preserve_format):
        return empty(*x.shape, dtype=x.dtype, memory_format=memory_format)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        patch.setattr(torch, "empty_like", empty_like)
        yield
    assert checks and all(intact() for intact in checks)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [noise.START, 0, 999])
def test_q_sample_writes_the_diffused_mask_into_the_last_channels(dtype, shape, step):
    n, classes = 3, 2
    x_start = (torch.rand(n, classes, *shape) < 0.3).float().to(DEVICE)
    buffer, intact = guarded(n, 2 + classes, *shape, dtype=dtype, memory_format=torch.channels_last)
    buffer[:, :2] = 3.0
    abar = SCHEDULE.abar(torch.tensor([0, 299, 999]))
    weights = torch.stack([abar.sqrt(), (1 - abar).sqrt()], dim=1).float().to(DEVICE)
    q_sample.q_sample_into(buffer[:, 2:], x_start, weights, rows(n), step)
    expected = reference.q_sample(x_start, weights, noise.normal(rows(n), step, classes, *shape))
    torch.testing.assert_close(buffer[:, 2:].float(), expected, **TOLERANCE[dtype])
    assert (buffer[:, :2] == 3).all() and intact()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("prediction", "rule", "eta", "learned", "classes"),
    [
        ("eps", "ddpm", 1.0, False, 1),
        ("eps", "ddpm", 1.0, True, 2),
        ("v", "ddim", 0.0, False, 2),
        ("x_start", "ddim", 1.0, False, 1),
    ],
)
def test_p_sample_steps_in_place(dtype, shape, prediction, rule, eta, learned, classes):
    n, clamp = 3, (0.0, 1.0)
    t, t_prev = torch.tensor([999, 300, 0]), torch.tensor([998, 200, -1])
    weights = formulas.step_weights(SCHEDULE, t, t_prev, prediction, rule, eta).to(DEVICE, torch.float32)
    steps = t.to(DEVICE, torch.int32)
    output = torch.randn(n, classes * (1 + learned), *shape).to(DEVICE, dtype, memory_format=torch.channels_last)
    buffer, intact = guarded(n, 2 + classes, *shape, dtype=dtype, memory_format=torch.channels_last)
    buffer[:, :2] = 3.0
    buffer[:, 2:] = torch.randn(n, classes, *shape).to(DEVICE, dtype)
    predicted, *model_var_values = output.float().split(classes, dim=1)
    for which in ([0, 1, 2], [2, 2, 0]):
        which = torch.tensor(which, dtype=torch.int32, device=DEVICE)
        fresh = noise.normal(rows(n), steps[which], classes, *shape)
        x_t = buffer[:, 2:].float()
        expected = reference.reverse_step(x_t, predicted, weights[which], fresh, clamp, *model_var_values)
        p_sample.p_sample_into(buffer[:, 2:], output, weights, steps, which, rows(n), clamp)
        torch.testing.assert_close(buffer[:, 2:].float(), expected, **TOLERANCE[dtype])
    assert (buffer[:, :2] == 3).all() and intact()


def test_a_network_s_nan_is_not_made_a_mask():
    weights = torch.ones(1, 7, device=DEVICE)
    state, output = torch.zeros(1, 1, 2, 3, device=DEVICE), torch.zeros(1, 1, 2, 3, device=DEVICE)
    output[0, 0, 1, 2] = torch.nan
    first = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    p_sample.p_sample_into(state, output, weights, first, first, rows(1), (0.0, 1.0))
    assert torch.equal(state.isnan(), output.isnan())
    mean, variance, entropy, _ = ensemble_stats.ensemble_moments(state, 0.5)
    assert all(torch.equal(found.isnan(), output[0].isnan()) for found in (mean, variance, entropy))


NORMS = [
    # channels, shape, shift, residual, silu; up to 8192 numbers of a group (in powers of two) in one pass, more in two
    (96, (1, 1), False, False, True),
    (96, (5, 7), True, True, True),
    (128, (6, 6), True, False, False),
    (32, (33, 47), True, True, True),
    (96, (33, 47), False, False, False),
    (96, (63, 65), False, False, False),
    (128, (63, 65), True, False, True),
    (32, (128, 192), True, True, True),
]


def test_moments_of_more_blocks_than_registers_hold(guards, monkeypatch):
    monkeypatch.setattr(group_norm_silu, "TILE", 128)
    hold_norm_against_float64(torch.float32, 96, (15, 17), True, True, True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("channels", "shape", "shift", "residual", "silu"), NORMS)
def test_group_norm_silu_and_its_gradients(guards, dtype, channels, shape, shift, residual, silu):
    hold_norm_against_float64(dtype, channels, shape, shift, residual, silu)


def hold_norm_against_float64(dtype, channels, shape, shift, residual, silu):
    n, groups, eps = 2, 32, 1e-5
    generator = torch.Generator().manual_seed(channels)

    def draw(*size):
        return torch.randn(*size, generator=generator).to(DEVICE)

    x = (3 + 2 * draw(n, channels, *shape)).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = 1 + 0.1 * draw(channels), 0.1 * draw(channels)
    moved = draw(n, channels) if shift else None
    extra = draw(n, channels, *shape).to(dtype).contiguous(memory_format=torch.channels_last) if residual else None
    y, total, mean, rstd = group_norm_silu.forward(x, weight, bias, groups, eps, silu, moved, extra)
    leaves = [value.double().requires_grad_() for value in (x, weight, bias)]
    h = leaves[0] + (0 if extra is None else extra.double())
    shifted = h + (0 if moved is None else moved.double()[:, :, None, None])
    expected = torch.nn.functional.group_norm(shifted, groups, leaves[1], leaves[2], eps)
    expected = torch.nn.functional.silu(expected) if silu else expected
    torch.testing.assert_close(y.double(), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(total.double(), h, **TOLERANCE[dtype])
    twin = reference.group_norm_silu(x, weight, bias, groups, eps, silu, moved, extra)
    rounding = 1e-5 * math.sqrt(math.prod(shape))  # torch adds up in float32, the kernel in blocks
    torch.testing.assert_close(y, twin[0], atol=max(TOLERANCE[dtype]["atol"], rounding), rtol=TOLERANCE[dtype]["rtol"])

    dy = draw(n, channels, *shape).to(dtype).contiguous(memory_format=torch.channels_last)
    dh, dweight, dbias = group_norm_silu.backward(dy, total, weight, bias, groups, silu, moved, mean, rstd)
    truth = torch.autograd.grad(expected, leaves, dy.double())
    scale = max(1.0, float(truth[1].abs().max()), float(truth[2].abs().max()))
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(dh.double(), truth[0], atol=5 * tolerance["atol"], rtol=tolerance["rtol"])
    for mine, theirs in ((dweight, truth[1]), (dbias, truth[2])):
        torch.testing.assert_close(mine.double(), theirs, atol=tolerance["atol"] * scale, rtol=tolerance["rtol"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_ensemble_moments(guards, dtype, size, shape):
    members = torch.rand(size, 2, *shape).to(DEVICE, dtype)
    members[:, 0, 0, :5], members[:, 1, 0, 5:9] = 0.0, 1.0
    found, expected = ensemble_stats.ensemble_moments(members, 0.5), reference.ensemble_moments(members, 0.5)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_group_norm_silu_is_an_operator_with_gradients(residual):
    n, channels, shape, groups = 2, 64, (4, 3), 32
    generator = torch.Generator().manual_seed(1)

    def leaf(*size):
        value = torch.randn(*size, generator=generator)
        value = value.contiguous(memory_format=torch.channels_last) if len(size) == 4 else value
        return value.to(DEVICE).requires_grad_()

    x, weight, bias, shift = leaf(n, channels, *shape), leaf(channels), leaf(channels), leaf(n, channels)
    extra = leaf(n, channels, *shape) if residual else None
    arguments = (x, weight, bias, groups, 1e-5, True, shift, extra)
    torch.library.opcheck(group_norm_silu.group_norm_silu, arguments, atol=1e-4, rtol=1e-4)
    y, total, *_ = group_norm_silu.group_norm_silu(*arguments)
    leaves = [value for value in (x, weight, bias, shift, extra) if value is not None]
    outputs = [y, total] if residual else [y]
    weights = [torch.randn(one.shape, generator=generator).to(DEVICE) for one in outputs]
    found = torch.autograd.grad(outputs, leaves, weights)
    twin = reference.group_norm_silu(*arguments)[: len(outputs)]
    for mine, theirs in zip(found, torch.autograd.grad(twin, leaves, weights), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture
def small_denoiser(random_network):
    return PreparedDenoiser(copy.deepcopy(random_network).to(DEVICE), 1000, "32-true")


def stand_in(x, t):
    """A prediction and a spread that see image, state and time."""
    seen = x[:, :1] * x[:, 1:2]
    return torch.cat([0.3 * x[:, 2:] + seen, torch.tanh(x[:, 2:] - seen)], dim=1) + t.reshape(-1, 1, 1, 1) / 1000


def plain_chain(denoiser, diffusion, chain, image, preseg, streams):
    """The chain by the references alone."""
    weights = [diffusion.schedule.abar(chain.t_prime - 1), 1 - diffusion.schedule.abar(chain.t_prime - 1)]
    fresh = noise.normal(streams, noise.START, *preseg.shape[1:])
    x_t = reference.q_sample(preseg, torch.stack(weights).sqrt(), fresh)
    t, t_prev = torch.tensor(chain.indices), torch.tensor([*chain.indices[1:], -1])
    weights = formulas.step_weights(diffusion.schedule, t, t_prev, diffusion.prediction, chain.rule, chain.eta)
    for k, row in zip(chain.indices, weights.to(DEVICE, torch.float32), strict=True):
        output = denoiser(torch.cat([image, x_t], dim=1), torch.full((len(x_t),), k, device=DEVICE))
        output, values = output.split(1, dim=1)
        values = [values] if chain.rule == "ddpm" else []
        fresh = noise.normal(streams, k, *x_t.shape[1:])
        x_t = reference.reverse_step(x_t, output, row.expand(len(x_t), 7), fresh, diffusion.codec.clamp, *values)
    return diffusion.codec.decode(x_t)


def hold_chain_against_references(denoiser, chain, images):
    """Chains on the kernels, one after the other, each against the references'; returns the calls of the last."""
    diffusion = Diffusion(SCHEDULE, build_codec("zero_one"), "eps")
    generator = torch.Generator().manual_seed(2)
    for seed in range(2):
        image = torch.randn(images, 2, 6, 4, generator=generator).to(DEVICE)
        preseg = (torch.rand(images, 1, 6, 4, generator=generator) < 0.4).float().to(DEVICE)
        calls = []
        with torch.inference_mode():
            found = Sampler(denoiser, diffusion, chain).sample(image, preseg, rows(images, seed), on_call=calls.append)
            expected = plain_chain(denoiser, diffusion, chain, image, preseg, rows(images, seed))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert found.std() > 0.01
    return calls


@pytest.mark.parametrize(("rule", "eta"), [("ddpm", 1.0), ("ddim", 1.0), ("ddim", 0.0)])
def test_a_chain_on_the_kernels_is_the_chain_of_the_references(rule, eta):
    chain = Chain("preseg", "run_to_zero", 300, 5, rule, eta, "consistent")
    assert hold_chain_against_references(stand_in, chain, 3) == [3] * 5


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize(("rule", "eta"), [("ddpm", 1.0), ("ddim", 1.0)])
def test_a_captured_call_is_replayed_for_other_images(small_denoiser, rule, eta):
    chain = Chain("preseg", "run_to_zero", 300, 8, rule, eta, "consistent")
    for images, one in ((3, chain), (2, chain), (3, replace(chain, t_prime=100)), (3, chain), (35, chain), (36, chain)):
        hold_chain_against_references(small_denoiser, one, images)
    assert len(small_denoiser.graphs) == 3 and all(small_denoiser.graphs.values())


def test_a_network_on_the_kernels_says_what_it_says_on_the_references(small_denoiser, monkeypatch):
    x = torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    t = torch.tensor([7], device=DEVICE)
    with torch.inference_mode():
        found = small_denoiser(x, t)
        monkeypatch.setattr(ops, "fused", lambda x: False)
        torch.testing.assert_close(found, small_denoiser(x, t), atol=1e-4, rtol=1e-4)
    assert found.std() > 0.01


def test_ops_choose_the_kernels():
    """The same answers through the door as through the kernels, for arguments that these cannot take as they are."""
    members = torch.rand(4, 3, 5, 6).to(DEVICE).transpose(2, 3)
    found, expected = ops.ensemble_moments(members, 0.4), reference.ensemble_moments(members, 0.4)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    assert ops.fused(members)
    x = torch.randn(2, 32, 5, 6).to(DEVICE)
    weight, bias, shift = torch.rand(32).to(DEVICE), torch.rand(32).to(DEVICE), torch.randn(2, 64).to(DEVICE)[:, ::2]
    how = {"groups": 32, "eps": 1e-5, "silu": True, "shift": shift}
    for one in (x, x.contiguous(memory_format=torch.channels_last)):
        for residual in (None, x):
            found = ops.group_norm_silu(one, weight, bias, **how, residual=residual)
            expected = reference.group_norm_silu(one, weight, bias, **how, residual=residual)
            for mine, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
