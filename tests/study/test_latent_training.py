"""Latent diffusion in a run: what its cards hold, what its ceiling is measured on, and a row of Table 1 in codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHANGES, rewritten

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.latent import LatentCodec
from pdlib.diffusion.sampler import build_diffusion
from pdlib.networks.blocks import pad_to_multiple
from pdlib.profiles import load_profile
from pdlib.study import latent
from pdlib.study.comparison import Row
from pdlib.study.run import Run, diffusion_of

SAME = LatentCodec(1, 1.0, (0.0, 1.0), encoder=lambda mask: mask, decoder=lambda x: 1e3 * (x - 0.5))
SHORT = {"steps": 2, "validate_every": 2, "batch_size": 2}


@pytest.fixture
def run(trained) -> Run:
    changes = {"latent": {"autoencoder": {"fit": SHORT}, "fit": SHORT}}
    return Run.at(trained.place, load_profile("smoke", CHANGES | changes))


@pytest.fixture
def bank(run):
    bank = run.training_slices()
    latent.train_autoencoder(run, bank)
    return bank


def test_a_row_of_codes_is_sampled_and_its_calls_are_the_chain_s_and_the_auto_encoder_s(run, bank, calls):
    latent.train_denoiser(run, bank)
    row = Row.of(run, "latent", size=2)
    subject = run.subjects("test")[0]
    slices = len(np.flatnonzero(run.volume(subject).brain.any(axis=(1, 2))))
    row.starts(subject)
    calls.since()
    drawn = row.members(subject)
    assert drawn.values.shape == (2, *run.volume(subject).brain.shape)
    assert 0 <= drawn.values.min() and drawn.values.max() <= 1
    assert drawn.calls == 2 * row.calls_per_member() == 2 * (len(row.chain.indices) + 2)
    assert calls.since() == drawn.calls * slices


def test_the_cards_hold_what_rebuilds_the_chain(run, bank):
    latent.train_denoiser(run, bank)
    autoencoder, denoiser = run.weights("autoencoder"), run.weights("latent")
    codes = autoencoder.card["codes"]
    assert denoiser.card["autoencoder"] == autoencoder.digest and denoiser.card["diffusion"]["codec"] == "latent"
    diffusion = diffusion_of(denoiser, autoencoder, run.compute.device)
    assert diffusion.codec == latent.codec_of(run) and diffusion.codec.scale == codes["scale"]
    for deviation, wanted in (("unit", 1.0), ("masks", float(torch.cat([one.flatten() for one in bank.masks]).std()))):
        codec = latent.diffusion_at(run, bank, deviation).codec
        every = torch.cat([codec.encode(pad_to_multiple(mask[None], 2)).flatten() for mask in bank.masks])
        assert float(every.std()) == pytest.approx(wanted, rel=1e-4)


def test_a_training_that_has_ended_stays_as_it_is(run, bank):
    before = run.weights("autoencoder")
    latent.train_autoencoder(run, bank)
    assert run.weights("autoencoder").digest == before.digest


def test_a_denoiser_of_another_auto_encoder_s_codes_is_refused(run, bank):
    latent.train_denoiser(run, bank)
    rewritten(run.place.weights("autoencoder") / "best.safetensors", shift=0.1)
    with pytest.raises(ValueError, match=r"latent.*trained in the codes of another auto-encoder"):
        Row.of(run, "latent")


def test_an_auto_encoder_that_loses_nothing_has_no_ceiling(run):
    subjects = run.subjects("validation")
    starts = {subject: (run.volume(subject).image[0] > 1).astype(np.float32) for subject in subjects}
    found = latent.ceiling(run, SAME, starts).set_index(["subject", "mask", "beside"])
    assert len(found) == 4 * len(subjects)
    for mask, beside in (("reference, reconstructed", "the reference"), ("pre-segmentation, reconstructed", "itself")):
        assert (found.xs((mask, beside), level=("mask", "beside")) == 1).all(axis=None)
    before, after = (
        found.xs((f"pre-segmentation{how}", "the reference"), level=("mask", "beside"))
        for how in ("", ", reconstructed")
    )
    assert before.equals(after) and (before.dice < 1).all()


def test_a_start_in_codes_of_a_larger_deviation_tells_more_of_its_mask(run):
    masks = build_diffusion(**run.profile.denoiser.diffusion.arguments())
    diffusions = {
        "masks": masks,
        "same": replace(masks, codec=SAME),
        "far": replace(masks, codec=replace(SAME, scale=9.0)),
    }
    assert masks.codec == build_codec("zero_one")
    told = latent.told_by_the_start(run, diffusions, (0.1, 0.5), run.subjects("validation"))
    assert np.allclose(told.masks, told.same) and (told.far > told.masks).all()
    assert told.masks[0.5] < told.masks[0.1] < 1
