"""Schedule, noise, ops and the reverse chain against closed forms and another library."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import integrate, stats

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, reverse_chain, sample
from pdlib.diffusion.schedule import Schedule, build_schedule, chain_indices, scale_t_prime
from pdlib.kernels import noise, ops, reference

COSINE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)
SHORT = build_schedule("cosine", steps=40, offset=0.008, max_beta=0.999)
WIDE = replace(build_codec("zero_one"), clamp=(-1e9, 1e9))
FULL = Chain("preseg", "run_to_zero", 300, 1, "ddpm", 1.0, "consistent")


def streams(rows, seed=0, subject="a"):
    return noise.subject_streams(seed, subject, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def test_cosine_schedule_has_the_published_values():
    abar = COSINE.alphas_cumprod
    assert abar.dtype == torch.float64
    known = {0: 0.99995872, 99: 0.97209274, 199: 0.89870592, 249: 0.84701216, 299: 0.78691051, 499: 0.49384359}
    for k, value in known.items():
        assert abs(float(abar[k]) - value) < 5e-9
    assert float(abar[998]) == pytest.approx(2.43e-6, rel=2e-3)
    assert float(abar[999]) == pytest.approx(2.43e-9, rel=2e-3)
    linear = build_schedule("linear", steps=1000, first_beta=1e-4, last_beta=0.02)
    assert float(linear.alphas_cumprod[999]) == pytest.approx(4.04e-5, rel=2e-3)


def test_isolated_pixels_are_lost_as_often_as_the_scale_says():
    """{0, 1} at k = 299 loses 16.8 % of isolated pixels to a threshold halfway; {-1, 1} only 2.7 %."""
    abar = COSINE.abar(299)
    for codec, lost in (("zero_one", 0.168), ("minus_one_one", 0.027)):
        encoded = build_codec(codec).encode(torch.ones(1, 1, 700, 700))
        x_t = ops.q_sample(encoded, 299, noise.normal(streams(1), noise.START, 1, 700, 700), COSINE)
        halfway = float(abar.sqrt()) * float(build_codec(codec).encode(torch.tensor(0.5)))
        assert float((x_t < halfway).float().mean()) == pytest.approx(lost, abs=0.002)


def test_philox_agrees_with_the_known_answers_of_its_authors():
    """kat_vectors of Random123: philox4x32-10 on zeros, on ones, and on the digits of pi."""
    words = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in words:
        packed = np.array(key[0] | key[1] << 32, dtype=np.uint64).astype(np.int64)
        out = noise.philox(torch.tensor(packed), tuple(torch.tensor(word) for word in counter))
        assert tuple(int(word) for word in out) == expected


def test_noise_is_standard_gaussian_and_every_stream_is_its_own():
    draws = noise.normal(streams(4), 7, 1, 200, 200)
    assert abs(float(draws.mean())) < 0.01 and abs(float(draws.std()) - 1) < 0.01
    assert abs(float((draws.abs() > 1.959964).float().mean()) - 0.05) < 0.002
    others = [
        noise.normal(streams(4), 8, 1, 200, 200),
        noise.normal(streams(4, seed=1), 7, 1, 200, 200),
        noise.normal(streams(4, subject="b"), 7, 1, 200, 200),
        draws.roll(1, 0),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1])) < 0.01


def test_noise_of_a_row_does_not_depend_on_its_batch():
    whole = noise.normal(streams(6), 3, 1, 9, 11)
    assert torch.equal(whole[4:5], noise.normal(streams(6)[4:5], 3, 1, 9, 11))


def test_chain_visits_exactly_t_prime_indices():
    assert chain_indices(300, 1) == tuple(range(299, -1, -1))
    assert chain_indices(30, 8) == (29, 19, 10, 0)
    assert chain_indices(1, 1) == (0,)
    for t_prime in range(1, 60):
        for stride in (1, 3, 8):
            visited = chain_indices(t_prime, stride)
            assert visited[0] == t_prime - 1 and visited[-1] == 0
            assert len(visited) == max(math.ceil(t_prime / stride), min(t_prime, 2))
            assert list(visited) == sorted(set(visited), reverse=True)
    assert [scale_t_prime(value, 1000, 100) for value in (300, 4, 0)] == [30, 1, 0]


def test_every_index_is_denoised_once_from_t_start_to_zero():
    called = []

    def denoise(x, t):
        called.append(int(t[0]))
        assert x.shape[1] == 3 and (t == t[0]).all()
        return 0.3 * x[:, 2:]

    diffusion = Diffusion(COSINE, WIDE, "eps")
    sample(
        denoise, torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 4), chain=FULL, diffusion=diffusion, streams=streams(2)
    )
    assert called == list(range(299, -1, -1))


def run_against(scheduler, step, indices, schedule, codec, prediction):
    """Ours beside a diffusers scheduler, fed with the same model outputs and with our noise."""
    diffusion = Diffusion(schedule, codec, prediction)
    rows = streams(3)
    x = noise.normal(rows, noise.START, 1, 6, 5)
    scheduler.set_timesteps(timesteps=list(indices)) if step == "ddpm" else scheduler.set_timesteps(len(indices))
    assert [int(t) for t in scheduler.timesteps] == list(indices)
    theirs = x.clone()

    def model(state, t):
        output = 0.3 * state + 0.1 * torch.sin(state * 3) + 0.001 * t
        learned = getattr(scheduler, "variance_type", "") == "learned_range"
        return torch.cat([output, torch.tanh(state - 0.5)], dim=1) if learned else output

    for t in scheduler.timesteps:
        kwargs = {"eta": 1.0, "variance_noise": noise.normal(rows, int(t), 1, 6, 5)} if step == "ddim" else {}
        if step == "ddpm":
            scheduler_noise = noise.normal(rows, int(t), 1, 6, 5)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, n=scheduler_noise, **k: n)
                theirs = scheduler.step(model(theirs, t), t, theirs).prev_sample
        else:
            theirs = scheduler.step(model(theirs, t), t, theirs, **kwargs).prev_sample
    ours = reverse_chain(
        lambda state, t: model(state[:, 2:], t[0]),
        torch.zeros(3, 2, 6, 5),
        x,
        diffusion=diffusion,
        indices=indices,
        streams=rows,
        step=step,
        eta=1.0,
    )
    return ours, theirs


@pytest.mark.parametrize("prediction", ["eps", "v", "x_start"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("variance", "indices"),
    [
        ("fixed_large", tuple(range(29, -1, -1))),
        ("learned_range", tuple(range(29, -1, -1))),
        ("learned_range", (29, 17, 5, 0)),
    ],
)
def test_ancestral_chain_agrees_with_diffusers(prediction, clip, variance, indices):
    scheduler = DDPMScheduler(
        num_train_timesteps=40,
        trained_betas=SHORT.betas.numpy(),
        variance_type=variance,
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x_start": "sample"}[prediction],
        clip_sample=clip,
    )
    codec = build_codec("official") if clip else WIDE
    ours, theirs = run_against(scheduler, "ddpm", indices, SHORT, codec, prediction)
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
def test_terms_of_the_variational_bound_are_the_integrals_they_stand_for(codec):
    """Divergences by quadrature over the densities that DDPM Eq. 6 and 7 write down; at t = 0 a normal tail."""
    codec, rng = build_codec(codec), np.random.default_rng(0)
    for t in (0, 1, 17, 39):
        x_0, believed, x_t, spread = codec.high, *(float(v) for v in rng.normal(0.4, 0.3, 3))
        betas, abar = SHORT.betas.numpy(), np.cumprod(1 - SHORT.betas.numpy())
        before, rest = (abar[t - 1] if t else 1.0), 1 - abar[t]
        small = betas[max(t, 1)] * (1 - abar[max(t, 1) - 1]) / (1 - abar[max(t, 1)])
        learned = betas[t] ** ((spread + 1) / 2) * small ** ((1 - spread) / 2)

        def mean(x, t=t, before=before, rest=rest, x_t=x_t, betas=betas):
            return (np.sqrt(before) * betas[t] * x + np.sqrt(1 - betas[t]) * (1 - before) * x_t) / rest

        p = stats.norm(mean(believed), np.sqrt(learned))
        if t == 0:
            expected = -p.logsf((codec.low + codec.high) / 2)
        else:
            q = stats.norm(mean(x_0), np.sqrt(small))
            reach = (q.mean() - 12 * q.std(), q.mean() + 12 * q.std())
            expected, _ = integrate.quad(lambda x, p=p, q=q: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *reach)
        x_0, believed, spread, x_t = (
            torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x_0, believed, spread, x_t)
        )
        found = ops.variational_bound(x_0, believed, spread, x_t, torch.tensor([t]), SHORT, codec)
        assert found.shape == (1,) and float(found) == pytest.approx(expected, rel=1e-6)


def test_strided_ddim_agrees_with_diffusers():
    scheduler = DDIMScheduler(
        num_train_timesteps=40,
        trained_betas=SHORT.betas.numpy(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=3,
    )
    ours, theirs = run_against(scheduler, "ddim", tuple(range(39, 2, -4)), SHORT, WIDE, "eps")
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


def gaussian_moments(step, indices, mean, spread, schedule, rows=20000):
    """Sample a chain whose network knows that x_start ~ N(mean, spread^2); the state's moments after each step."""
    diffusion = Diffusion(schedule, WIDE, "eps")

    def exact_eps(x, t):
        abar = schedule.abar(int(t[0]))
        gain = abar.sqrt() * spread**2 / (abar * spread**2 + 1 - abar)
        x_start = mean + gain * (x[:, 2:].double() - abar.sqrt() * mean)
        return ((x[:, 2:].double() - abar.sqrt() * x_start) / (1 - abar).sqrt()).float()

    abar = schedule.abar(indices[0])
    clean = mean + spread * noise.normal(streams(1, seed=9), 1, 1, rows, 1)
    x = abar.sqrt().float() * clean + (1 - abar).sqrt().float() * noise.normal(streams(1, seed=9), 2, 1, rows, 1)
    seen = {}
    reverse_chain(
        exact_eps,
        torch.zeros(1, 2, rows, 1),
        x,
        diffusion=diffusion,
        indices=indices,
        streams=streams(1),
        step=step,
        eta=1.0,
        on_step=lambda k, state, _: seen.update({k: (float(state.mean()), float(state.var()))}),
    )
    return seen


