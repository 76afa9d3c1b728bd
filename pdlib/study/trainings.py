"""Trainings of a run: their cards, and what their checkpoints are chosen by."""

import torch
from torch import nn

from pdlib.diffusion.sampler import Chain, Sampler, build_diffusion
from pdlib.inference.chains import chain_of
from pdlib.methods import METHODS
from pdlib.sections.base import Section
from pdlib.sections.trainings import DenoiserTraining
from pdlib.study.run import Run
from pdlib.training.fit import Fit, Training


def training(run: Run, name: str, fit: Section, card: dict, seed: int | None = None) -> Training:
    """A training of this run, kept under its name; the best mean Dice decides which weights are the best.

    card: what the network's user needs, beside the data. seed: of weights and batches, None: the run's.
    """
    seed = run.seed if seed is None else seed
    machine = {"device": run.compute.device, "precision": run.compute.precision}
    recipe = Fit(**fit.model_dump(), seed=seed)
    card, start = card | {"data": run.data_card()}, run.begun_with(name)
    card |= {"begun_with": start.digest} if start else {}
    return Training(recipe, run.place.weights(name), card, "dice", start=start, **machine)


def seeded(build, seed: int, **network) -> nn.Module:
    """A network whose first weights depend on the seed alone."""
    torch.manual_seed(seed)
    return build(**network).to(memory_format=torch.channels_last)


def denoiser_card(run: Run, settings: DenoiserTraining, watched: list[str], chain: Chain) -> dict:
    """The card of a denoiser: how it was trained, whom and by which chain it was chosen."""
    card = {"kind": "denoiser", "network": settings.network.arguments(), "diffusion": settings.diffusion.arguments()}
    card |= {"t_max": settings.t_max, "watched": watched, "chosen_by": vars(chain)}
    return card if settings.vlb_weight is None else card | {"vlb_weight": settings.vlb_weight}


def sampling_card(run: Run) -> dict:
    """What `segment` does with a denoiser's weights: PD-DDPM as this profile has it."""
    profile = run.profile
    return {
        "presegmenter": profile.comparison.presegmenter,
        "chain": profile.chain.arguments(),
        "ensemble": profile.ensemble.arguments(),
        "voxel_tolerance": profile.voxel_tolerance,
        "batch_size": profile.machine.batch_size,
        "seed": profile.seed,
    }


def chain_while_training(run: Run, name: str, settings: DenoiserTraining, **changes) -> Chain:
    """The chain of a row on the schedule of a denoiser that is still in training."""
    return chain_of(METHODS[name], run.profile.chain, settings.diffusion.schedule.steps, **changes)


def sampler_while_training(run: Run, network: nn.Module, settings: DenoiserTraining, chain: Chain) -> Sampler:
    """A chain with a denoiser as it stands now."""
    diffusion = build_diffusion(**settings.diffusion.arguments())
    return Sampler(run.prepare(network, settings.t_max), diffusion, chain)
