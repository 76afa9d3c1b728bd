"""The reverse chain against closed forms and another library, and what each start and finish makes of it."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from pdlib.diffusion import formulas
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise

COSINE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)
HUNDRED = build_schedule("cosine", steps=100, offset=0.008, max_beta=0.999)
SHORT = build_schedule("cosine", steps=40, offset=0.008, max_beta=0.999)
WIDE = replace(build_codec("zero_one"), clamp=(-1e9, 1e9))
PLAIN = Diffusion(HUNDRED, WIDE, "eps")
CLAMPED = replace(PLAIN, codec=build_codec("zero_one"))
FULL = Chain("preseg", "run_to_zero", 300, 300, "ddpm", 1.0, "consistent")
PLAIN_RULES = ("ddpm", "ddim", "dpm_solver")  # that any denoiser can be sampled with
PD = replace(FULL, t_prime=30, calls=30)
ADDPM = replace(PD, finish="one_step", calls=5, t_stop=25)


def streams(rows, seed=0):
    return noise.subject_streams(seed, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def masks(rows, channels=1):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 8, 8, generator=rng), (torch.rand(rows, channels, 8, 8, generator=rng) < 0.3).float()


def network(x, t):
    """A fixed stand-in that sees image, state and time."""
    state = x[:, 2:]
    return 0.3 * state + 0.1 * torch.sin(state * 3) + 0.05 * x[:, :1] + 0.001 * t.reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Visits(Chain):
    """A chain that visits the indices that a test wants."""

    visited: tuple[int, ...] = ()

    @property
    def indices(self):
        return self.visited


def reverse(denoise, x, indices, diffusion, rule, eta=1.0, t_stop=0, **how):
    """The reverse chain over any indices, without an image."""
    chain = Visits("given", "one_step", indices[0] + 1, 1, rule, eta, "consistent", t_stop, "both_ends", tuple(indices))
    rows = len(x)
    image = torch.zeros(rows, 2, *x.shape[2:])
    return Sampler(denoise, diffusion, chain).reverse_chain(image, x, streams(rows), **how)


# --- against another library -----------------------------------------------------------------------------------------


def run_against(scheduler, rule, indices, diffusion):
    """Ours beside a diffusers scheduler, fed with the same model outputs and with our noise."""
    rows = streams(3)
    x = noise.normal(rows, noise.START, 1, 6, 5)
    scheduler.set_timesteps(timesteps=list(indices)) if rule == "ddpm" else scheduler.set_timesteps(len(indices))
    assert [int(t) for t in scheduler.timesteps] == list(indices)
    theirs = x.clone()

    def model(state, t):
        output = 0.3 * state + 0.1 * torch.sin(state * 3) + 0.001 * t
        learned = getattr(scheduler, "variance_type", "") == "learned_range"
        return torch.cat([output, torch.tanh(state - 0.5)], dim=1) if learned else output

    for t in scheduler.timesteps:
        fresh = noise.normal(rows, int(t), 1, 6, 5)
        if rule == "ddpm":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, n=fresh, **k: n)
                theirs = scheduler.step(model(theirs, t), t, theirs).prev_sample
        else:
            theirs = scheduler.step(model(theirs, t), t, theirs, eta=1.0, variance_noise=fresh).prev_sample
    return reverse(lambda state, t: model(state[:, 2:], t[0]), x, indices, diffusion, rule), theirs


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
    ours, theirs = run_against(scheduler, "ddpm", indices, Diffusion(SHORT, codec, prediction))
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


def test_strided_ddim_agrees_with_diffusers():
    scheduler = DDIMScheduler(
        num_train_timesteps=40,
        trained_betas=SHORT.betas.numpy(),
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="leading",
        steps_offset=3,
    )
    ours, theirs = run_against(scheduler, "ddim", tuple(range(39, 2, -4)), Diffusion(SHORT, WIDE, "eps"))
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("indices", [(99, 0), (99, 66, 33, 0), (29, 26, 17, 5, 4, 0), tuple(range(59, -1, -3))])
def test_dpm_solver_agrees_with_diffusers(indices):
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        trained_betas=HUNDRED.betas.numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=list(indices))
    x = noise.normal(streams(3), noise.START, 1, 6, 5)
    image, theirs = torch.zeros(3, 2, 6, 5), x.clone()
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(torch.cat([image, theirs], 1), t.repeat(3)), t, theirs).prev_sample
    ours = reverse(network, x, indices, PLAIN, "dpm_solver")
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


# --- against closed forms --------------------------------------------------------------------------------------------


def test_dpm_solver_is_of_second_order():
    """For x_start ~ N(0, 1/4) the probability flow has a closed form; halving the steps' width quarters the error."""

    def denoise(x, t):
        abar = HUNDRED.abar(t).reshape(-1, 1, 1, 1)
        return (x[:, 2:] * abar.sqrt() * 0.25 / (0.25 * abar + 1 - abar)).float()

    def deviation(t):
        return (0.25 * HUNDRED.abar(t) + 1 - HUNDRED.abar(t)).sqrt()

    exact = float(deviation(4) / deviation(64))
    errors = []
    for width in (4, 2):
        indices, diffusion = tuple(range(64, 4, -width)), replace(PLAIN, prediction="x_start")
        out = reverse(denoise, torch.ones(1, 1, 1, 1), indices, diffusion, "dpm_solver", t_stop=5)
        errors.append(abs(float(out) - exact))
    assert errors[1] < errors[0] / 3