@pytest.mark.parametrize("step", ["ddpm", "ddim"])
def test_chain_follows_the_closed_form_of_a_gaussian_prior(step):
    """With x_start ~ N(m, s^2) every marginal is N(sqrt(abar) m, abar s^2 + 1 - abar): an off-by-one shows at once."""
    mean, spread = 0.6, 0.4
    schedule = build_schedule("cosine", steps=400, offset=0.008, max_beta=0.999)
    indices = chain_indices(120, 1)
    seen = gaussian_moments(step, indices, mean, spread, schedule)
    for k in (100, 60, 30, 10):
        abar = float(schedule.abar(k - 1))
        assert seen[k][0] == pytest.approx(math.sqrt(abar) * mean, abs=0.015)
        assert seen[k][1] == pytest.approx(abar * spread**2 + 1 - abar, rel=0.04)
    assert seen[0][0] == pytest.approx(mean, abs=0.015)


def test_ddim_with_eta_one_has_ancestral_moments_with_the_posterior_variance():
    """DDIM at eta = 1 is ancestral sampling (Song et al. 2020, Section 4.1); its variance is the posterior's."""
    k, x_t, x_start = 20, torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), 0.2)
    zero = torch.zeros_like(x_t)
    mean_ddpm = reference.p_sample(x_start, x_t, k, k - 1, zero, SHORT)
    mean_ddim = reference.ddim_sample(x_start, x_t, k, k - 1, zero, SHORT, 1.0)
    assert torch.allclose(mean_ddpm, mean_ddim, atol=1e-6)
    spread = reference.ddim_sample(x_start, x_t, k, k - 1, torch.ones_like(x_t), SHORT, 1.0) - mean_ddim
    abar, before = SHORT.abar(k), SHORT.abar(k - 1)
    posterior = (1 - before) / (1 - abar) * SHORT.betas[k]
    assert float(spread) == pytest.approx(float(posterior.sqrt()), rel=1e-5)


