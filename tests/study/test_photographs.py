"""Photographs with two classes: their own noise and cost, and scores that a brute force finds too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import CHANGES
from torch import nn

from pdlib.data.fundus import fundus_phantom
from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.sampler import Chain, Diffusion
from pdlib.diffusion.schedule import build_schedule
from pdlib.evaluation import records
from pdlib.inference.precision import Compute
from pdlib.inference.slices import Timed
from pdlib.paths import CONFIGS, Layout
from pdlib.profiles import load_profile
from pdlib.study import photographs
from pdlib.study.photographs import EyeNetworks, Eyes
from pdlib.study.run import Run

DIFFUSION = Diffusion(build_schedule("cosine", steps=20, offset=0.008, max_beta=0.999), build_codec("zero_one"), "eps")
PD = Chain("preseg", "run_to_zero", 6, 3, "ddim", 1.0, "consistent")
CHAINS = {
    "segmenter": (None, 1),
    "ddpm": (replace(PD, start="gaussian", t_prime=20, calls=10), 3 * 10),
    "pd_ddpm": (PD, 3 * 3 + 1),
    "addpm": (replace(PD, finish="one_step", t_stop=4, calls=2), 3 * (2 + 1) + 1),
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
    made = {name: Around(n, 2, 3, padding=1) for name, n in (("segmenter", 3), ("denoiser", 5), ("refine", 5))}
    return EyeNetworks(DIFFUSION, **made)


@pytest.fixture
def run(tmp_path):
    profile = load_profile("smoke", CHANGES | {"seed": 7})
    return Run(
        profile,
        Layout(tmp_path, "tiny", 1),
        {"fingerprint": "a", "phantom": False},
        Compute(torch.device("cpu"), "32-true", 5),
    )


def voting(run, vote):
    ensemble = run.profile.ensemble.model_copy(update={"vote": vote})
    return replace(run, profile=run.profile.model_copy(update={"ensemble": ensemble}))


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("name", CHAINS)
def test_a_photograph_s_members_depend_on_itself_alone_and_cost_what_they_call(run, eyes, networks, name):
    chain, calls = CHAINS[name]
    used = EyeNetworks(DIFFUSION, denoiser=networks.denoiser) if name == "ddpm" else networks
    shown = []
    all_four = photographs.photograph_members(run, used, eyes, chain, 3, shown.append)
    assert all_four.values.shape == (1 if chain is None else 3, 4, 2, 32, 32)
    assert all_four.calls == calls and sum(shown) == 4 * calls
    other = replace(run, compute=replace(run.compute, batch_size=100))
    two = photographs.photograph_members(other, used, eyes[:0:-2], chain, 2)
    np.testing.assert_allclose(two.values, all_four.values[:2, :0:-2], atol=1e-5)
    if chain is not None:
        first, second = all_four.values[:2, 0]
        assert np.abs(first - second).max() > 1e-3, "members have noise of their own"


@pytest.mark.parametrize("vote", ["soft", "majority"])
def test_methods_are_scored_against_the_references_of_the_raters(run, eyes, vote):
    members = np.random.default_rng(0).random((3, 4, 2, 32, 32), dtype=np.float32)
    rows = photographs.photograph_rows(voting(run, vote), eyes, Timed(members, 10, 0.5), "pd_ddpm", PD)
    assert (rows.nfe == 10).all() and (rows.seconds == 0.5).all() and (rows.ensemble_size == 3).all()
    assert (rows.fold == 1).all() and (rows.seed == 7).all() and list(rows.columns) == list(records.COLUMNS)
    found = rows.pivot(index="subject", columns="metric", values="value")
    for i, eye in enumerate(eyes):
        for channel, name in enumerate(("dice_disc", "dice_cup")):
            one = members[:, i, channel]
            mask = one.mean(axis=0) >= 0.5 if vote == "soft" else (one >= 0.5).sum(axis=0) >= 2
            votes = [np.delete(eye.raters[:, channel], r, axis=0).sum(axis=0) >= 3 for r in range(6)]
            assert found.loc[eye.subject, name] == pytest.approx(np.mean([dice(mask, majority) for majority in votes]))


def test_scores_say_by_which_chain(run, eyes, networks):
    drawn = {name: Timed(np.zeros((1, 4, 2, 32, 32), np.float32), 1, 0.0) for name in CHAINS}
    chains = {name: chain for name, (chain, _) in CHAINS.items()}
    rows = photographs.write_scores(run, Eyes(eyes[:1], eyes[:1], eyes), drawn, chains)
    assert (run.place.results / "fundus_scores.csv").exists() and set(rows.method) == {*CHAINS, "rater"}
    about = rows.drop_duplicates("method").set_index("method")[["start", "rule", "calls", "t_prime", "t_stop"]]
    assert about.loc["addpm"].tolist() == ["best", "ddim_eta_1", 2, 6, 4]
    assert about.loc["ddpm"].tolist()[:4] == ["noise", "ddim_eta_1", 10, 20]
    assert (about.loc[["segmenter", "rater"], ["start", "rule"]] == "").all(axis=None)
    assert about.loc[["segmenter", "rater"], ["calls", "t_prime", "t_stop"]].isna().all(axis=None)
    stamp = records.read_stamp(run.place.results / "fundus_scores.csv")
    assert stamp["phantom"] is True and stamp["data_fingerprint"] != "a", "photographs are a phantom's"


def test_a_rater_is_scored_against_the_other_five(run, eyes):
    rows = photographs.rater_rows(run, eyes, method="rater").set_index(["subject", "metric"]).value
    assert len(rows) == 4 * 2
    for eye in eyes:
        for channel, name in enumerate(("dice_disc", "dice_cup")):
            drawn = [one[channel].astype(int) for one in eye.raters]
            expected = [dice(drawn[r] == 1, sum(drawn) - drawn[r] >= 3) for r in range(6)]
            assert rows[eye.subject, name] == pytest.approx(np.mean(expected))


def test_the_training_curve_is_the_mean_over_photographs_and_classes(run, eyes, networks):
    value = photographs.photograph_dice(run, networks, eyes, PD)["dice"]
    mask = photographs.photograph_members(run, networks, eyes, PD, 1).values[0] >= 0.5
    scores = [dice(mask[i, c], eye.reference[c] == 1) for i, eye in enumerate(eyes) for c in range(2)]
    assert value == pytest.approx(np.mean(scores))


def test_the_profile_s_photographs_and_chains(run):
    fundus, eyes, chains = run.profile.fundus, Eyes.of(run), photographs.eye_chains(run)
    split = [{eye.subject for eye in part} for part in (eyes.train, eyes.validation, eyes.test)]
    assert [len(part) for part in split] == [fundus.cases - 2 * fundus.held_out, fundus.held_out, fundus.held_out]
    assert len(set.union(*split)) == fundus.cases
    assert chains.pop("attention_unet") is None
    assert {name: (chain.start, chain.t_prime, chain.t_stop) for name, chain in chains.items()} == {
        "ddpm": ("gaussian", 10, 0),
        "pd_ddpm": ("preseg", 4, 0),
        "addpm": ("preseg", 4, 2),
    }


def test_one_answer_whatever_the_image_by_hand(eyes):
    """What more than half of the training references hold, against each test reference."""
    usual = sum(eye.reference.astype(int) for eye in eyes[:3]) >= 2
    expected = [np.mean([dice(usual[c], eye.reference[c] == 1) for eye in eyes[3:]]) for c in range(2)]
    np.testing.assert_allclose(photographs.blind_dice(Eyes(eyes[:3], (), eyes[3:])), expected)
