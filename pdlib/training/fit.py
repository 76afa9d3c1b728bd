"""One fit loop for every network, on Lightning Fabric: averaged weights, exact resume, the best checkpoint kept.

A training's folder holds best.safetensors (averaged weights; its card's "finished" becomes true when the training
ends), last.safetensors (all that a resume needs) and, if asked for, step_<updates>.safetensors of each validation.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pdlib.training.bank import Batch, SliceBank
from pdlib.training.objectives import Losses, Objective
from pdlib.training.watch import watch
from pdlib.training.weights import Weights, write_weights

OnStep = Callable[[int, Losses], None]  # updates done, and their last loss; reading it makes a GPU wait
Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """How long and how to train.

    Args:
        steps: optimiser updates.
        batch_size: images an update and device.
        crop: (height, width) of the random crops.
        flip_probability: chance of a left-right flip.
        learning_rate, final_learning_rate: cosine decay from one to the other (equal: constant).
        weight_decay: Adam's L2 term.
        betas: Adam's decay rates of the two moments; an adversarial game wants the first low.
        ema_decay: of the averaged weights, warmed up as (1 + n) / (10 + n); 0 keeps the last weights.
        validate_every: updates between validations; every one also writes the resumable checkpoint.
        keep_validated: keep the averaged weights of every validation, not of the best alone.
        seed: of initial weights, batches and training noise.
        patience: end the training at this many validations in a row without a new best; None: never before `steps`.
        min_gain: a later checkpoint becomes the best if its score is higher by more than this.
    """

    steps: int
    batch_size: int
    crop: tuple[int, int]
    flip_probability: float
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    ema_decay: float
    validate_every: int
    keep_validated: bool
    seed: int
    patience: int | None = None
    min_gain: float = 0.0


@dataclass(frozen=True)
class Training:
    """One training of a network: how, where it is kept and what computes it.

    Args:
        fit: how long and how to train.
        folder: where the weights go; a training that was killed goes on from there.
        card: all that is needed to rebuild and use the network; stored in every weights file.
        select: the validation's metric that decides which weights are the best: the highest, of equals the earliest
            (and so of scores within `Fit.min_gain`).
        device: a CPU or a CUDA device.
        precision: "32-true" or "bf16-mixed".
        on_step: called after each update; None shows a progress bar, and in a notebook the curves so far.
        start: weights that the network begins with, rather than with those that it was built with.
    """

    fit: Fit
    folder: Path
    card: dict
    select: str
    device: torch.device
    precision: str
    on_step: OnStep | None = None
    start: Weights | None = None

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    @property
    def recipe(self) -> str:
        """What makes it this training and no other: the same text means the same weights."""
        return json.dumps({"fit": asdict(self.fit), "card": self.card}, sort_keys=True)


class TrainingDiverged(RuntimeError):
    """A loss or a weight is not a finite number; the files of the validation before are as they were."""


class Learner:
    """What an update changes: a network, the average of its weights, and its optimizer."""

    def __init__(self, network: nn.Module, fit: Fit, device: torch.device, precision: str):
        self.fit, self.fabric = fit, build_fabric(device, precision)
        average = copy.deepcopy(network).requires_grad_(False).eval()
        optimizer = build_optimizer(network.to(self.fabric.device), fit)
        self.average = average.to(self.fabric.device)
        self.network, self.optimizer = self.fabric.setup(network, optimizer)

    def fault(self, step: int) -> str | None:
        """Which of the averaged weights is the first that is not finite after update `step`; None: all are."""
        floats = {name: one for name, one in self.average.state_dict().items() if one.is_floating_point()}
        finite = torch.stack([one.isfinite().all() for one in floats.values()]).tolist()
        broken = [name for name, good in zip(floats, finite, strict=True) if not good]
        return f"{broken[0]} is not finite after update {step}" if broken else None


logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it remarks on its settings, in red in a notebook


def build_fabric(device: torch.device, precision: str) -> Fabric:
    """Lightning's Fabric on this one device."""
    devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    return Fabric(accelerator=device.type, devices=devices, precision=precision)


def build_optimizer(network: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) in one fused call."""
    arguments = {"lr": fit.learning_rate, "betas": fit.betas, "weight_decay": fit.weight_decay}
    return torch.optim.Adam(network.parameters(), **arguments, fused=True)


def fit_network(
    network: nn.Module, objective: Objective, bank: SliceBank, validate: Validate, training: Training
) -> pd.DataFrame:
    """Train a network, validate its averaged weights, keep the best.

    A killed training goes on from `last.safetensors`, to the same weights; another recipe in the same folder starts
    anew. `validate` gets the averaged weights' network and returns its metrics by name.

    Returns the history: step, metric, value (a loss is its mean since the last validation). TrainingDiverged, naming
    loss, update and the last good checkpoint, where a loss or a weight is not finite; it is looked for at validations.
    """
    fit = training.fit
    if training.start is not None:
        _begin_with(training.start, network)
    learner = Learner(network, fit, training.device, training.precision)
    progress = resume(learner, training)
    bank, losses = bank.to(learner.fabric.device), []
    with _seen(training, progress.done) as (on_step, on_validation):
        for step in range(progress.done, fit.steps):
            if progress.has_stalled(fit):
                break
            losses.append(update(learner, objective, bank.draw(step, learner.fabric.global_rank, fit)))
            on_step(step + 1, losses[-1])
            if (step + 1) % fit.validate_every == 0 or step + 1 == fit.steps:
                means = _mean_losses(losses, learner, progress, training)
                losses.clear()
                _keep({**means, **validate(learner.average)}, step + 1, learner, progress, training)
                on_validation(progress.history)
    if learner.fabric.is_global_zero:
        _mark_finished(training.best)
    return pd.DataFrame(progress.history, columns=["step", "metric", "value"])


def _begin_with(start: Weights, network: nn.Module) -> None:
    """Give a network the weights of another; ValueError, naming their file, where it is built otherwise."""
    try:
        network.load_state_dict({name: one.float() for name, one in start.tensors.items()})
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{start.path}: of another network than the profile's, so not to go on from ({said})"
        ) from None


def update(learner: Learner, objective: Objective, batch: Batch) -> Losses:
    """One update of a network and of its averaged weights; returns the loss's parts, still on the device."""
    learner.network.train()
    for group in learner.optimizer.param_groups:
        group["lr"] = _learning_rate(batch.step, learner.fit)
    torch.manual_seed(batch.generator.initial_seed())  # dropout draws from the global generator
    parts = objective(learner.network, batch)
    learner.fabric.backward(sum(parts.values()))
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    decay = min(learner.fit.ema_decay, (1 + batch.step) / (10 + batch.step))
    _update_average(learner.average, learner.network.module, decay)
    return {name: part.detach() for name, part in parts.items()}