def network(x, t):
    """A fixed nonlinear stand-in that sees image, state and time."""
    return 0.5 * torch.tanh(x[:, 2:] + x[:, :1] * x[:, 1:2]) + 0.01 * t.reshape(-1, 1, 1, 1) / 40


def setting(rows=5):
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(rows, 2, 8, 8, generator=generator)
    preseg = (torch.rand(rows, 1, 8, 8, generator=generator) > 0.7).float()
    return image, preseg, Diffusion(COSINE, build_codec("zero_one"), "v")


def test_pd_at_t_is_vanilla():
    image, preseg, diffusion = setting()
    ends = [
        sample(
            network,
            image,
            preseg,
            chain=replace(FULL, start=s, t_prime=1000, stride=50),
            diffusion=diffusion,
            streams=streams(5),
        )
        for s in ("preseg", "gaussian")
    ]
    assert torch.allclose(*ends, atol=1e-3)
    assert not torch.allclose(ends[0], preseg, atol=0.1)


def test_pd_at_vanishing_t_is_the_presegmentation():
    """At T' = 1 a network that predicts no noise returns what it was given, up to the noise of one step."""
    image, preseg, _ = setting()
    diffusion = Diffusion(COSINE, build_codec("zero_one"), "eps")
    silent = lambda x, t: torch.zeros_like(x[:, 2:])  # noqa: E731
    out = sample(silent, image, preseg, chain=replace(FULL, t_prime=1), diffusion=diffusion, streams=streams(5))
    assert (out - preseg).abs().max() < 0.05
    assert torch.equal(out > 0.5, preseg > 0.5)


