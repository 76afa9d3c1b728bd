"""Progressive distillation on the chain below T': students that make half of their teacher's calls each."""

import pandas as pd
from torch import nn

from pdlib.diffusion.sampler import Chain, Sampler
from pdlib.inference.chains import chain_of
from pdlib.methods import CHAIN, METHODS, student_name
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.study.comparison import Row
from pdlib.study.run import Run, diffusion_of
from pdlib.study.trainings import training
from pdlib.study.validation import sampled_dice
from pdlib.training.bank import SliceBank
from pdlib.training.fit import fit_network
from pdlib.training.objectives import distillation_objective
from pdlib.training.weights import Weights


def students_slices(run: Run) -> SliceBank:
    """The training slices with references and the pre-segmentations that PD-DDPM would start from."""
    row = Row.of(run, CHAIN, size=1)
    return run.training_slices(presegs={one: row.starts(one).values[0] for one in run.subjects("train")})


def train_student(run: Run, calls: int, bank: SliceBank) -> pd.DataFrame:
    """Train the student of so many calls on `students_slices`; its teacher makes twice as many. Returns its history.

    It begins with its teacher's weights and is chosen by the Dice of one member of its own chain on a few validation
    subjects.
    """
    settings, row = run.profile.distillation, Row.of(run, CHAIN, size=1)
    name, teacher = student_name(calls, settings.calls), run.weights(student_name(2 * calls, settings.calls))
    diffusion = diffusion_of(teacher)
    chain, of_teacher = student_chain(run, calls, teacher), student_chain(run, 2 * calls, teacher)
    watched = run.spread("validation", settings.validation_subjects)
    begun = {subject: row.starts(subject).values[0] for subject in watched}
    card = student_card(teacher, chain) | {"preseg": row.first.source.digest, "preseg_share": settings.preseg_share}

    def watch(student: nn.Module) -> dict[str, float]:
        return sampled_dice(run, Sampler(run.prepare(student, chain.t_prime), diffusion, chain), watched, begun.get)

    return fit_network(
        copy_of(teacher),
        distillation_objective(diffusion, run.denoiser(teacher), of_teacher.indices, settings.preseg_share),
        bank,
        watch,
        training(run, name, settings.fit, card | {"watched": watched}),
    )


def student_chain(run: Run, calls: int, teacher: Weights) -> Chain:
    """The chain of a student of so many calls, on its teacher's schedule."""
    steps = teacher.card["diffusion"]["schedule"]["steps"]
    return chain_of(METHODS["distilled"], run.profile.chain, steps, calls=calls)


def student_card(teacher: Weights, chain: Chain) -> dict:
    """The card of a student: a denoiser for the indices of one chain alone."""
    card = {"kind": "denoiser", "network": {**teacher.card["network"], "dropout": 0.0}}
    card |= {"diffusion": teacher.card["diffusion"], "t_max": chain.t_prime, "t_start": chain.t_prime - 1}
    return card | {"grid": list(chain.indices), "teacher": teacher.digest, "chosen_by": vars(chain)}


def copy_of(teacher: Weights) -> GuidedUNet:
    """A network with the teacher's weights and no dropout, to be trained."""
    network = GuidedUNet(**{**teacher.card["network"], "dropout": 0.0})
    network.load_state_dict(teacher.tensors)
    return network.train()
