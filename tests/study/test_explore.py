"""The tour's ten lines are the sampler, and its slices are those that the networks see."""

import numpy as np
import torch

from pdlib.kernels import noise
from pdlib.study import explore
from pdlib.study.comparison import Row
from pdlib.study.pictures import WidestSlice


@torch.inference_mode()
def by_hand(sampler, image, x, gauss):
    """DDIM with its eta, in plain torch."""
    abar = torch.cat([sampler.diffusion.schedule.alphas_cumprod, torch.ones(1)])
    predict, indices = explore.x_start_predictor(sampler), sampler.chain.indices
    for t, s in zip(indices, [*indices[1:], -1], strict=True):
        x_0 = predict(image, x, t)
        eps = (x - abar[t].sqrt() * x_0) / (1 - abar[t]).sqrt()
        sigma = sampler.chain.eta * ((1 - abar[s]) / (1 - abar[t]) * (1 - abar[t] / abar[s])).sqrt()
        x = abar[s].sqrt() * x_0 + (1 - abar[s] - sigma**2).sqrt() * eps + sigma * gauss(t)
    return x


def test_ten_lines_are_the_sampler(networks):
    run = networks.run
    case = explore.middle_case(run)
    row, seen = Row.of(run, "pd_ddpm", 1), WidestSlice.of(run, case)
    preseg = seen.tensor(row.starts(case, 1).values[0])

    def gauss(step):
        return noise.normal(seen.streams, step, *preseg.shape[1:])

    for eta in (0.0, 1.0):
        sampler = explore.exact_sampler(row, case, rule="ddim", eta=eta)
        abar = sampler.diffusion.schedule.abar(sampler.chain.t_prime - 1)
        begun = abar.sqrt() * preseg + (1 - abar).sqrt() * gauss(noise.START)
        mask, calls = explore.recorded(sampler, seen, preseg)
        torch.testing.assert_close(by_hand(sampler, seen.image, begun, gauss), mask, atol=2e-6, rtol=0)
        assert [call.t - 1 for call in calls] == list(sampler.chain.indices)
        assert np.allclose(calls[0].x_t, begun[0, 0]), "the first state is the start"
        assert np.allclose(calls[-1].x_start, mask[0, 0], atol=1e-6), "the last prediction is the mask"


def test_a_result_has_the_row_s_scores_and_costs(networks):
    run = networks.run
    case = explore.middle_case(run)
    row, scene = Row.of(run, "pd_ddpm", 2), explore.scene_of(run, case)
    result = explore.result_of(row, case)
    scores = row.scores("test")
    (told,) = scores[(scores.subject == case) & (scores.metric == "dice")].to_dict("records")
    assert result.dice == told["value"] and result.calls == told["nfe"] and result.seconds == told["seconds"]
    assert result.members.shape == (2, *scene.flair.shape) and result.mask.shape == scene.reference.shape
    assert scene.reference.sum() == run.volume(case).mask.sum(), "the window holds every lesion"
    assert scene.reference[scene.place].sum() == scene.reference.sum(axis=(1, 2)).max()


def test_masks_are_diffused_with_the_same_noise(networks):
    run = networks.run
    case = explore.middle_case(run)
    row, scene, seen = Row.of(run, "pd_ddpm", 1), explore.scene_of(run, case), WidestSlice.of(run, case)
    sampler = explore.exact_sampler(row, case)
    for state in explore.diffused(scene, 0 * scene.reference, seen, sampler, [1, 3]):
        assert np.isclose(state.signal**2 + state.sigma**2, 1)
        difference = state.reference - state.preseg
        assert np.allclose(difference, state.signal * scene.reference[scene.place], atol=1e-6)


def test_ops_agree_with_their_references_on_every_size():
    trials = explore.kernel_trials([(8, 12), (9, 7)])
    assert {shape for _, shape in trials} == {"8 x 12", "9 x 7"}
    for key, trial in trials.items():
        assert trial.reference.shape == trial.chosen.shape and min(trial.reference_ms, trial.chosen_ms) > 0
        assert np.abs(trial.reference - trial.chosen).max() < 1e-5, key
