"""ADDPM's last networks: one for each place to stop, chosen by the Dice of the whole chain."""

from collections.abc import Sequence

import pandas as pd
from torch import nn

from pdlib.diffusion.sampler import Sampler
from pdlib.inference.slices import Refine
from pdlib.methods import CHAIN, refine_name
from pdlib.networks.segmenters import build_segmenter, segmentation_loss
from pdlib.study.comparison import Row
from pdlib.study.run import Run, diffusion_of
from pdlib.study.trainings import chain_while_training, seeded, training
from pdlib.study.validation import mean_dice, sampled_dice
from pdlib.training.fit import fit_network
from pdlib.training.objectives import one_step_objective


def variants(run: Run) -> dict[str, tuple[int, bool]]:
    """The networks that a profile needs, by the name of their training: t_stop, and whether it sees the state alone."""
    profile = run.profile
    needed = {refine_name(stop, False): (stop, False) for stop in profile.truncation.t_stops}
    if "addpm_mask_only" in {*profile.comparison.methods, *profile.truncation.methods}:
        needed[refine_name(profile.chain.t_stop, True)] = (profile.chain.t_stop, True)
    return needed


def train_refine(run: Run, t_stop: int, mask_only: bool) -> pd.DataFrame:
    """Train the network that goes on where ADDPM stops; t_stop is the paper's. Returns its history.

    It is chosen by the Dice of one member of Table 1's chain, with this stop, on a few validation subjects.
    """
    settings, row = run.profile.refine, Row.of(run, CHAIN, size=1)
    denoiser, diffusion = row.first.trained.denoiser, diffusion_of(row.first.trained.denoiser)
    stride = run.profile.truncation.stride
    chain = chain_while_training(run, "addpm", run.profile.denoiser, t_stop=t_stop, stride=stride)
    watched = run.spread("validation", settings.validation_subjects)
    network = {"name": "attention_unet", **settings.network.arguments()}
    if mask_only:
        network["in_channels"] = network["out_channels"]
    objective = settings.objective.arguments("name")
    card = {"kind": "one_step", "network": network, "objective": objective, "t_stop": chain.t_stop}
    card |= {"mask_only": mask_only, "chosen_by": vars(chain), "watched": watched}
    card |= {"denoiser": denoiser.digest, "preseg": row.first.source.digest}

    begun = {subject: row.starts(subject).values[0] for subject in watched}

    def watch(average: nn.Module) -> dict[str, float]:
        sampler = Sampler(run.denoiser(denoiser), diffusion, chain, Refine(average, chain.t_stop, mask_only))
        return sampled_dice(run, sampler, watched, begun.get)

    loss = segmentation_loss(objective.pop("loss"), **objective)
    return fit_network(
        seeded(build_segmenter, run.seed, **network),
        one_step_objective(diffusion, chain.t_stop, mask_only, loss),
        run.training_slices(),
        watch,
        training(run, refine_name(t_stop, mask_only), settings.fit, card),
    )


def everything_dice(run: Run, subjects: Sequence[str]) -> float:
    """The mean Dice of calling the whole brain a lesion: what a network has to be far above."""
    return mean_dice(run, subjects, (run.volume(subject).brain.astype(float) for subject in subjects))
