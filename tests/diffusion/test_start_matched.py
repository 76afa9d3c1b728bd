"""Start-matched PD-DDPM: where its chain starts and ends, the states between, and its two special cases."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pdlib.diffusion import formulas
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise

SCHEDULE = build_schedule("cosine", steps=1000, offset=0.008, max_beta=0.999)
T_START = 299
SHARED = {"start": "preseg", "finish": "run_to_zero", "rule": "start_matched", "convention": "consistent"}


def masks(*shape, share=0.3, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share).float()


def streams(rows):
    return noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


@dataclass
class Oracle:
    """A network that knows x_start, and keeps what it was shown."""

    x_start: torch.Tensor
    seen: list

    def __call__(self, x, t):
        self.seen.append((int(t[0]), x.clone()))
        return self.x_start


def oracle_chain(x_start, preseg, calls, eta, codec="zero_one", t_prime=T_START + 1):
    diffusion = Diffusion(SCHEDULE, build_codec(codec), "x_start")
    oracle = Oracle(diffusion.codec.encode(x_start), [])
    sampler = Sampler(oracle, diffusion, Chain(t_prime=t_prime, calls=calls, eta=eta, **SHARED))
    image = torch.zeros(len(x_start), 2, *x_start.shape[2:])
    return sampler.sample(image, preseg, streams(len(x_start))), oracle.seen


def test_at_the_start_the_states_are_the_diffused_pre_segmentation():
    x_start, preseg, fresh = masks(2, 1, 9, 9).double(), masks(2, 1, 9, 9, seed=1).double(), torch.randn(2, 1, 9, 9)
    mean = formulas.start_matched_mean(x_start, preseg, T_START, T_START, SCHEDULE)
    assert torch.equal(mean, preseg)
    found = formulas.q_sample(mean, T_START, fresh.double(), SCHEDULE)
    expected = np.sqrt(0.78691051) * preseg.numpy() + np.sqrt(1 - 0.78691051) * fresh.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-8)
    _, seen = oracle_chain(x_start.float(), preseg.float(), 4, 1.0)
    begun = formulas.q_sample_start(preseg.float(), T_START, streams(2), SCHEDULE)
    torch.testing.assert_close(seen[0][1][:, 3:], begun, rtol=0, atol=1e-6)
    assert torch.equal(seen[0][1][:, 2:3], preseg.float()), "the network sees the pre-segmentation"


@pytest.mark.parametrize("codec", ["zero_one", "minus_one_one"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("calls", [1, 2, 7, 30])
def test_an_oracle_ends_at_x_start_whatever_the_pre_segmentation_and_the_number_of_steps(calls, eta, codec):
    x_start, preseg = masks(2, 1, 8, 8), masks(2, 1, 8, 8, seed=1)
    for start in (preseg, torch.zeros_like(preseg)):
        found, seen = oracle_chain(x_start, start, calls, eta, codec)
        assert len(seen) == calls and torch.equal(found, x_start)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_states_of_a_chain_are_distributed_as_those_of_the_training(eta):
    """Mean and variance of 40,000 pixels at every visited index, by numpy from the definition of g."""
    signal = np.sqrt(SCHEDULE.alphas_cumprod.numpy())
    for x, guess in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        _, seen = oracle_chain(torch.full((1, 1, 200, 200), x), torch.full((1, 1, 200, 200), guess), 5, eta)
        assert [t for t, _ in seen] == [299, 224, 150, 75, 0]
        for t, shown in seen:
            g, g_start = ((1 - signal[k]) / signal[k] for k in (t, T_START))
            mean, variance = signal[t] * (x + g / g_start * (guess - x)), 1 - signal[t] ** 2
            state, error = shown[0, 3].double().numpy(), np.sqrt(variance / 40000)
            assert state.mean() == pytest.approx(mean, abs=4.5 * error)
            assert state.var() == pytest.approx(variance, rel=4.5 * np.sqrt(2 / 40000))


def test_resfusion_is_the_special_case_of_half_the_signal_at_the_start():
    """Its Markov chain, step by step: x_t = sqrt(alpha_t) x_{t-1} + (1 - sqrt(alpha_t)) R + sqrt(beta_t) eps with
    R = degraded - x_0 (arXiv 2311.14900); and its posterior by Bayes' rule against our step with eta 1.
    """
    betas = SCHEDULE.betas.numpy()[:600].copy()
    last = int(np.argmin(np.abs(np.sqrt(np.cumprod(1 - betas)) - 0.5)))
    betas[last] = 1 - 0.25 / np.prod(1 - betas[:last])  # exactly half the signal is left there
    schedule = formulas.Schedule(torch.from_numpy(betas))
    x_0, degraded = 1.0, 0.2
    residual, mean, variance, states = degraded - x_0, x_0, 0.0, []
    for beta in betas[: last + 1]:
        mean = np.sqrt(1 - beta) * mean + (1 - np.sqrt(1 - beta)) * residual
        variance = (1 - beta) * variance + beta
        states.append((mean, variance))
    x_start, preseg = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x_0, degraded))
    for t in (0, 100, last - 1, last):
        m_t = formulas.start_matched_mean(x_start, preseg, t, last, schedule)
        assert float(schedule.abar(t).sqrt() * m_t) == pytest.approx(states[t][0], abs=1e-9)
        assert float(1 - schedule.abar(t)) == pytest.approx(states[t][1], abs=1e-9)
    assert states[last][0] == pytest.approx(degraded / 2), "x_0 is out of the sum: the chain can start there"
    t, x_t = 200, 0.37
    (before, spread), beta = states[t - 1], betas[t]
    precision = 1 / spread + (1 - beta) / beta  # of x_{t-1} given x_t: a Gaussian prior times a Gaussian likelihood
    posterior = before / spread + np.sqrt(1 - beta) * (x_t - (1 - np.sqrt(1 - beta)) * residual) / beta
    given = (x_start, preseg, torch.full_like(x_start, x_t), (t, t - 1, last), 1.0, schedule)
    found, sigma = formulas.start_matched_step(*given)
    assert float(found) == pytest.approx(posterior / precision, abs=1e-9)
    assert float(sigma) == pytest.approx(1 / np.sqrt(precision), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("t_prev", [-1, 0, 120])
def test_with_a_right_pre_segmentation_it_is_the_ddim_step(eta, t_prev):
    predicted, x_t = masks(1, 1, 6, 6).double(), torch.randn(1, 1, 6, 6, dtype=torch.float64)
    found, sigma = formulas.start_matched_step(predicted, predicted, x_t, (200, t_prev, T_START), eta, SCHEDULE)
    of_start, of_state, expected = formulas.ddim_step(torch.tensor(200), torch.tensor(t_prev), SCHEDULE, eta)
    torch.testing.assert_close(found, of_start * predicted + of_state * x_t, rtol=0, atol=1e-12)
    assert float(sigma) == float(expected) and (t_prev >= 0 or torch.equal(found, predicted))


@pytest.mark.parametrize("change", [{"start": "gaussian"}, {"convention": "official"}])
def test_a_chain_that_starts_elsewhere_cannot_be_start_matched(change):
    with pytest.raises(ValueError, match="a start-matched chain starts from a pre-segmentation"):
        Chain(t_prime=300, calls=4, eta=1.0, **SHARED | change)
