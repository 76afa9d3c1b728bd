"""Train one network of a profile, data-parallel on as many processes as `fabric run` begins.

fabric run --accelerator cuda --devices 4 pdlib/study/train.py denoiser_0 paper [--fold K] [--out FOLDER]

A network is that of a notebook's job: `attention_unet_0` of 02, `denoiser_0` of 03. It is the notebook's own training:
the same recipe in the same folder, so that the graph goes on from it, and it from what the graph has begun.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import nn

from pdlib.diffusion.sampler import build_diffusion
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.segmenters import build_segmenter
from pdlib.sections.base import Presegmenter
from pdlib.study import trainings
from pdlib.study.run import Run
from pdlib.study.validation import sampled_dice, segmenter_dice
from pdlib.training.fit import Training, Validate, fit_network
from pdlib.training.objectives import Objective, build_objective, diffusion_objective


@dataclass(frozen=True)
class Planned:
    """What `fit_network` wants beside the slices."""

    network: nn.Module
    objective: Objective
    validate: Validate
    training: Training


def plan_denoiser(run: Run, kind: str, seed: int) -> Planned:
    """The training of notebook 03."""
    settings = run.profile.denoiser
    diffusion = build_diffusion(**settings.diffusion.arguments())
    watched = run.spread("validation", settings.validation_subjects)
    chain = trainings.chain_while_training(run, "ddpm", settings)
    card = trainings.denoiser_card(run, settings, watched, chain) | {"sampling": trainings.sampling_card(run)}

    def validate(average: nn.Module) -> dict[str, float]:
        return sampled_dice(run, trainings.sampler_while_training(run, average, settings, chain), watched)

    recipe = trainings.training(run, f"{kind}_{seed}", settings.fit, card, seed)
    network = trainings.seeded(GuidedUNet, seed, **settings.network.arguments())
    objective = diffusion_objective(diffusion, settings.t_max)
    return Planned(network, objective, validate, recipe)


def plan_segmenter(run: Run, architecture: str, seed: int) -> Planned:
    """A training of notebook 02."""
    segmenters = run.profile.segmenters
    network = {"name": architecture, **segmenters.network(architecture).arguments()}
    objective = segmenters.objective_of(architecture).arguments()
    card = {"kind": "segmenter", "network": network, "objective": objective}
    recipe = trainings.training(run, f"{architecture}_{seed}", segmenters.fit, card, seed)
    model = trainings.seeded(build_segmenter, seed, **network)
    return Planned(model, build_objective(**objective), lambda average: segmenter_dice(run, average), recipe)


def train(name: str, profile: str, fold: int | None, out: str) -> None:
    """Train a network, or go on with it. ValueError for a name that is no network's."""
    kind, _, seed = name.rpartition("_")
    known = ("denoiser", *get_args(Presegmenter))
    if kind not in known or not seed.isdecimal():
        raise ValueError(f"{name}: should be one of {', '.join(known)}, with _ and a seed: denoiser_0")
    notebook, plan = ("03_train_ddpm", plan_denoiser) if kind == "denoiser" else ("02_train_segmenters", plan_segmenter)
    run = Run.open(notebook, profile, fold, out)
    planned = plan(run, kind, int(seed))
    fit_network(planned.network, planned.objective, run.training_slices(), planned.validate, planned.training)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the command line names; one line and code 2 where it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="denoiser_0, attention_unet_0, ...")
    parser.add_argument("profile", metavar="PROFILE")
    parser.add_argument("--fold", type=int, help="the test fold (default: the profile's)")
    parser.add_argument("--out", default="", metavar="FOLDER", help="the output root (default: the repository)")
    try:
        train(**vars(parser.parse_args(argv)))
    except (ValueError, OSError, MemoryError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
