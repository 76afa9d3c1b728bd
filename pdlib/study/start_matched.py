"""Start-matched PD-DDPM: two half pre-segmenters, the pre-segmentations to train on, the denoiser and its controls."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn

from pdlib.diffusion.formulas import LOGIT, q_sample_start
from pdlib.diffusion.sampler import Sampler, build_diffusion
from pdlib.diffusion.schedule import scale_t_prime
from pdlib.evaluation import records
from pdlib.inference.chains import chain_of
from pdlib.inference.slices import Refine
from pdlib.methods import METHODS, seeded_name
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.segmenters import build_segmenter, segmentation_loss
from pdlib.paths import ROOT, Layout
from pdlib.sections.trainings import DenoiserTraining
from pdlib.study import trainings
from pdlib.study.comparison import Row
from pdlib.study.explore import exact_sampler, x_start_predictor
from pdlib.study.members import starts
from pdlib.study.run import Run
from pdlib.study.validation import sampled_dice, segmenter_dice
from pdlib.training.bank import SliceBank
from pdlib.training.corruption import Mixture
from pdlib.training.fit import fit_network
from pdlib.training.objectives import (
    build_objective,
    diffusion_objective,
    refiner_objective,
    start_matched_objective,
)

HALVES = (0, 1)
REFINER = "refiner"
UNMATCHED = "unmatched"
KINDS = ("background", "extra", "missed", "hit")  # of a pixel: 2 in the reference + 1 in the pre-segmentation


def half_of(run: Run, half: int) -> list[str]:
    """Half of the training subjects: those of a site in order of lesion volume, dealt in pairs of alternating order."""
    subjects = pd.DataFrame({"subject": run.subjects("train")})
    subjects["site"] = [run.site(subject) for subject in subjects.subject]
    subjects["lesion_ml"] = [run.volume(subject).lesion_ml for subject in subjects.subject]
    ordered = subjects.sort_values(["site", "lesion_ml", "subject"], ignore_index=True)
    place = ordered.groupby("site").cumcount()  # 0 1 1 0 0 1 1 0 ...
    return sorted(ordered.subject[(place + place // 2) % 2 == half])


def half_name(run: Run, half: int) -> str:
    """The training of a half's pre-segmenter."""
    return f"{run.profile.comparison.presegmenter}_half_{half}"


def train_half(run: Run, half: int) -> pd.DataFrame:
    """Train the pre-segmenter on half of the training subjects, chosen as the whole one is; returns its history."""
    segmenters, name = run.profile.segmenters, run.profile.comparison.presegmenter
    network = {"name": name, **segmenters.network(name).arguments()}
    objective, subjects = segmenters.objective_of(name).arguments(), half_of(run, half)
    card = {"kind": "segmenter", "network": network, "objective": objective, "half": subjects}
    return fit_network(
        trainings.seeded(build_segmenter, run.seed, **network),
        build_objective(**objective),
        run.training_slices(subjects),
        lambda average: segmenter_dice(run, average),
        trainings.training(run, half_name(run, half), run.profile.start_matched.halves, card),
    )


def out_of_fold(run: Run, seen: bool = False) -> dict[str, np.ndarray]:
    """The hard pre-segmentation [Z, Y, X] of each training subject by the half network that has not seen it.

    seen: by the one that has, to tell how much is learnt by heart. ValueError where both have seen a subject.
    """
    halves = [run.weights(half_name(run, half)) for half in HALVES]
    found = {}
    for subject in run.subjects("train"):
        fit = [half for half in halves if (subject in half.card["half"]) == seen]
        if len(fit) != 1:
            raise ValueError(f"{subject}: both of {halves[0].path} and {halves[1].path} were trained on it")
        found[subject] = starts(run, fit[0], subject, 1).values[0]
    return found


