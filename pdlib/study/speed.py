"""How fast this machine is at a profile: seconds of its networks' updates and calls, tried on random slices."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from pdlib.diffusion.formulas import LOGIT
from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.evaluation.metrics import score_volume
from pdlib.inference.chains import chain_of
from pdlib.inference.precision import Compute, choose_device, fast_precision
from pdlib.inference.slices import draw_slices, sample_slices, silent
from pdlib.kernels import noise
from pdlib.methods import CHAIN, METHODS
from pdlib.networks.autoencoder import MaskAutoencoder
from pdlib.networks.gan import build_generator
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.noise_level import NoiseLevel
from pdlib.networks.prepared import PreparedDenoiser
from pdlib.networks.segmenters import build_segmenter, segmentation_loss
from pdlib.profiles import Profile
from pdlib.sections.base import Section
from pdlib.sections.trainings import DenoiserTraining, Fit
from pdlib.training import fit as training
from pdlib.training import objectives
from pdlib.training.bank import Batch, SliceBank
from pdlib.training.corruption import Mixture

PATIENCE = 0.2  # seconds spent on one question, if one answer takes less
LARGE = 10_000_000  # parameters: a batch of a larger network is judged by a single image, for it may take minutes
CHAIN_CALLS = 2  # of a tried chain: the step between two calls is then a part of its price


@dataclass(frozen=True)
class Head:
    """What a subject looks like to a network: slices of the brain's window; and the grid that is scored."""

    slices: int
    height: int
    width: int
    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Trial:
    """A training that can be tried: its network, what it learns, and what it sees."""

    build: Callable[[], nn.Module]
    objective: objectives.Objective
    fit: Fit
    image: tuple[int, int, int]  # channels, height, width
    classes: int = 1
    state: bool = False  # the network sees the chain's state beside the image
    diffusion: dict | None = None  # of a denoiser

    @property
    def calls(self) -> int:
        """How often a try calls the network."""
        return 1 if self.diffusion is None else CHAIN_CALLS


def trials(profile: Profile, head: Head) -> dict[str, Trial]:
    """Every training that a profile's rows stand on, by its name, and those of ADDPM's last network and photographs."""
    found, fits, image = {}, profile.segmenters.fit, (2, head.height, head.width)
    for name in ("unet", "attention_unet", "unet_plus_plus", "bayesian_unet", "probabilistic_unet"):
        loss = objectives.build_objective(**profile.segmenters.objective_of(name).arguments())
        found[name] = Trial(_segmenter(name, profile.segmenters.network(name)), loss, fits, image)
    for name in ("denoiser", "wolleb2021"):
        found[name] = _denoiser(getattr(profile, name), image)
    diffusion = build_diffusion(**profile.denoiser.diffusion.arguments())
    steps = diffusion.schedule.steps
    t_prime = chain_of(METHODS[CHAIN], profile.chain, steps).t_prime
    game = objectives.adversarial_objective(diffusion, t_prime, profile.tdpm.mismatched_steps)
    state = profile.tdpm.network.arguments() | objectives.marginal(diffusion, t_prime - 1)
    found["tdpm"] = Trial(lambda: build_generator(**state), game, profile.tdpm.fit, image)
    stop = chain_of(METHODS["addpm"], profile.chain, steps).t_stop
    refine = profile.refine
    last = objectives.one_step_objective(diffusion, stop, False, _loss(refine.objective))
    found["refine"] = Trial(_segmenter("attention_unet", refine.network), last, refine.fit, image, state=True)
    if {"start_matched", "unmatched", "refiner"} & profile.rows:
        found |= _start_matched(profile, image)
    if "distilled" in profile.rows:
        found["student"] = _student(profile, image)
    if "latent" in profile.rows:
        found |= _codes(profile, image)
    if "noise_level" in profile.rows:
        found["noise_level"] = _levels(profile, image)
    if profile.fundus:
        found |= _photographs(profile, stop)
    return found


def _segmenter(name: str, network: Section) -> Callable[[], nn.Module]:
    return lambda: build_segmenter(name, **network.arguments())


def _loss(objective: Section) -> Callable:
    return segmentation_loss(objective.loss, **objective.arguments("name", "loss"))


def _denoiser(settings: DenoiserTraining, image: tuple[int, int, int]) -> Trial:
    diffusion = build_diffusion(**settings.diffusion.arguments())
    loss = objectives.diffusion_objective(diffusion, settings.t_max)
    if settings.vlb_weight is not None:
        loss = objectives.hybrid_objective(diffusion, settings.t_max, settings.vlb_weight)
    network = settings.network.arguments()
    return Trial(lambda: GuidedUNet(**network), loss, settings.fit, image, diffusion=settings.diffusion.arguments())


