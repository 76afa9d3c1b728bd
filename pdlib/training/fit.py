"""One fit loop for every network, on Lightning Fabric: averaged weights, exact resume, the best checkpoint kept.

A training's folder holds best.safetensors (averaged weights; its card's "finished" becomes true when the training
ends), last.safetensors (all that a resume needs) and, if asked for, step_<updates>.safetensors of each validation.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from pdlib.memory import is_lack_of_memory
from pdlib.paths import alone
from pdlib.training.bank import Batch, SliceBank
from pdlib.training.checkpoint import Progress, resume, write_checkpoint
from pdlib.training.objectives import Losses, Objective
from pdlib.training.processes import build_fabric, share
from pdlib.training.watch import watch
from pdlib.training.weights import Weights, require_fit, write_weights

OnStep = Callable[[int, Losses], None]  # updates done, and their last loss; reading it makes a GPU wait
Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """How long and how to train.

    Args:
        steps: optimiser updates.
        batch_size: images an update; the processes of `fabric run` share them.
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
    MemoryError, one line, where memory runs out; what is kept stays.
    """
    if training.start is not None:
        _begin_with(training.start, network)
    learner = Learner(network, training.fit, training.device, training.precision)
    with _no_other(learner, training):
        try:
            return _fit_alone(learner, objective, bank, validate, training)
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            kept = f"it goes on from {training.last}" if training.last.exists() else "it has no checkpoint yet"
            raise MemoryError(f"training {training.folder.name}: out of memory; {kept}") from error


@contextmanager
def _no_other(learner: Learner, training: Training) -> Iterator[None]:
    """One training of a folder at a time, also where the process that began the other has died before it."""
    first = learner.fabric.is_global_zero
    lock = training.folder.with_name(f"{training.folder.name}.lock")
    with alone(lock, f"training {training.folder.name}") if first else nullcontext():
        learner.fabric.barrier()
        yield


def _fit_alone(
    learner: Learner, objective: Objective, bank: SliceBank, validate: Validate, training: Training
) -> pd.DataFrame:
    fit, progress = training.fit, resume(learner, training)
    bank, losses = bank.to(learner.fabric.device), []
    with _seen(learner, training, progress.done) as (on_step, on_validation):
        for step in range(progress.done, fit.steps):
            if progress.has_stalled(fit):
                break
            losses.append(update(learner, objective, share(bank, step, fit, learner.fabric)))
            on_step(step + 1, losses[-1])
            if (step + 1) % fit.validate_every == 0 or step + 1 == fit.steps:
                means = _mean_losses(losses, learner, progress, training)
                losses.clear()
                scores = learner.fabric.broadcast({**means, **validate(learner.average)})
                _keep(scores, step + 1, learner, progress, training)
                on_validation(progress.history)
    if learner.fabric.is_global_zero:
        _mark_finished(training.best)
    return pd.DataFrame(progress.history, columns=["step", "metric", "value"])


def _begin_with(start: Weights, network: nn.Module) -> None:
    """Give a network the weights of another; ValueError, naming their file, where it is built otherwise."""
    try:
        require_fit(network, start.tensors)
    except ValueError as error:
        raise ValueError(
            f"{start.path}: of another network than the profile's, so not to go on from ({error})"
        ) from None
    network.load_state_dict(start.tensors)


def update(learner: Learner, objective: Objective, batch: Batch) -> Losses:
    """One update of a network and of its averaged weights; returns the loss's parts, still on the device."""
    learner.network.train()
    for group in learner.optimizer.param_groups:
        group["lr"] = _learning_rate(batch.step, learner.fit)
    torch.manual_seed(batch.generator.initial_seed() + batch.rank)  # dropout draws from the global generator
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


def _mean_losses(losses: list[Losses], learner: Learner, progress: Progress, training: Training) -> dict[str, float]:
    """The mean of each part of the loss since the last validation; TrainingDiverged where one is not finite."""
    parts = {name: torch.stack([one[name] for one in losses]) for name in losses[0]}
    numbers = pd.DataFrame({name: learner.fabric.all_reduce(part).tolist() for name, part in parts.items()})
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
        write_checkpoint(learner, progress, training)
    learner.fabric.barrier()


def _mark_finished(best: Path) -> None:
    """Say in the best weights' card that the training has ended; the weights stay as they are."""
    weights = Weights.read(best)
    if not weights.finished:
        write_weights(best, weights.tensors, {**weights.card, "finished": True})


@contextmanager
def _seen(learner: Learner, training: Training, done: int) -> Iterator[tuple[OnStep, Callable[[list[dict]], None]]]:
    """What to call after each update, and after each validation with the history: the training's own on_step alone, or
    what shows a training that goes on from the updates done, which one process of several does."""
    if training.on_step is not None or not learner.fabric.is_global_zero:
        yield training.on_step or (lambda step, losses: None), lambda history: None
        return
    with watch(training.folder.name, done, training.fit.steps) as watched:
        yield lambda step, losses: watched.step(step), watched.validated
