"""Students of a run: what they are trained on, what they begin with, and which chain they serve."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CHANGES

from pdlib.inference.window import Window
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.profiles import ProfileError, load_profile
from pdlib.study.comparison import Row
from pdlib.study.distillation import copy_of, students_slices, train_student
from pdlib.study.run import Run
from pdlib.study.work import works

FIT = {"steps": 2, "batch_size": 2, "crop": [16, 16], "learning_rate": 1e-8, "validate_every": 1}
SETTINGS = {"distillation": {"calls": 4, "fit": FIT, "validation_subjects": 1}}
ROW = {"fewer_calls": {"starts": ["pd_ddpm", "distilled"]}}


def test_a_pre_segmentation_is_cut_as_its_subject_s_slices_are(trained):
    run, rng = trained.run, np.random.default_rng(0)
    presegs = {one: (rng.random(run.volume(one).mask.shape) < 0.5).astype(np.float32) for one in run.subjects("train")}
    bank, place = run.training_slices(presegs=presegs), 0
    for subject in run.subjects("train"):
        volume = run.volume(subject)
        window = Window.around(volume.brain, 1)
        mine = torch.stack(bank.masks[place : place + len(window.slices)]).numpy()
        for channel, array in enumerate((volume.mask, presegs[subject])):
            back = window.put_back(mine[:, channel], volume.mask.shape)
            assert (back[volume.brain] == array[volume.brain]).all()
        place += len(window.slices)
    assert place == len(bank.images) == len(bank.masks)


def test_each_student_begins_with_its_teacher_s_weights_and_serves_one_chain(trained):
    run = Run.at(trained.place, load_profile("smoke", CHANGES | SETTINGS))
    bank, teacher = students_slices(run), run.weights("denoiser_0")
    assert {len(mask) for mask in bank.masks} == {2}
    for calls, grid in ((2, (3, 1)), (1, (3,))):
        history = train_student(run, calls, bank)
        assert set(history.metric) == {"train_loss", "dice"} and history.step.max() == 2
        row = Row.of(run, "distilled", calls=calls)
        student = row.first.trained.denoiser
        assert student.card["teacher"] == teacher.digest != student.digest
        assert tuple(student.card["grid"]) == row.chain.indices == grid and row.chain.eta == 0
        for name, tensor in teacher.tensors.items():
            torch.testing.assert_close(student.tensors[name], tensor, rtol=0, atol=1e-6)
        teacher = student
    assert Row.of(run, "distilled", calls=4).first.trained.denoiser == run.weights("denoiser_0")
    with pytest.raises(ValueError, match="T' = 4 alone, and T' is 3"):
        Row.of(run, "distilled", calls=1, t_prime=300)


def test_a_student_has_no_dropout(trained):
    teacher = trained.run.weights("denoiser_0")
    dropping = replace(teacher, card={**teacher.card, "network": {**teacher.card["network"], "dropout": 0.5}})
    same = torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64)
    noisy = GuidedUNet(**dropping.card["network"])
    noisy.load_state_dict(teacher.tensors)
    assert not torch.equal(noisy(*same), noisy(*same))
    student = copy_of(dropping)
    assert student.training and torch.equal(student(*same), student(*same))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distillation": {"calls": 6}}, "distillation: calls 6: a power of two .*"),
        ({"distillation": {"calls": 1}}, "distillation: calls 1: a power of two .*"),
        ({"distillation": {"fit": {"ema_decay": 0.5}}}, "distillation: fit.ema_decay 0.5: .* not averaged"),
        (ROW | {"denoiser": {"diffusion": {"prediction": "eps"}}}, "denoiser.diffusion.prediction: eps cannot be .*"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changes, told):
    with pytest.raises(ProfileError, match=f"^profile smoke: {told}"):
        load_profile("smoke", changes)


def test_students_halve_down_to_one():
    assert load_profile("paper").distillation.students == (8, 4, 2, 1)


def test_the_work_of_students_is_counted_by_hand():
    """Students of 2 and of 1 call; 3 validation subjects, 2 of them watched at 2 validations; 2 members in the end."""
    work = works(load_profile("smoke", ROW), subjects=15, slices=6)["14_distillation"]
    assert work[("update", "student")] == 2 * 40 and work[("call", "attention_unet")] == 9 * 6
    assert work[("call", "student")] == (2 * 2 + 3 * 2) * (2 + 1) * 6
    assert work[("call", "denoiser")] == 3 * 2 * (4 + 2 + 1) * 6
    assert work[("score", "")] == 2 * 2 * 2 + 3 * (3 + 2)
