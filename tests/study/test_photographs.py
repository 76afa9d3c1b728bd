"""Photographs with two classes: their own noise and cost, and scores that a brute force finds too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pdlib.data.fundus import fundus_phantom
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion
from pdlib.diffusion.schedule import build_schedule
from pdlib.inference.slices import Timed
from pdlib.paths import CONFIGS, Layout
from pdlib.study import photographs
from pdlib.study.experiment import Run, silent

DIFFUSION = Diffusion(build_schedule("cosine", steps=20, offset=0.008, max_beta=0.999), build_codec("zero_one"), "eps")
PD = Chain("preseg", "run_to_zero", 6, 2, "ddim", 1.0, "consistent")
CHAINS = {
    "segmenter": (None, 1),
    "ddpm": (replace(PD, start="gaussian", t_prime=20), 3 * 10),
    "pd_ddpm": (PD, 3 * 3 + 1),
    "addpm": (replace(PD, finish="one_step", t_stop=4), 3 * (2 + 1) + 1),
}


class Around(nn.Conv2d):
    """A network of two classes that sees a neighbourhood, and neither index nor stream."""

    def forward(self, x, *about):
        return super().forward(x)

    denoise = forward

    def modulations(self, t):
        return [torch.zeros(len(t), 1)]


@pytest.fixture(scope="module")
def eyes():
    recipe = yaml.safe_load((CONFIGS / "phantom_fundus.yaml").read_text(encoding="utf-8"))
    return fundus_phantom(cases=4, size=32, seed=1, parameters=recipe)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {name: Around(n, 2, 3, padding=1) for name, n in (("segmenter", 3), ("denoiser", 5), ("one_step", 5))}


@pytest.fixture
def run(tmp_path):
    return Run(Layout(tmp_path, "tiny", 1), 7, 5, "32-true", 4, 0.5, "soft")


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("name", CHAINS)
def test_a_photograph_s_members_depend_on_itself_alone_and_cost_what_they_call(run, eyes, networks, name):
    chain, calls = CHAINS[name]
    used = {key: one for key, one in networks.items() if name != "ddpm" or key == "denoiser"}
    shown = []
    how = {"chain": chain, "diffusion": DIFFUSION}
    all_four = photographs.photograph_members(run, used, eyes, ensemble_size=3, on_batch=shown.append, **how)
    assert all_four.values.shape == (1 if chain is None else 3, 4, 2, 32, 32)
    assert all_four.calls == calls and sum(shown) == 4 * calls
    other = replace(run, batch_size=100)
    two = photographs.photograph_members(other, used, eyes[:0:-2], ensemble_size=2, on_batch=silent, **how)
    np.testing.assert_allclose(two.values, all_four.values[:2, :0:-2], atol=1e-5)
    if chain is not None:
        first, second = all_four.values[:2, 0]
        assert np.abs(first - second).max() > 1e-3, "members have noise of their own"


@pytest.mark.parametrize("vote", ["soft", "majority"])
def test_methods_are_scored_against_the_references_of_the_raters(run, eyes, vote):
    members = np.random.default_rng(0).random((3, 4, 2, 32, 32), dtype=np.float32)
    drawn = Timed(members, 10, 0.5)
    rows = photographs.photograph_rows(replace(run, vote=vote), eyes, drawn, method="pd_ddpm", chain=PD)
    assert (rows.nfe == 10).all() and (rows.seconds == 0.5).all() and (rows.ensemble_size == 3).all()
    assert (rows.t_prime == 6).all() and (rows.fold == 1).all() and (rows.seed == 7).all()
    found = rows.pivot(index="subject", columns="metric", values="value")
    for i, eye in enumerate(eyes):
        for channel, name in enumerate(("dice_disc", "dice_cup")):
            one = members[:, i, channel]
            mask = one.mean(axis=0) >= 0.5 if vote == "soft" else (one >= 0.5).sum(axis=0) >= 2
            votes = [np.delete(eye.raters[:, channel], r, axis=0).sum(axis=0) >= 3 for r in range(6)]
            assert found.loc[eye.subject, name] == pytest.approx(np.mean([dice(mask, majority) for majority in votes]))


def test_a_rater_is_scored_against_the_other_five(run, eyes):
    rows = photographs.rater_rows(run, eyes, method="A rater").set_index(["seed", "subject", "metric"]).value
    assert len(rows) == 6 * 4 * 2
    for eye in eyes:
        for r in range(6):
            for channel, name in enumerate(("dice_disc", "dice_cup")):
                votes = sum(eye.raters[other, channel].astype(int) for other in range(6) if other != r)
                expected = dice(eye.raters[r, channel] == 1, votes >= 3)
                assert rows[r, eye.subject, name] == pytest.approx(expected)


def test_the_training_curve_is_the_mean_over_photographs_and_classes(run, eyes, networks):
    value = photographs.photograph_dice(run, networks, eyes, PD, DIFFUSION)["dice"]
    how = {"chain": PD, "diffusion": DIFFUSION, "ensemble_size": 1, "on_batch": silent}
    mask = photographs.photograph_members(run, networks, eyes, **how).values[0] >= 0.5
    scores = [dice(mask[i, c], eye.reference[c] == 1) for i, eye in enumerate(eyes) for c in range(2)]
    assert value == pytest.approx(np.mean(scores))
