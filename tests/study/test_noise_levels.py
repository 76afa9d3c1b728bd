"""How well levels are read, and chains that follow them, with the networks of a run."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DIFFUSION

from pdlib.networks.noise_level import NoiseLevel
from pdlib.study.comparison import Row
from pdlib.study.levels import LevelledChains, background, estimated_levels, level_errors, told_apart
from pdlib.study.run import diffusion_of
from pdlib.training.weights import write_weights

NETWORK = {"in_channels": 3, "channels": [4, 4, 4, 4]}


def write_levels(run, t_max=4):
    torch.manual_seed(0)
    card = {"kind": "noise_level", "network": NETWORK, "data": run.data_card(), "t_max": t_max, "finished": True}
    path = run.place.weights("noise_level") / "best.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_weights(path, NoiseLevel(**NETWORK).state_dict(), card | {"diffusion": DIFFUSION})


def test_an_estimator_is_shown_both_masks_under_the_same_noise(trained):
    run, shown = trained.run, []
    diffusion = diffusion_of(run.weights("denoiser_0"))

    def true(x):
        shown.append(x)
        return diffusion.schedule.abar(2).expand(len(x)).float()

    found = estimated_levels(run, diffusion, {"true": true}, [2])
    assert (found["index"] == 2).all() and np.allclose(found.log_noise, found.true_log_noise, atol=1e-5)
    signal = diffusion.schedule.abar(2).sqrt()
    masks = found[found["mask"] == "pre-segmentation"]
    changed = sum(int((one[:, 2:] - other[:, 2:]).abs().gt(float(signal) / 2).sum()) for one, other in pairs(shown))
    assert changed == masks.wrong.sum() > 0, "the states differ where the masks do, and nowhere else"
    assert {*found.subject} == {*run.subjects("validation")}


def pairs(items):
    return zip(items[::2], items[1::2], strict=True)


def test_errors_and_differences_are_those_of_the_numbers_given():
    found = pd.DataFrame(
        {
            "estimator": "one",
            "subject": "a",
            "slice": [0, 1, 2] * 2,
            "t": [3, 5, 7] * 2,
            "mask": ["reference"] * 3 + ["pre-segmentation"] * 3,
            "pixels": [4, 4, 4, 6, 4, 2],
            "wrong": [0, 0, 0, 2, 0, 4],
            "index": [3, 6, 5, 5, 6, 3],
            "log_noise": [-3.0, -2.0, -1.0, -2.8, -2.0, -1.2],
            "true_log_noise": [-3.0, -2.0, -1.0] * 2,
        }
    )
    errors = level_errors(found).loc[("one", "reference")]
    assert errors["mean error"] == pytest.approx(-1 / 3) and errors["absolute error"] == pytest.approx(1)
    assert errors.correlation == pytest.approx(1) and errors.exact == pytest.approx(1 / 3)
    told = told_apart(found).loc["one"]
    assert told["mean difference"] == pytest.approx(0) and told.deviation == pytest.approx(np.sqrt(8 / 3))
    assert told["correlation with added pixels"] == pytest.approx(1)
    assert told["correlation with wrong pixels"] == pytest.approx(np.corrcoef([0.2, 0, -0.2], [2, 0, 4])[0, 1])


def test_a_row_follows_its_network_and_counts_what_it_asks(trained, calls):
    run = trained.run
    write_levels(run)
    row = Row.of(run, "noise_level", size=2, calls=3)
    subject = run.subjects("test")[0]
    row.starts(subject)  # kept, by this call or an earlier one
    calls.since()
    drawn = row.members(subject)
    assert drawn.calls == 2 * row.calls_per_member() == 2 * (3 + 3)
    slices = int(run.volume(subject).brain.any(axis=(1, 2)).sum())
    assert calls.since() == 12 * slices
    assert row.about["rule"] == "noise_level" and row.about["calls"] == 3
    write_levels(run, t_max=3)
    with pytest.raises(ValueError, match=r"noise_level/best.* trained on 3 steps, and T' is 4"):
        Row.of(run, "noise_level", calls=3)


def test_a_plan_is_ddim_and_the_background_starts_where_the_start_was_diffused_to(trained):
    run = trained.run
    chains = LevelledChains(Row.of(run, "pd_ddpm", size=1), {"plan": None, "closed form": background})
    subject = run.subjects("validation")[0]
    assert {tuple(one) for one in chains.visited("plan", 2, subject)} == {(3, 0)}
    visited = chains.visited("closed form", 2, subject)
    assert visited.shape[1] == 2 and (visited[:, 0] > visited[:, 1]).all() and np.median(visited[:, 0]) >= 2
    dice = chains.dice([1, 2], index=1)
    assert len(dice) == 2 * 2 * len(run.subjects("validation")) and dice.dice.between(0, 1).all()