def gaussian_moments(rule, indices, mean, deviation, schedule, rows=20000):
    """A chain whose network knows that x_start ~ N(mean, deviation^2); the state's moments after each step."""

    def exact_eps(x, t):
        abar = schedule.abar(int(t[0]))
        gain = abar.sqrt() * deviation**2 / (abar * deviation**2 + 1 - abar)
        x_start = mean + gain * (x[:, 2:].double() - abar.sqrt() * mean)
        return ((x[:, 2:].double() - abar.sqrt() * x_start) / (1 - abar).sqrt()).float()

    abar = schedule.abar(indices[0])
    clean = mean + deviation * noise.normal(streams(1, seed=9), 1, 1, rows, 1)
    x = abar.sqrt().float() * clean + (1 - abar).sqrt().float() * noise.normal(streams(1, seed=9), 2, 1, rows, 1)
    seen = {}

    def look(k, state, x_start):
        seen[k] = float(state.mean()), float(state.var())

    reverse(exact_eps, x, indices, Diffusion(schedule, WIDE, "eps"), rule, on_step=look)
    return seen


@pytest.mark.parametrize("rule", ["ddpm", "ddim"])
def test_chain_follows_the_closed_form_of_a_gaussian_prior(rule):
    """With x_start ~ N(m, s^2) every marginal is N(sqrt(abar) m, abar s^2 + 1 - abar): an off-by-one shows at once."""
    mean, deviation = 0.6, 0.4
    schedule = build_schedule("cosine", steps=400, offset=0.008, max_beta=0.999)
    seen = gaussian_moments(rule, tuple(range(119, -1, -1)), mean, deviation, schedule)
    for k in (100, 60, 30, 10):
        abar = float(schedule.abar(k - 1))
        assert seen[k][0] == pytest.approx(math.sqrt(abar) * mean, abs=0.015)
        assert seen[k][1] == pytest.approx(abar * deviation**2 + 1 - abar, rel=0.04)
    assert seen[0][0] == pytest.approx(mean, abs=0.015)


# --- starts, finishes and what a chain visits ------------------------------------------------------------------------


def counted(denoise, called):
    def call(x, t):
        assert (t == t[0]).all() and t.shape == (len(x),)
        called.append(int(t[0]))
        return denoise(x, t)

    return call


def test_every_index_is_denoised_once_from_t_start_to_zero():
    called = []
    denoise = counted(lambda x, t: 0.3 * x[:, 2:], called)
    Sampler(denoise, Diffusion(COSINE, WIDE, "eps"), FULL).sample(*masks(2), streams(2))
    assert called == list(range(299, -1, -1))