@torch.inference_mode()
def mismatch(row: Row) -> pd.DataFrame:
    """What a chain's network meets at its start: in training diffused references, in sampling diffused starts.

    row: PD-DDPM's; reference and start [N, 1, H, W] of a subject have the same noise. A row for each kind of pixel, by
    what the start makes of it: "hit", "missed", "extra", "background", in the brains of the validation subjects.
    Columns: the means of the state and of the x_start that the network predicts from it, in training and in sampling,
    and how many deviations of the noise the two states lie apart.
    """
    run, chain = row.run, row.chain
    index, parts = chain.t_prime - 1, []
    for subject in run.subjects("validation"):
        sampler, one = exact_sampler(row, subject), run.subject(subject)
        diffusion, predict, (image, window) = sampler.diffusion, x_start_predictor(sampler), one.slices()
        numbers = torch.from_numpy(window.slices)
        streams = one.streams(numbers, torch.zeros_like(numbers))
        masks = {"training": run.volume(subject).mask == 1, "sampling": row.starts(subject, 1).values[0] > 0}
        cut = {name: window.cut(mask) for name, mask in masks.items()}
        pixels = {"kind": np.array(KINDS)[2 * cut["training"] + cut["sampling"]]}
        for name, mask in cut.items():
            x_start = diffusion.codec.encode(torch.from_numpy(mask).float()[:, None])
            x_t = q_sample_start(x_start, index, streams, diffusion.schedule)
            batches = zip(*(part.split(run.compute.batch_size) for part in (image, x_t)), strict=True)
            device = run.compute.device
            guess = torch.cat([predict(*(part.to(device) for part in both), index).cpu() for both in batches])
            pixels |= {f"state in {name}": x_t.numpy()[:, 0], f"predicted in {name}": guess.numpy()[:, 0]}
        brain = window.cut(run.volume(subject).brain)
        parts.append(pd.DataFrame({name: values[brain] for name, values in pixels.items()}))
    means = pd.concat(parts).groupby("kind").mean().reindex(KINDS)
    sigma = float((1 - diffusion.schedule.abar(index)).sqrt())
    return means.assign(deviations=(means["state in sampling"] - means["state in training"]) / sigma)


def mixture_of(run: Run) -> Mixture:
    """What stands in for out-of-fold pre-segmentations."""
    return Mixture(**run.profile.start_matched.presegs.arguments())


def denoiser_settings(run: Run) -> DenoiserTraining:
    """The start-matched denoiser's training: the denoiser's schedule and masks, a logit predicted, indices below T'.

    ValueError for masks that a logit cannot give.
    """
    mine, theirs, chain = run.profile.start_matched, run.profile.denoiser, run.profile.chain
    if theirs.diffusion.codec == "official":
        raise ValueError("denoiser.diffusion.codec official: its range is not that of its masks, which a logit needs")
    diffusion = theirs.diffusion.model_copy(update={"prediction": LOGIT})
    return DenoiserTraining(
        network=mine.network,
        diffusion=diffusion,
        t_max=scale_t_prime(chain.t_prime, chain.paper_steps, diffusion.schedule.steps),
        fit=mine.fit,
        validation_subjects=len(run.subjects("validation")),
    )


def validation_starts(run: Run, seed: int) -> Callable[[str], np.ndarray]:
    """What the chains of validation subjects start from, as at test: a repeat's whole pre-segmenter's hard mask."""
    source = run.weights(f"{run.profile.comparison.presegmenter}_{seed}")
    return lambda subject: starts(run, source, subject, 1).values[0]


def train_start_matched(run: Run, seed: int, bank: SliceBank) -> pd.DataFrame:
    """Train a repeat's start-matched denoiser on slices with pre-segmentations; returns its history.

    It is chosen by the Dice of one sampled member of every validation subject.
    """
    settings, watched = denoiser_settings(run), run.subjects("validation")
    diffusion = build_diffusion(**settings.diffusion.arguments())
    chain = trainings.chain_while_training(run, "start_matched", settings)
    card = trainings.denoiser_card(run, settings, watched, chain) | _presegs_card(run)
    card |= {"t_start": chain.t_prime - 1}
    begun = validation_starts(run, seed)

    def watch(average: nn.Module) -> dict[str, float]:
        sampler = trainings.sampler_while_training(run, average, settings, chain)
        return sampled_dice(run, sampler, watched, begun)

    return fit_network(
        trainings.seeded(GuidedUNet, seed, **settings.network.arguments()),
        start_matched_objective(diffusion, chain.t_prime - 1, mixture_of(run)),
        bank,
        watch,
        trainings.training(run, seeded_name("start_matched", seed), settings.fit, card, seed),
    )


