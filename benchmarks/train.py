"""Images a second in training the denoiser: ours, and the loop that a user of torch would write."""

import copy
from dataclasses import replace

import torch

from benchmarks.step import DIFFUSION, T
from benchmarks.timing import DEVICE, PRESET, compare, relative_error, save, settings
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.profiles import load_profile
from pdlib.training.bank import SliceBank
from pdlib.training.fit import Fit, Learner, update
from pdlib.training.objectives import diffusion_objective

OBJECTIVE = diffusion_objective(DIFFUSION, T)
UPDATES = 5  # before the losses are compared: the first is that of a network whose last layer is zero
TOLERANCE = 0.05  # of a loss after so many updates, half the precision


class Ours:
    """One update of `training.fit_network`."""

    def __init__(self, bank: SliceBank, fit: Fit, precision: str):
        torch.manual_seed(0)
        plain = GuidedUNet(**settings()[0]).to(DEVICE, memory_format=torch.channels_last)
        self.learner, self.bank, self.step = Learner(plain, fit, DEVICE, precision), bank.to(DEVICE), 0

    def __call__(self) -> torch.Tensor:
        batch = self.bank.draw(self.step, self.learner.fit)
        self.step += 1
        return update(self.learner, OBJECTIVE, batch)["train_loss"]


class Plain:
    """The same update as one would write it: data on the CPU, torch's Adam, the averaged weights in a loop."""

    def __init__(self, bank: SliceBank, fit: Fit, precision: str):
        torch.manual_seed(0)
        self.network = GuidedUNet(**settings()[0]).to(DEVICE)
        self.average, self.step = copy.deepcopy(self.network).requires_grad_(False), 0
        self.bank, self.fit, self.half = bank, fit, precision == "bf16-mixed"
        how = {"lr": fit.learning_rate, "betas": fit.betas, "weight_decay": fit.weight_decay}
        self.optimizer = torch.optim.Adam(self.network.parameters(), **how)

    def __call__(self) -> torch.Tensor:
        batch = self.bank.draw(self.step, self.fit)
        batch = replace(batch, image=batch.image.to(DEVICE), mask=batch.mask.to(DEVICE))
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=self.half):
            loss = OBJECTIVE(self.network, batch)["train_loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.fit.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mine.mul_(decay).add_(theirs, alpha=1 - decay)
        self.step += 1
        return loss.detach()


def main() -> None:
    _, size, precision = settings()
    fit = Fit(**load_profile(PRESET).denoiser.fit.arguments(), seed=0)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, *size, generator=generator) for _ in range(200)]
    bank = SliceBank(images, [(image[:1] > 2).float() for image in images])
    candidates = {"plain loop": Plain(bank, fit, precision), "pdlib": Ours(bank, fit, precision)}
    losses = {name: [call() for _ in range(UPDATES)][-1] for name, call in candidates.items()}
    errors = {name: relative_error(loss, losses["plain loop"]) for name, loss in losses.items()}
    times = compare({name: call for name, call in candidates.items() if errors[name] <= TOLERANCE})
    table = times.reindex(list(candidates)).rename_axis("system").reset_index()
    table["images_per_s"] = fit.batch_size / table.median_s
    table["error"] = list(errors.values())
    table["precision"], table["batch"] = precision, fit.batch_size
    save("train", table)


if __name__ == "__main__":
    main()
