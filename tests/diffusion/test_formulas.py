"""Each equation against a closed form, a quadrature, or another author's definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pdlib.diffusion import formulas
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Diffusion
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise, reference

COSINE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)
SHORT = build_schedule("cosine", steps=40, offset=0.008, max_beta=0.999)
ANYTHING = (-math.inf, math.inf)


def streams(rows):
    return noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_isolated_pixels_are_lost_as_often_as_the_scale_says():
    """{0, 1} at k = 299 loses 16.8 % of isolated pixels to a threshold halfway; {-1, 1} only 2.7 %."""
    abar = COSINE.abar(299)
    for codec, lost in (("zero_one", 0.168), ("minus_one_one", 0.027)):
        encoded = build_codec(codec).encode(torch.ones(1, 1, 700, 700))
        x_t = formulas.q_sample(encoded, 299, noise.normal(streams(1), noise.START, 1, 700, 700), COSINE)
        halfway = float(abar.sqrt()) * float(build_codec(codec).encode(torch.tensor(0.5)))
        assert float((x_t < halfway).float().mean()) == pytest.approx(lost, abs=0.002)


def test_a_start_is_diffused_with_its_stream_s_noise():
    mask = (draw(3, 2, 5, 6) > 0).float()
    expected = formulas.q_sample(mask, 299, noise.normal(streams(3), noise.START, 2, 5, 6), COSINE)
    torch.testing.assert_close(formulas.q_sample_start(mask, 299, streams(3), COSINE), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", formulas.PREDICTIONS)
@pytest.mark.parametrize("t", [0, 17, torch.tensor([0, 39])])
def test_the_training_target_gives_x_start_back(prediction, t):
    x_start, fresh = draw(2, 1, 4, 4), draw(2, 1, 4, 4, seed=1)
    x_t = formulas.q_sample(x_start, t, fresh, SHORT)
    target = formulas.training_target(prediction, x_start, t, fresh, SHORT)
    found = formulas.predict_x_start(prediction, target, x_t, t, SHORT, ANYTHING)
    torch.testing.assert_close(found, x_start, rtol=1e-9, atol=1e-9)
    assert torch.equal(formulas.predict_x_start(prediction, target, x_t, t, SHORT, (0.0, 1.0)), found.clamp(0.0, 1.0))


@pytest.mark.parametrize("prediction", formulas.PREDICTIONS)
@pytest.mark.parametrize(("rule", "eta"), [("ddpm", 1.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)])
def test_the_table_of_weights_makes_the_published_step(prediction, rule, eta):
    """The weighted sum against DDPM Eq. 7 and DDIM Eq. 12 as the papers print them, in numpy."""
    t, t_prev = torch.tensor([39, 20, 0]), torch.tensor([38, 7, -1])
    x_t, output, fresh = (draw(3, 1, 4, 4, seed=seed) for seed in range(3))
    weights = formulas.step_weights(SHORT, t, t_prev, prediction, rule, eta)
    found = reference.reverse_step(x_t, output, weights, fresh, (0.0, 1.0))
    for row in range(3):
        abar = np.append(np.cumprod(1 - SHORT.betas.numpy()), 1.0)
        a, b, x = abar[t[row]], abar[t_prev[row]], x_t[row].numpy()
        said = output[row].numpy()
        x_0 = {"eps": (x - np.sqrt(1 - a) * said) / np.sqrt(a), "x_start": said}.get(
            prediction, np.sqrt(a) * x - np.sqrt(1 - a) * said
        )
        x_0 = x_0.clip(0, 1)
        if rule == "ddpm":
            alpha = a / b
            mean = np.sqrt(b) * (1 - alpha) / (1 - a) * x_0 + np.sqrt(alpha) * (1 - b) / (1 - a) * x
            sigma = np.sqrt(1 - alpha) * (t_prev[row].item() >= 0)
        else:
            sigma = eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b))
            eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)
            mean = np.sqrt(b) * x_0 + np.sqrt(1 - b - sigma**2) * eps
        np.testing.assert_allclose(found[row], mean + sigma * fresh[row].numpy(), rtol=1e-6, atol=1e-9)


def test_ddim_with_eta_1_has_the_ancestral_mean_and_the_posterior_variance():
    """The mean of both is the same; DDIM's variance is the posterior's, beta (1 - abar[t-1]) / (1 - abar[t])."""
    t = torch.arange(1, 40)
    ddpm, ddim = formulas.ddpm_step(t, t - 1, SHORT), formulas.ddim_step(t, t - 1, SHORT, 1.0)
    torch.testing.assert_close(ddim[:2], ddpm[:2], rtol=1e-7, atol=1e-9)
    posterior = SHORT.betas[t] * (1 - SHORT.abar(t - 1)) / (1 - SHORT.abar(t))
    torch.testing.assert_close(ddim[2] ** 2, posterior, rtol=1e-9, atol=0)
    torch.testing.assert_close(ddpm[2] ** 2, SHORT.betas[t], rtol=1e-9, atol=0)


def signal_and_noise(t, steps=40):
    """sqrt(abar) and sqrt(1 - abar) of the cosine schedule in closed form, from paper time t + 1; 1 and 0 at t = -1."""
    abar = (math.cos(((t + 1) / steps + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    return math.sqrt(abar), math.sqrt(1 - abar)


@pytest.mark.parametrize(("t", "between", "s"), [(29, 21, 14), (14, 7, 3), (29, 14, -1), (1, 0, -1)])
def test_a_distilled_step_arrives_where_two_steps_of_a_linear_teacher_do(t, between, s):
    """And its x_start is the mean of the teacher's two, weighted by how far each moves sqrt(abar / (1 - abar)): a
    noiseless step adds x_start times that to x_t / sqrt(1 - abar). On arrival at the clean image it is the second.
    """
    teacher = {t: (0.7, 0.1), between: (0.4, -0.2)}
    x_t = draw(2, 1, 4, 4)
    state, seen = x_t, []
    for here, there in ((t, between), (between, s)):
        factor, shift = teacher[here]
        seen.append(factor * state + shift)
        (signal, sigma), (signal_next, sigma_next) = signal_and_noise(here), signal_and_noise(there)
        state = signal_next * seen[-1] + sigma_next * (state - signal * seen[-1]) / sigma  # DDIM Eq. 12
    found = formulas.distillation_target(x_t, state, t, s, SHORT)

    if s < 0:
        expected = seen[1]
    else:
        level, middle, end = (signal_and_noise(k)[0] / signal_and_noise(k)[1] for k in (t, between, s))
        expected = ((middle - level) * seen[0] + (end - middle) * seen[1]) / (end - level)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(formulas.noiseless_step(found, x_t, t, s, SHORT), state, rtol=0, atol=1e-9)
    rows = (torch.tensor([t, t]), torch.tensor([s, s]))
    torch.testing.assert_close(formulas.distillation_target(x_t, state, *rows, SHORT), found)


def test_a_perfect_teacher_s_student_learns_the_reference():
    x_start, noise_of_it = draw(2, 1, 4, 4), draw(2, 1, 4, 4, seed=1)
    x_t, x_s = (formulas.q_sample(x_start, k, noise_of_it, SHORT) for k in (29, 14))
    torch.testing.assert_close(formulas.distillation_target(x_t, x_s, 29, 14, SHORT), x_start)
    torch.testing.assert_close(formulas.implied_noise(x_start, x_t, 29, SHORT), noise_of_it)


def test_a_learned_variance_lies_between_the_posterior_s_and_beta():
    t = torch.tensor([0, 1, 30])
    ends = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    smallest, largest = (formulas.learned_variance(end, t, t - 1, SHORT).flatten() for end in (-ends, ends))
    torch.testing.assert_close(largest, SHORT.betas[t], rtol=1e-9, atol=0)
    torch.testing.assert_close(smallest[1:], SHORT.posterior_variance(t[1:], t[1:] - 1), rtol=1e-9, atol=0)
    assert float(smallest[0]) == pytest.approx(float(SHORT.posterior_variance(1, 0))), "that of the step before"
    weights = formulas.step_weights(SHORT, t, t - 1, "eps", "ddpm", 1.0)
    torch.testing.assert_close(weights[1:, 5:].exp() ** 2, torch.stack([smallest, largest], dim=1)[1:])
    assert weights[0, 4:].tolist() == [0, 0, 0], "no noise on arrival at the clean image"


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
def test_terms_of_the_variational_bound_are_the_integrals_they_stand_for(codec):
    """Divergences by quadrature over the densities in DDPM Eq. 6 and 7; at t = 0 a normal tail. In bits."""
    diffusion, rng = Diffusion(SHORT, build_codec(codec), "eps"), np.random.default_rng(0)
    codec = diffusion.codec
    for t in (0, 1, 17, 39):
        x_0, believed, x_t, values = codec.high, *(float(v) for v in rng.normal(0.4, 0.3, 3))
        betas, abar = SHORT.betas.numpy(), np.cumprod(1 - SHORT.betas.numpy())
        before, rest = (abar[t - 1] if t else 1.0), 1 - abar[t]
        small = betas[max(t, 1)] * (1 - abar[max(t, 1) - 1]) / (1 - abar[max(t, 1)])
        learned = betas[t] ** ((values + 1) / 2) * small ** ((1 - values) / 2)

        def mean(x, t=t, before=before, rest=rest, x_t=x_t, betas=betas):
            return (np.sqrt(before) * betas[t] * x + np.sqrt(1 - betas[t]) * (1 - before) * x_t) / rest

        p = stats.norm(mean(believed), np.sqrt(learned))
        if t == 0:
            nats = -p.logsf((codec.low + codec.high) / 2)
        else:
            q = stats.norm(mean(x_0), np.sqrt(small))
            reach = (q.mean() - 12 * q.std(), q.mean() + 12 * q.std())
            nats, _ = integrate.quad(lambda x, p=p, q=q: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), *reach)
        given = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x_0, believed, values, x_t))
        found = formulas.variational_bound(*given, torch.tensor([t]), diffusion)
        assert found.shape == (1,) and float(found) == pytest.approx(nats / np.log(2), rel=1e-6)


def test_the_variational_bound_is_guided_diffusion_s():
    """`GaussianDiffusion._vb_terms_bpd` for t > 0, written down again: KL of two Gaussians, its mean, over log 2."""
    t = torch.tensor([1, 17, 39])
    x_start, predicted, values, x_t = (draw(3, 2, 4, 4, seed=seed) for seed in range(4))
    betas, abar = SHORT.betas, SHORT.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    posterior = betas * (1 - before) / (1 - abar)

    def each(table):
        return table[t].reshape(-1, 1, 1, 1)

    def mean(x):
        coef1 = betas * before.sqrt() / (1 - abar)
        coef2 = (1 - before) * (1 - betas).sqrt() / (1 - abar)
        return each(coef1) * x + each(coef2) * x_t

    frac = (values + 1) / 2
    log_variance = frac * each(betas.log()) + (1 - frac) * each(posterior.log())
    true_log_variance = each(posterior.log())
    kl = -1.0 + log_variance - true_log_variance + (true_log_variance - log_variance).exp()
    kl = 0.5 * (kl + (mean(x_start) - mean(predicted)) ** 2 * (-log_variance).exp())
    expected = kl.mean(dim=(1, 2, 3)) / math.log(2.0)
    diffusion = Diffusion(SHORT, build_codec("zero_one"), "eps")
    found = formulas.variational_bound(x_start, predicted, values, x_t, t, diffusion)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_table_is_computed_once_for_a_schedule_and_a_chain():
    diffusion, device = Diffusion(SHORT, build_codec("zero_one"), "v"), torch.device("cpu")
    indices = (29, 20, 10, 0)
    with torch.inference_mode():
        table = formulas.step_table(diffusion, indices, 0, "ddpm", 1.0, device)
    assert table is formulas.step_table(replace(diffusion), indices, 0, "ddpm", 1.0, device)
    other = Diffusion(build_schedule("cosine", steps=40, offset=0.1, max_beta=0.999), diffusion.codec, "v")
    assert not torch.equal(table.weights, formulas.step_table(other, indices, 0, "ddpm", 1.0, device).weights)
    assert table.indices.tolist() == list(indices) and table.weights.dtype == torch.float32
    assert table.learned_variance and not table.weights.is_inference()


def test_schedule_is_float64_however_it_is_used():
    half = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    out = formulas.q_sample(half, 299, torch.zeros_like(half), COSINE)
    assert out.dtype == torch.bfloat16
    assert float(out[0, 0, 0, 0]) == float(torch.tensor(math.sqrt(0.78691051)).bfloat16())


def test_bad_arguments_are_named():
    x = torch.zeros(2, 1, 4, 4)
    diffusion = Diffusion(SHORT, build_codec("zero_one"), "eps")
    table = (0, "ddpm", 1.0, torch.device("cpu"))
    for call, words in (
        (lambda: formulas.q_sample(x, 1000, x, COSINE), "0..999"),
        (lambda: formulas.q_sample(x, -1, x, COSINE), "0..999"),
        (lambda: formulas.q_sample(x, torch.tensor([1, 2, 3]), x, COSINE), "one index per row"),
        (lambda: formulas.q_sample(x, 1, x[:1], COSINE), "shapes differ"),
        (lambda: formulas.q_sample_start(x, 3, streams(3), COSINE), "streams: 3 for 2 rows"),
        (lambda: formulas.training_target("noise", x, 1, x, COSINE), "unknown prediction"),
        (lambda: formulas.predict_x_start("noise", x, x, 1, COSINE, ANYTHING), "unknown prediction"),
        (lambda: formulas.distillation_target(x, x[:1], 3, 1, COSINE), "shapes differ"),
        (lambda: formulas.dpm_solver_step(x, None, x, 3, 3, COSINE), "t_prev"),
        (lambda: formulas.dpm_solver_step(x, (3, x), x, 4, 2, COSINE), "not above t=4"),
        (lambda: formulas.step_table(diffusion, (3, 5), *table), "must fall"),
        (lambda: formulas.step_table(diffusion, (40, 5), *table), "0..39"),
        (lambda: formulas.step_table(diffusion, (5,), 0, "euler", 1.0, torch.device("cpu")), "unknown rule"),
        (lambda: build_codec("ternary"), "unknown codec"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