def train_unmatched(run: Run) -> pd.DataFrame:
    """Train the control that has all but the matching: diffused references and the image alone; returns its history.

    Network, loss, indices, updates and choice are the start-matched denoiser's; it is PD-DDPM by the same recipe.
    """
    settings, watched = denoiser_settings(run), run.subjects("validation")
    sees = run.profile.denoiser.network.in_channels
    settings = settings.model_copy(update={"network": settings.network.model_copy(update={"in_channels": sees})})
    diffusion = build_diffusion(**settings.diffusion.arguments())
    chain = trainings.chain_while_training(run, UNMATCHED, settings)
    begun = validation_starts(run, run.profile.repeats.seeds[0])

    def watch(average: nn.Module) -> dict[str, float]:
        sampler = trainings.sampler_while_training(run, average, settings, chain)
        return sampled_dice(run, sampler, watched, begun)

    return fit_network(
        trainings.seeded(GuidedUNet, run.seed, **settings.network.arguments()),
        diffusion_objective(diffusion, settings.t_max),
        run.training_slices(),
        watch,
        trainings.training(run, UNMATCHED, settings.fit, trainings.denoiser_card(run, settings, watched, chain)),
    )


def train_refiner(run: Run, bank: SliceBank) -> pd.DataFrame:
    """Train the control without a chain on the same slices and pre-segmentations; returns its history.

    The loss is the segmenters'. It is chosen by its Dice on every validation subject.
    """
    settings, watched = run.profile.start_matched.refiner, run.subjects("validation")
    network = {"name": "attention_unet", **settings.network.arguments()}
    objective = run.profile.segmenters.objective
    loss = segmentation_loss(objective.loss, **objective.arguments("name", "loss"))
    diffusion = build_diffusion(**run.profile.denoiser.diffusion.arguments())
    chain = chain_of(METHODS[REFINER], run.profile.chain, diffusion.schedule.steps)
    card = {"kind": "one_step", "network": network, "objective": objective.arguments(), "t_stop": chain.t_stop}
    begun = validation_starts(run, run.profile.repeats.seeds[0])

    def watch(average: nn.Module) -> dict[str, float]:
        sampler = Sampler(average, diffusion, chain, Refine(average, chain.t_stop, mask_only=False))
        return sampled_dice(run, sampler, watched, begun)

    return fit_network(
        trainings.seeded(build_segmenter, run.seed, **network),
        refiner_objective(diffusion, mixture_of(run), loss),
        bank,
        watch,
        trainings.training(run, REFINER, settings.fit, card | {"watched": watched} | _presegs_card(run)),
    )


def reference_scores(run: Run, seed: int) -> pd.DataFrame | None:
    """What notebook 16 found on the validation subjects of the reference study; None where there is none."""
    path = Layout(ROOT, run.profile.reference or "").results / "training" / f"start_matched_{seed}_validation.csv"
    return records.read_table(path) if run.profile.reference and path.exists() else None


def matching_gain(scores: pd.DataFrame, calls: int) -> float:
    """What start-matching adds to the mean Dice of the control with the same recipe, both with so many calls."""
    dice = scores[(scores.metric == "dice") & (scores.calls == calls)].groupby("method").value.mean()
    return float(dice["start_matched"] - dice[UNMATCHED])


def _presegs_card(run: Run) -> dict:
    """What a network's card says of the pre-segmentations that it was trained on."""
    halves = {half_name(run, half): run.weights(half_name(run, half)).digest for half in HALVES}
    return {"presegs": run.profile.start_matched.presegs.arguments() | halves}
