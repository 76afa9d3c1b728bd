"""Ways to make fewer calls: DPM-Solver++, DDIM, and ADDPM's stop before the end; several classes at once."""

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, reverse_chain, sample
from pdlib.diffusion.schedule import build_schedule, chain_indices
from pdlib.kernels import noise, ops, reference

SCHEDULE = build_schedule("cosine", steps=100, offset=0.008, max_beta=0.999)
WIDE = replace(build_codec("zero_one"), clamp=(-1e9, 1e9))
PLAIN = Diffusion(SCHEDULE, WIDE, "eps")
PD = Chain("preseg", "run_to_zero", 30, 1, "ddpm", 1.0, "consistent")
ADDPM = replace(PD, finish="one_step", t_stop=25)


def streams(rows):
    return noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def masks(rows, channels=1):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 8, 8, generator=rng), (torch.rand(rows, channels, 8, 8, generator=rng) < 0.3).float()


def network(x, t):
    state = x[:, 2:]
    return 0.3 * state + 0.1 * torch.sin(state * 3) + 0.05 * x[:, :1] + 0.001 * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("indices", [(99, 0), (99, 66, 33, 0), (29, 26, 17, 5, 4, 0), tuple(range(59, -1, -3))])
def test_dpm_solver_agrees_with_diffusers(indices):
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        trained_betas=SCHEDULE.betas.numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=list(indices))
    rows = streams(3)
    x = noise.normal(rows, noise.START, 1, 6, 5)
    image, theirs = torch.zeros(3, 2, 6, 5), x.clone()
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(torch.cat([image, theirs], 1), t.repeat(3)), t, theirs).prev_sample
    ours = reverse_chain(network, image, x, diffusion=PLAIN, indices=indices, streams=rows, step="dpm_solver", eta=0.0)
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=2e-4)


def test_dpm_solver_is_of_second_order():
    """For x_start ~ N(0, 1/4) the probability flow has a closed form; halving the steps' width quarters the error."""

    def denoise(x, t):
        abar = SCHEDULE.abar(t).reshape(-1, 1, 1, 1)
        return (x[:, 2:] * abar.sqrt() * 0.25 / (0.25 * abar + 1 - abar)).float()

    def spread(t):
        return (0.25 * SCHEDULE.abar(t) + 1 - SCHEDULE.abar(t)).sqrt()

    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = float(spread(4) / spread(64))
    errors = []
    for width in (4, 2):
        out = reverse_chain(
            denoise,
            torch.zeros(1, 2, 1, 1, dtype=torch.float64),
            x,
            diffusion=replace(PLAIN, prediction="x_start"),
            indices=tuple(range(64, 4, -width)),
            streams=streams(1),
            step="dpm_solver",
            eta=0.0,
            t_stop=5,
        )
        errors.append(abs(float(out) - exact))
    assert errors[1] < errors[0] / 3


def test_ddim_with_eta_1_has_the_ancestral_mean_and_the_posterior_variance():
    """The mean of both is the same; DDIM's variance is the posterior's, beta (1 - abar[t-1]) / (1 - abar[t])."""
    rng = torch.Generator().manual_seed(1)
    x_t, x_start = (torch.randn(1, 1, 1, 400, generator=rng, dtype=torch.float64) for _ in range(2))
    for t in (1, 30, 98):
        silence, one = torch.zeros_like(x_t), torch.ones_like(x_t)
        mean = reference.p_sample(x_start, x_t, t, t - 1, silence, SCHEDULE)
        assert torch.allclose(reference.ddim_sample(x_start, x_t, t, t - 1, silence, SCHEDULE, 1.0), mean, atol=1e-10)
        sigma = reference.ddim_sample(x_start, x_t, t, t - 1, one, SCHEDULE, 1.0) - mean
        posterior = SCHEDULE.betas[t] * (1 - SCHEDULE.abar(t - 1)) / (1 - SCHEDULE.abar(t))
        assert torch.allclose(sigma**2, posterior, atol=1e-10)