def _student(profile: Profile, image: tuple[int, int, int]) -> Trial:
    """A distilled denoiser's; the network is its own teacher here, which takes as long."""
    about = profile.denoiser.diffusion.arguments()
    diffusion, network = build_diffusion(**about), profile.denoiser.network.arguments()

    def objective(student: nn.Module, batch: Batch) -> objectives.Losses:
        loss = objectives.distillation_objective(diffusion, student, (1, 0), profile.distillation.preseg_share)
        return loss(student, replace(batch, mask=batch.mask.repeat(1, 2, 1, 1)))

    return Trial(lambda: GuidedUNet(**network), objective, profile.distillation.fit, image, diffusion=about)


def _codes(profile: Profile, image: tuple[int, int, int]) -> dict[str, Trial]:
    """Latent diffusion's: both halves of the auto-encoder, and a denoiser on the grid of its codes."""
    channels, height, width = image
    settings, kept = profile.latent, profile.latent.autoencoder
    about = profile.denoiser.diffusion.arguments() | {"prediction": settings.prediction}
    factor, diffusion = kept.network.factor, build_diffusion(**about)
    grid = (channels * factor**2, height // factor, width // factor)
    fit = settings.fit.model_copy(update={"crop": tuple(length // factor for length in settings.fit.crop)})
    loss = objectives.diffusion_objective(diffusion, diffusion.schedule.steps)
    build, classes = lambda: GuidedUNet(**settings.network.arguments()), kept.network.latent_channels
    whole = objectives.reconstruction_objective(kept.positive_weight)
    masks = (kept.network.classes, height, width)
    return {
        "autoencoder": Trial(lambda: _Seen(MaskAutoencoder(**kept.network.arguments())), whole, kept.fit, masks),
        "latent": Trial(build, loss, fit, grid, classes, diffusion=about),
    }


def _levels(profile: Profile, image: tuple[int, int, int]) -> Trial:
    diffusion, settings = build_diffusion(**profile.denoiser.diffusion.arguments()), profile.noise_level
    t_prime = chain_of(METHODS["noise_level"], profile.chain, diffusion.schedule.steps).t_prime
    loss = objectives.noise_level_objective(diffusion, t_prime)
    return Trial(lambda: NoiseLevel(**settings.network.arguments()), loss, settings.fit, image, state=True)


def _start_matched(profile: Profile, image: tuple[int, int, int]) -> dict[str, Trial]:
    """The denoiser's and its controls'; where there is a pre-segmentation, it is the last channel of their image."""
    settings, channels = profile.start_matched, image[0]
    about = profile.denoiser.diffusion.arguments()  # a chain with the plain rule takes as long
    diffusion, mixture = build_diffusion(**about | {"prediction": LOGIT}), Mixture(**settings.presegs.arguments())
    t_start = chain_of(METHODS["start_matched"], profile.chain, diffusion.schedule.steps).t_prime - 1

    def alike(objective: objectives.Objective) -> objectives.Objective:
        """With the reference as its pre-segmentation, which takes as long."""
        return lambda network, batch: objective(
            network, replace(batch, image=batch.image[:, :channels], mask=batch.mask.repeat(1, 2, 1, 1))
        )

    matched = alike(objectives.start_matched_objective(diffusion, t_start, mixture))
    refined = alike(objectives.refiner_objective(diffusion, mixture, _loss(profile.segmenters.objective)))
    build, seen = lambda: GuidedUNet(**settings.network.arguments()), (channels + 1, *image[1:])
    refiner, smaller = settings.refiner, settings.network.arguments() | {"in_channels": channels + 1}
    plain = objectives.diffusion_objective(diffusion, t_start + 1)
    return {
        "start_matched": Trial(build, matched, settings.fit, seen, diffusion=about),
        "unmatched": Trial(lambda: GuidedUNet(**smaller), plain, settings.fit, image, diffusion=about),
        "refiner": Trial(_segmenter("attention_unet", refiner.network), refined, refiner.fit, seen),
    }


def _photographs(profile: Profile, stop: int) -> dict[str, Trial]:
    fundus, about = profile.fundus, profile.denoiser.diffusion.arguments()
    diffusion, loss = build_diffusion(**about), _loss(fundus.objective)
    image, classes = (fundus.segmenter.in_channels, fundus.size, fundus.size), fundus.segmenter.out_channels
    learns = {
        "segmenter": objectives.segmentation_objective(loss),
        "denoiser": objectives.diffusion_objective(diffusion, diffusion.schedule.steps),
        "refine": objectives.one_step_objective(diffusion, stop, False, loss),
    }
    return {
        "fundus_segmenter": Trial(
            _segmenter("attention_unet", fundus.segmenter), learns["segmenter"], fundus.fit, image, classes
        ),
        "fundus_denoiser": Trial(
            lambda: GuidedUNet(**fundus.denoiser.arguments()),
            learns["denoiser"],
            fundus.fit,
            image,
            classes,
            diffusion=about,
        ),
        "fundus_refine": Trial(
            _segmenter("attention_unet", fundus.refine), learns["refine"], fundus.fit, image, classes, state=True
        ),
    }


def compute_of(profile: Profile) -> Compute:
    """What this machine would decide for a run of the profile."""
    device, machine = choose_device(profile.machine.device), profile.machine
    precision = fast_precision(device) if machine.precision == "auto" else machine.precision
    return Compute(device, precision, machine.batch_size)


def measure(profile: Profile, head: Head, units: Iterable[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Seconds of each unit: ("update", training) of a batch, ("call", training) of a slice, ("score", "") of a mask."""
    compute, known, prices = compute_of(profile), trials(profile, head), {}
    for kind, name in sorted(set(units)):
        if kind == "update":
            prices[kind, name] = seconds_of_update(known[name], compute)
        elif kind == "call":
            prices[kind, name] = seconds_of_call(known[name], compute, head.slices)
        elif kind == "score":
            prices[kind, name] = seconds_of_score(head)
    return prices


def updates(trial: Trial, network: nn.Module, compute: Compute) -> Callable[[int], Callable[[], None]]:
    """Batch size -> what makes one update of a training, on random slices."""
    size = trial.image[1:]
    bank = SliceBank([torch.rand(trial.image)], [torch.ones(trial.classes, *size)]).to(compute.device)

    def update(batch_size: int) -> Callable[[], None]:
        fit = training.Fit(**trial.fit.model_dump() | {"batch_size": batch_size}, seed=0)
        learner = training.Learner(network, fit, compute.device, compute.precision)
        return lambda: training.update(learner, trial.objective, bank.draw(0, fit))

    return update


def calls(trial: Trial, network: nn.Module, compute: Compute) -> Callable[[int], Callable[[], None]]:
    """How many slices -> what calls a network on random ones; a denoiser CHAIN_CALLS times, with its steps."""
    channels, height, width = trial.image
    network = network.to(compute.device, memory_format=torch.channels_last).eval().requires_grad_(False)
    sampler = None
    if trial.diffusion is not None:
        diffusion = build_diffusion(**trial.diffusion)
        steps = diffusion.schedule.steps
        chain = Chain("gaussian", "run_to_zero", steps, CHAIN_CALLS, "ddim", 1.0, "consistent")
        sampler = Sampler(PreparedDenoiser(network, steps, compute.precision), diffusion, chain)

    def call(batch_size: int) -> Callable[[], None]:
        image = torch.rand(batch_size, channels + (trial.classes if trial.state else 0), height, width)
        numbers = torch.arange(batch_size)
        streams = noise.subject_streams(0, "tried", numbers, torch.zeros_like(numbers))
        if sampler is None:
            asked = _Seen(network) if trial.state else network
            return lambda: draw_slices(asked, image, streams, compute, silent)
        start, several = torch.zeros(1, batch_size, trial.classes, height, width), streams[None]
        return lambda: sample_slices(sampler, image, start, several, compute, silent)

    return call


def seconds_of_update(trial: Trial, compute: Compute) -> float:
    """One update of a training in its own batch size."""
    network = trial.build().to(memory_format=torch.channels_last)
    return _by_batch(updates(trial, network, compute), trial.fit.batch_size, network, compute.device)


def seconds_of_call(trial: Trial, compute: Compute, slices: int) -> float:
    """One call of a network on one slice, in batches such as a run makes; a denoiser's with its step down the chain."""
    network, size = trial.build(), min(compute.batch_size, slices)
    return _by_batch(calls(trial, network, compute), size, network, compute.device) / size / trial.calls


class _Seen(nn.Module):
    """A network that sees one thing alone, asked as a segmenter is."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, streams: noise.Streams | None = None) -> torch.Tensor:
        return self.network(image)


def seconds_of_score(head: Head) -> float:
    """All scores of a mask of a few lesions."""
    place = np.indices(head.grid)
    labels = (place % 20 < 3).all(axis=0).astype(np.uint8)
    mask = (place % 20 < 2).all(axis=0)
    return _seconds(lambda: score_volume(labels, mask, head.spacing_mm), torch.device("cpu"))


def _by_batch(make: Callable[[int], Callable], size: int, network: nn.Module, device: torch.device) -> float:
    """Seconds of a batch of this size; of a large network those of one image, times the size."""
    large = device.type == "cpu" and sum(one.numel() for one in network.parameters()) > LARGE
    return size * _seconds(make(1), device) if large else _seconds(make(size), device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Mean seconds of a run after a first one; of the first itself where it alone takes longer than the patience."""
    first = _timed(run, device)
    if first > 5 * PATIENCE:
        return first
    spent, times = 0.0, 0
    while spent < PATIENCE:
        spent, times = spent + _timed(run, device), times + 1
    return spent / times


def _timed(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