def _learning_rate(step: int, fit: Fit) -> float:
    phase = 0.5 * (1 + np.cos(np.pi * step / fit.steps))
    return fit.final_learning_rate + (fit.learning_rate - fit.final_learning_rate) * float(phase)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


@dataclass
class Progress:
    """How far a training has come: updates done, the history's rows, the best score, validations since it."""

    done: int = 0
    history: list[dict] = field(default_factory=list)
    best: float | None = None
    since_best: int = 0

    def gains(self, score: float, fit: Fit) -> bool:
        """Whether a score is a new best; kept with it. The first one is, whatever it is."""
        gained = self.best is None or score > self.best + fit.min_gain
        self.best, self.since_best = (score, 0) if gained else (self.best, self.since_best + 1)
        return gained

    def has_stalled(self, fit: Fit) -> bool:
        """Whether the training ends here, before its last update."""
        return fit.patience is not None and self.since_best >= fit.patience


def _mean_losses(losses: list[Losses], learner: Learner, progress: Progress, training: Training) -> dict[str, float]:
    """The mean of each part of the loss since the last validation; TrainingDiverged where one is not finite."""
    numbers = pd.DataFrame({name: torch.stack([one[name] for one in losses]).tolist() for name in losses[0]})
    fault = _first_fault(numbers, progress.done) or learner.fault(progress.done + len(losses))
    if fault:
        kept = f"the last good checkpoint is {training.last}, of update {progress.done}"
        none = f"{training.folder} holds no checkpoint yet"
        raise TrainingDiverged(f"{fault}; {kept if progress.done else none}")
    return numbers.mean(skipna=False).to_dict()


def _first_fault(losses: pd.DataFrame, done: int) -> str | None:
    """Which part of the loss is the first that is not finite, and in which update; None: all are finite."""
    rows, columns = np.nonzero(~np.isfinite(losses.to_numpy()))
    if not len(rows):
        return None
    name = losses.columns[columns[0]]
    return f"{name} is {losses[name][rows[0]]} in update {done + rows[0] + 1}"


def _keep(scores: dict[str, float], step: int, learner: Learner, progress: Progress, training: Training) -> None:
    """Write what a validation leaves behind: its weights if asked for, the best so far, and the checkpoint."""
    progress.done = step
    progress.history += [{"step": step, "metric": metric, "value": value} for metric, value in scores.items()]
    score = scores[training.select]
    score = -math.inf if math.isnan(score) else score
    gained = progress.gains(score, training.fit)
    if learner.fabric.is_global_zero:
        averaged = learner.average.state_dict()
        if training.fit.keep_validated:
            write_weights(training.folder / f"step_{step:06d}.safetensors", averaged, training.card)
        if gained:
            about = {"step": step, training.select: score, "finished": False}
            write_weights(training.best, averaged, {**training.card, **about})
        _write_checkpoint(learner, progress, training)
    learner.fabric.barrier()


def _mark_finished(best: Path) -> None:
    """Say in the best weights' card that the training has ended; the weights stay as they are."""
    weights = Weights.read(best)
    if not weights.finished:
        write_weights(best, weights.tensors, {**weights.card, "finished": True})


def _write_checkpoint(learner: Learner, progress: Progress, training: Training) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in learner.network.module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    write_weights(training.last, tensors, {"recipe": training.recipe, **asdict(progress)})


def resume(learner: Learner, training: Training) -> Progress:
    """Put a learner where its killed training was; without one of this recipe the folder is emptied and it starts."""
    stored = Weights.read(training.last) if training.last.exists() and training.best.exists() else None
    if stored is None or stored.card.get("recipe") != training.recipe:
        for stale in training.folder.glob("*.safetensors"):
            stale.unlink()
        return Progress()
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in stored.tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    learner.network.module.load_state_dict(parts["network"])
    learner.average.load_state_dict(parts["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    return Progress(**{key: stored.card[key] for key in asdict(Progress())})


@contextmanager
def _seen(training: Training, done: int) -> Iterator[tuple[OnStep, Callable[[list[dict]], None]]]:
    """What to call after each update, and after each validation with the history: the training's own on_step alone, or
    what shows a training that goes on from the updates done."""
    if training.on_step is not None:
        yield training.on_step, lambda history: None
        return
    with watch(training.folder.name, done, training.fit.steps) as watched:
        yield lambda step, losses: watched.step(step), watched.validated
