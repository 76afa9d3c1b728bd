"""A small training, for `fabric run`: FOLDER, and after how many updates it dies (0: it does not)."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pdlib.diffusion.sampler import build_diffusion
from pdlib.training.bank import SliceBank
from pdlib.training.fit import Fit, OnStep, Training, fit_network
from pdlib.training.objectives import one_step_objective

PLAN = Fit(
    steps=24,
    batch_size=4,
    crop=(12, 12),
    flip_probability=0.5,
    learning_rate=0.02,
    final_learning_rate=0.0,
    weight_decay=1e-3,
    betas=(0.9, 0.999),
    ema_decay=0.9,
    validate_every=6,
    keep_validated=False,
    seed=0,
)
SCHEDULE = {"name": "cosine", "steps": 1000, "offset": 0.008, "max_beta": 0.999}
DIFFUSION = build_diffusion(schedule=SCHEDULE, codec="zero_one", prediction="eps")


def train(folder: Path, on_step: OnStep, size: int = 12) -> None:
    """To find masks in noise. size: of the crops; an update takes about 300 bytes a pixel."""
    torch.manual_seed(0)
    plan, images = replace(PLAN, crop=(size, size)), list(torch.randn(6, 2, size + 2, size + 2))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 1, 1))
    bank = SliceBank(images, [(one[:1] > 0.5).float() for one in images])
    objective = one_step_objective(DIFFUSION, 500, False, nn.functional.mse_loss)
    training = Training(plan, folder, {"kind": "test"}, "score", torch.device("cpu"), "32-true", on_step)

    def validate(average):
        with torch.no_grad():
            return {"score": -float(objective(average, bank.draw(0, plan))["train_loss"])}

    fit_network(network, objective, bank, validate, training)


def main(folder: Path, dies_after: int) -> None:
    def on_step(done, losses):
        if done == dies_after:
            os._exit(9)

    train(folder, on_step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
