"""The first updates of the smoke profile's denoiser, for `fabric run`: FOLDER, and the output root of the run."""

import sys
from dataclasses import replace
from pathlib import Path

from pdlib.study.run import Run
from pdlib.study.train import plan_denoiser
from pdlib.training.fit import fit_network

PRECISION = "32-true"  # also where `auto` takes bfloat16, whose roundings are a thousand times as large
UPDATES = 12  # few: roundings grow in a training, and on one process as much when a batch's images change places


def main(folder: Path, out: str) -> None:
    run = Run.open("03_train_ddpm", "smoke", None, out)
    planned = plan_denoiser(run, "denoiser", 0)
    plan = replace(planned.training.fit, steps=UPDATES, validate_every=UPDATES // 4)
    training = replace(planned.training, fit=plan, folder=folder, precision=PRECISION)
    fit_network(planned.network, planned.objective, run.training_slices(), lambda _: {training.select: 0.0}, training)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