@pytest.mark.parametrize("rule", PLAIN_RULES)
@pytest.mark.parametrize("calls", [1, 16, 20])
def test_calls_are_asked_for_by_count(rule, calls):
    called, rows = [], []
    sampler = Sampler(counted(network, called), CLAMPED, replace(PD, rule=rule, calls=calls))
    sampler.sample(*masks(3), streams(3), on_call=rows.append)
    assert called == list(sampler.chain.indices) and len(called) == calls and rows == [3] * calls


def setting(rows=5):
    return *masks(rows), Diffusion(COSINE, build_codec("zero_one"), "v")


def test_pd_at_t_is_vanilla():
    image, preseg, diffusion = setting()
    chain = replace(FULL, t_prime=1000, calls=20)
    ends = [
        Sampler(network, diffusion, replace(chain, start=start)).sample(image, preseg, streams(5))
        for start in ("preseg", "gaussian")
    ]
    assert torch.allclose(*ends, atol=1e-3)
    assert not torch.allclose(ends[0], preseg, atol=0.1)


def test_pd_at_vanishing_t_is_the_presegmentation():
    """At T' = 1 a network that predicts no noise returns what it was given, up to the noise of one step."""
    image, preseg, diffusion = setting()
    nothing = Sampler(
        lambda x, t: torch.zeros_like(x[:, 2:]), replace(diffusion, prediction="eps"), replace(FULL, t_prime=1, calls=1)
    )
    out = nothing.sample(image, preseg, streams(5))
    assert (out - preseg).abs().max() < 0.05
    assert torch.equal(out > 0.5, preseg > 0.5)


def test_result_does_not_depend_on_batch_size():
    image, preseg, diffusion = setting()
    sampler = Sampler(network, diffusion, replace(FULL, calls=10))
    whole = sampler.sample(image, preseg, streams(5))
    for size in (1, 2, 3):
        parts = [sampler.sample(image[p], preseg[p], streams(5)[p]) for p in torch.arange(5).split(size)]
        assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_x0_jump_is_the_prediction_of_a_single_call():
    image, preseg, diffusion = setting()
    called = []
    chain = replace(FULL, finish="x0_jump", calls=1)
    out = Sampler(counted(network, called), diffusion, chain).sample(image, preseg, streams(5))
    x_t = formulas.q_sample(preseg, 299, noise.normal(streams(5), noise.START, 1, 8, 8), COSINE)
    output = network(torch.cat([image, x_t], 1), torch.full((5,), 299))
    expected = formulas.predict_x_start("v", output, x_t, 299, COSINE, (0, 1))
    assert called == [299]
    assert torch.allclose(out, expected, atol=1e-6)


def test_official_convention_diffuses_one_step_further():
    assert FULL.start_index(COSINE) == 299
    assert replace(FULL, convention="official").start_index(COSINE) == 300
    assert replace(FULL, convention="official").indices[0] == 299
    assert replace(FULL, convention="official", t_prime=1000).start_index(COSINE) == 999


def test_addpm_visits_down_to_t_stop_and_then_the_other_network_once():
    assert ADDPM.indices == (29, 28, 27, 26, 25) and replace(ADDPM, t_stop=30, calls=0).indices == ()
    image, preseg = masks(3)
    called, states = [], []

    def refine(x):
        called.append("refine")
        assert x.shape == (3, 3, 8, 8) and torch.equal(x[:, :2], image)
        states.append(x[:, 2:])
        return torch.sigmoid(x[:, 2:])

    out = Sampler(counted(network, called), PLAIN, ADDPM, refine).sample(image, preseg, streams(3))
    assert called == [29, 28, 27, 26, 25, "refine"]
    seen = {}
    whole = Sampler(network, PLAIN, PD)
    whole.sample(image, preseg, streams(3), on_step=lambda t, x_t, x_start: seen.update({t: x_t}))
    assert torch.equal(states[0], seen[25]) and torch.equal(out, torch.sigmoid(seen[25]))


