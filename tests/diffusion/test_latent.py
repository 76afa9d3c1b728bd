"""The chain of codes against the chain of masks, an oracle, and the numbers that its card has to hold."""

from dataclasses import replace

import pytest
import torch

from pdlib.diffusion.codec import build_codec
from pdlib.diffusion.latent import LatentCodec, latent_codec, latent_diffusion, measure_codes
from pdlib.diffusion.sampler import Chain, Diffusion, Sampler
from pdlib.diffusion.schedule import build_schedule
from pdlib.kernels import noise
from pdlib.networks.autoencoder import MaskAutoencoder

COSINE = {"name": "cosine", "steps": 100, "offset": 0.008, "max_beta": 0.999}
SCHEDULE = build_schedule(**COSINE)
PIXELS = build_codec("zero_one")
SAME = LatentCodec(1, 1.0, PIXELS.clamp, encoder=lambda mask: mask, decoder=torch.logit)
PD = Chain("preseg", "run_to_zero", 30, 30, "ddpm", 1.0, "consistent")


def streams(rows):
    return noise.subject_streams(0, "a", torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def masks(rows, channels=1):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 16, 8, generator=rng), (torch.rand(rows, channels, 16, 8, generator=rng) < 0.3).float()


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    network = MaskAutoencoder(classes=1, factor=2, latent_channels=4, channels=[8, 8])
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    "chain",
    [
        PD,
        replace(PD, calls=5, rule="ddim", eta=0.5),
        replace(PD, calls=5, rule="dpm_solver"),
        replace(PD, start="gaussian", t_prime=100, calls=10),
        replace(PD, finish="x0_jump", calls=1),
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_start"])
def test_codes_that_are_masks_make_the_chain_of_masks(chain, prediction):
    image, mask = masks(3, channels=2)

    def network(x, t):
        return 0.3 * x[:, 2:] + 0.1 * torch.sin(3 * x[:, 2:]) + 0.05 * x[:, :1] + 0.001 * t.reshape(-1, 1, 1, 1)

    one, other = (
        Sampler(network, Diffusion(SCHEDULE, codec, prediction), chain).sample(image, mask, streams(3))
        for codec in (PIXELS, SAME)
    )
    assert other.shape == mask.shape and (one - other).abs().max() < 1e-6
    assert one.std() > 0.01


@pytest.mark.parametrize("rule", ["ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize("calls", [1, 4, 30])
def test_an_oracle_ends_in_the_decoded_reference_from_any_start(autoencoder, rule, calls):
    image, reference = masks(2)
    codec = latent_codec(autoencoder, **measure_codes(autoencoder, reference, 1.0))
    seen = []

    def oracle(x, t):
        seen.append(x)
        return codec.encode(reference)

    chain = replace(PD, rule=rule, calls=calls)
    sampler = Sampler(oracle, Diffusion(SCHEDULE, codec, "x_start"), chain)
    assert torch.equal(sampler.sample(image, 1 - reference, streams(2)), codec.decode(codec.encode(reference)))
    assert len(seen) == calls and seen[0].shape == (2, 2 * 4 + 4, 8, 4)


def test_the_start_is_the_diffused_code_of_the_pre_segmentation_and_nothing_of_the_image_is_lost(autoencoder):
    image, preseg = masks(2)
    codec, seen = latent_codec(autoencoder, 3.0, (-9.0, 9.0)), []

    def network(x, t):
        seen.append(x.clone())
        return x[:, -4:]

    Sampler(network, Diffusion(SCHEDULE, codec, "x_start"), replace(PD, calls=1)).sample(image, preseg, streams(2))
    begun, x_t = seen[0].tensor_split([8], dim=1)
    assert torch.equal(torch.nn.functional.pixel_shuffle(begun, 2), image)
    fresh = noise.normal(streams(2), noise.START, 4, 8, 4)
    abar = SCHEDULE.abar(29)
    expected = abar.sqrt() * 3 * autoencoder.encoder(preseg) + (1 - abar).sqrt() * fresh
    assert torch.allclose(x_t, expected.float(), atol=1e-6)


@pytest.mark.parametrize("deviation", [1.0, 0.1])
def test_the_codes_of_the_training_masks_have_the_deviation_asked_for_and_their_range(autoencoder, deviation):
    measured = measure_codes(autoencoder, masks(6)[1], deviation)
    codes = latent_codec(autoencoder, **measured).encode(masks(6)[1])
    assert float(codes.std()) == pytest.approx(deviation, rel=1e-5)
    assert [float(codes.min()), float(codes.max())] == pytest.approx(measured["clamp"], rel=1e-5)


def test_a_card_and_a_network_make_a_diffusion(autoencoder):
    card = {"schedule": COSINE, "codec": "latent", "prediction": "v", "scale": 3.0, "clamp": [-2.0, 5.0]}
    diffusion, mask = latent_diffusion(card, autoencoder), masks(1)[1]
    assert diffusion.prediction == "v" and diffusion.schedule.steps == 100 and diffusion.codec.clamp == (-2.0, 5.0)
    assert torch.allclose(diffusion.codec.encode(mask), 3 * autoencoder.encoder(mask))
    assert torch.allclose(diffusion.codec.decode(diffusion.codec.encode(mask)), autoencoder(mask).sigmoid(), atol=1e-6)


@pytest.mark.parametrize("shape", [(15, 8), (16, 7)])
def test_images_that_the_factor_does_not_divide_are_refused(autoencoder, shape):
    codec = latent_codec(autoencoder, 1.0, (-1.0, 1.0))
    for call, channels in ((codec.encode, 1), (codec.image, 2)):
        with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]} pixels: pad it to a multiple of 2"):
            call(torch.zeros(1, channels, *shape))