def test_result_does_not_depend_on_batch_size():
    image, preseg, diffusion = setting()
    chain = replace(FULL, stride=30)
    whole = sample(network, image, preseg, chain=chain, diffusion=diffusion, streams=streams(5))
    for size in (1, 2, 3):
        parts = [
            sample(network, image[p], preseg[p], chain=chain, diffusion=diffusion, streams=streams(5)[p])
            for p in torch.arange(5).split(size)
        ]
        assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_x0_jump_is_the_prediction_of_a_single_call():
    image, preseg, diffusion = setting()
    calls = []

    def counted(x, t):
        calls.append(int(t[0]))
        return network(x, t)

    chain = replace(FULL, finish="x0_jump")
    out = sample(counted, image, preseg, chain=chain, diffusion=diffusion, streams=streams(5))
    x_t = ops.q_sample(preseg, 299, noise.normal(streams(5), noise.START, 1, 8, 8), COSINE)
    expected = ops.predict_x_start(
        "v", network(torch.cat([image, x_t], 1), torch.full((5,), 299)), x_t, 299, COSINE, (0, 1)
    )
    assert calls == [299]
    assert torch.allclose(out, expected, atol=1e-6)


def test_official_convention_diffuses_one_step_further():
    assert FULL.start_index(COSINE) == 299
    assert replace(FULL, convention="official").start_index(COSINE) == 300
    assert replace(FULL, convention="official").indices[0] == 299


def test_ensemble_stats_against_numpy():
    members = torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(0))
    mean, variance, mask = ops.ensemble_stats(members, 0.5, "soft")
    assert np.allclose(mean, members.numpy().mean(0)) and np.allclose(variance, members.numpy().var(0), atol=1e-6)
    assert np.array_equal(mask, members.numpy().mean(0) >= 0.5)
    majority = ops.ensemble_stats(members, 0.5, "majority")[2]
    assert np.array_equal(majority, (members.numpy() >= 0.5).sum(0) >= 3)
    assert not np.array_equal(majority, mask)


def group_norm(x, **changed):
    how = {"groups": 1, "eps": 1e-5, "silu": True, "shift": None, "residual": None}
    return ops.group_norm_silu(x, torch.ones(1), torch.zeros(1), **(how | changed))


def test_bad_arguments_are_named():
    x = torch.zeros(2, 1, 4, 4)
    for call, words in (
        (lambda: ops.q_sample(x, 1000, x, COSINE), "0..999"),
        (lambda: ops.q_sample(x, -1, x, COSINE), "0..999"),
        (lambda: ops.q_sample(x, torch.tensor([1, 2, 3]), x, COSINE), "one index per row"),
        (lambda: ops.q_sample(x, 1, x[:1], COSINE), "shapes differ"),
        (lambda: ops.training_target("noise", x, 1, x, COSINE), "unknown prediction"),
        (lambda: ops.dpm_solver_sample(x, None, x, 3, 3, COSINE), "t_prev"),
        (lambda: ops.q_sample_start(x, 3, streams(3), COSINE), "streams: 3 for 2 rows"),
        (lambda: group_norm(x, groups=3), "do not divide into 3"),
        (lambda: group_norm(x, residual=x[:1]), "residual has shape"),
        (lambda: group_norm(x, shift=x[:, :, 0]), "shift has shape"),
        (lambda: ops.ensemble_stats(x, 0.5, "loud"), "unknown vote"),
        (lambda: build_schedule("square"), "unknown schedule"),
        (lambda: build_codec("ternary"), "unknown codec"),
        (lambda: replace(FULL, start="warm"), "unknown start"),
        (lambda: chain_indices(0, 1), "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="exceeds"):
        sample(network, x, x, chain=FULL, diffusion=Diffusion(SHORT, WIDE, "v"), streams=streams(2))


def test_schedule_is_float64_however_it_is_used():
    half = Schedule(COSINE.betas)
    out = ops.q_sample(
        torch.ones(1, 1, 2, 2, dtype=torch.bfloat16), 299, torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), half
    )
    assert out.dtype == torch.bfloat16
    assert float(out[0, 0, 0, 0]) == float(torch.tensor(math.sqrt(0.78691051)).bfloat16())