def test_addpm_visits_down_to_t_stop_and_then_the_other_network_once():
    assert chain_indices(300, 1, 250) == tuple(range(299, 249, -1))
    assert chain_indices(300, 20, 250) == (299, 274, 250)
    assert ADDPM.indices == (29, 28, 27, 26, 25) and replace(ADDPM, t_stop=30).indices == ()
    image, preseg = masks(3)
    called, states = [], []

    def denoise(x, t):
        called.append(int(t[0]))
        return network(x, t)

    def refine(x):
        called.append("refine")
        assert x.shape == (3, 3, 8, 8) and torch.equal(x[:, :2], image)
        states.append(x[:, 2:])
        return torch.sigmoid(x[:, 2:])

    out = sample(denoise, image, preseg, chain=ADDPM, diffusion=PLAIN, streams=streams(3), refine=refine)
    assert called == [29, 28, 27, 26, 25, "refine"]
    seen = []
    sample(
        network,
        image,
        preseg,
        chain=PD,
        diffusion=PLAIN,
        streams=streams(3),
        on_step=lambda t, x_t, x_start: seen.append(x_t) if t == 25 else None,
    )
    assert torch.equal(states[0], seen[0]) and torch.equal(out, torch.sigmoid(seen[0]))


def test_addpm_that_never_stops_is_pd_ddpm_and_one_that_never_starts_refines_the_noised_presegmentation():
    image, preseg = masks(3)
    common = {"diffusion": Diffusion(SCHEDULE, build_codec("zero_one"), "eps"), "streams": streams(3)}
    whole = sample(network, image, preseg, chain=PD, **common)
    assert torch.equal(sample(network, image, preseg, chain=replace(ADDPM, t_stop=0), **common), whole)
    none = sample(None, image, preseg, chain=replace(ADDPM, t_stop=30), refine=lambda x: x[:, 2:], **common)
    noised = ops.q_sample(preseg, 29, noise.normal(streams(3), noise.START, 1, 8, 8), SCHEDULE)
    assert torch.equal(none, noised)


def test_a_given_start_is_the_state_itself():
    image, state = torch.zeros(2, 2, 8, 8), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    first = []
    sample(
        lambda x, t: first.append(x[:, 2:].clone()) or x[:, 2:],
        image,
        state,
        chain=replace(PD, start="given"),
        diffusion=PLAIN,
        streams=streams(2),
    )
    assert torch.equal(first[0], state)


@pytest.mark.parametrize("chain", [PD, ADDPM, replace(PD, step="dpm_solver", stride=7)])
def test_several_classes_go_through_each_with_its_own_noise(chain):
    """Two equal channels and a network that treats them alike: they differ by their noise, and only by it."""
    image, one = masks(3)
    common = {"diffusion": Diffusion(SCHEDULE, build_codec("zero_one"), "eps"), "refine": lambda x: x[:, 2:]}
    both = sample(network, image, one.repeat(1, 2, 1, 1), chain=chain, streams=streams(3), **common)
    alone = sample(network, image, one, chain=chain, streams=streams(3), **common)
    assert both.shape == (3, 2, 8, 8) and torch.equal(both[:, :1], alone)
    assert not torch.equal(both[:, 1:], alone)


@pytest.mark.parametrize("step", ["ddim", "dpm_solver"])
def test_a_learned_variance_matters_to_the_ancestral_step_alone(step):
    image, preseg = masks(3)
    said = []

    def learns(x, t):
        return torch.cat([network(x, t), torch.full_like(x[:, 2:], 0.5)], dim=1)

    common = {"diffusion": PLAIN, "streams": streams(3), "on_step": lambda t, x_t, x_start: said.append(x_start.shape)}
    plain, learned = (sample(one, image, preseg, chain=replace(PD, step=step), **common) for one in (network, learns))
    assert torch.equal(plain, learned) and set(said) == {preseg.shape}
    ancestral = [sample(one, image, preseg, chain=PD, **common) for one in (network, learns)]
    assert not torch.allclose(*ancestral)


def test_bad_chains_are_named():
    image, preseg = masks(2)
    for call, words in (
        (lambda: replace(PD, t_stop=5), "run_to_zero does not stop before"),
        (lambda: replace(PD, step="euler"), "unknown step"),
        (lambda: chain_indices(30, 1, 31), "t_stop 31 in 0..t_prime"),
        (lambda: sample(network, image, preseg, chain=ADDPM, diffusion=PLAIN, streams=streams(2)), "needs the network"),
        (lambda: ops.dpm_solver_sample(preseg, (3, preseg), preseg, 4, 2, SCHEDULE), "not above t=4"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