def test_addpm_that_never_stops_is_pd_ddpm_and_one_that_never_starts_refines_the_noised_presegmentation():
    image, preseg = masks(3)
    whole = Sampler(network, CLAMPED, PD).sample(image, preseg, streams(3))
    endless = replace(ADDPM, t_stop=0, calls=30)
    assert torch.equal(Sampler(network, CLAMPED, endless).sample(image, preseg, streams(3)), whole)
    none = Sampler(None, CLAMPED, replace(ADDPM, t_stop=30, calls=0), refine=lambda x: x[:, 2:])
    noised = formulas.q_sample(preseg, 29, noise.normal(streams(3), noise.START, 1, 8, 8), HUNDRED)
    assert torch.equal(none.sample(image, preseg, streams(3)), noised)


def test_a_given_start_is_the_state_itself():
    image, state = torch.zeros(2, 2, 8, 8), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    first = []
    given = Sampler(lambda x, t: first.append(x[:, 2:].clone()) or x[:, 2:], PLAIN, replace(PD, start="given"))
    given.sample(image, state, streams(2))
    assert torch.equal(first[0], state)


@pytest.mark.parametrize("chain", [PD, ADDPM, replace(PD, rule="dpm_solver", calls=5)])
def test_several_classes_go_through_each_with_its_own_noise(chain):
    """Two equal channels and a network that treats them alike: they differ by their noise, and only by it."""
    image, one = masks(3)
    sampler = Sampler(network, CLAMPED, chain, refine=lambda x: x[:, 2:])
    both, alone = (sampler.sample(image, mask, streams(3)) for mask in (one.repeat(1, 2, 1, 1), one))
    assert both.shape == (3, 2, 8, 8) and torch.equal(both[:, :1], alone)
    assert not torch.equal(both[:, 1:], alone)


@pytest.mark.parametrize("rule", ["ddim", "dpm_solver"])
def test_a_learned_variance_matters_to_the_ancestral_step_alone(rule):
    image, preseg = masks(3)
    shapes = []

    def learns(x, t):
        return torch.cat([network(x, t), torch.full_like(x[:, 2:], 0.5)], dim=1)

    def draw(denoise, chain):
        sampler = Sampler(denoise, PLAIN, chain)
        return sampler.sample(image, preseg, streams(3), on_step=lambda t, x_t, x_start: shapes.append(x_start.shape))

    plain, learned = (draw(one, replace(PD, rule=rule)) for one in (network, learns))
    assert torch.equal(plain, learned) and set(shapes) == {preseg.shape}
    assert not torch.allclose(draw(network, PD), draw(learns, PD))


def test_what_a_step_shows_does_not_change_the_chain():
    image, preseg = masks(3)
    seen = []
    for rule in PLAIN_RULES:
        sampler = Sampler(network, CLAMPED, replace(PD, rule=rule, calls=6))
        out = sampler.sample(image, preseg, streams(3), on_step=lambda *shown: seen.append(shown))
        assert torch.equal(out, sampler.sample(image, preseg, streams(3)))
        assert [t for t, *_ in seen[-6:]] == list(sampler.chain.indices)
        assert torch.equal(seen[-1][1].clamp(0, 1), out) and not torch.equal(seen[-2][1], seen[-1][1])


def test_bad_chains_are_named():
    image, preseg = masks(2)
    for call, words in (
        (lambda: replace(PD, t_stop=5), "only a chain that ends by one_step"),
        (lambda: replace(PD, rule="euler"), "unknown rule"),
        (lambda: replace(PD, start="warm"), "unknown start"),
        (lambda: replace(PD, finish="soon"), "unknown finish"),
        (lambda: replace(PD, convention="ours"), "unknown convention"),
        (lambda: replace(PD, calls=31), "calls 31 must be in 1..30"),
        (lambda: replace(PD, finish="x0_jump"), "an x0_jump makes one call"),
        (lambda: Sampler(network, Diffusion(SHORT, WIDE, "v"), FULL), "t_prime 300 exceeds the schedule's 40"),
        (lambda: Sampler(network, PLAIN, ADDPM).sample(image, preseg, streams(2)), "needs a network to refine"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
