"""One fit loop for every network, on Lightning Fabric: EMA, safetensors checkpoints, exact resume, best checkpoint."""

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pdlib.diffusion.sampler import Diffusion
from pdlib.kernels import ops
from pdlib.networks.segmenters import segmentation_loss


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


@dataclass(frozen=True)
class Batch:
    """What an update sees: image [B, 2, h, w], mask [B, C, h, w] in {0, 1}, its number and its own generator."""

    image: Tensor
    mask: Tensor
    step: int
    generator: torch.Generator


class SliceBank:
    """Training slices in memory; the batch of an update depends on (seed, step, rank) alone, so a resume is exact.

    Args:
        images: slices [2, H, W] float32, of any sizes; any number of channels, the same for all.
        masks: slices [C, H, W] in {0, 1}, one channel a class.
    """

    def __init__(self, images: list[Tensor], masks: list[Tensor]):
        if not images:
            raise ValueError("there are no training slices")
        self.images, self.masks = images, masks

    def to(self, device: torch.device) -> "SliceBank":
        """The same slices in the memory of a device, where they are then cropped and stacked."""
        return SliceBank([one.to(device) for one in self.images], [one.to(device) for one in self.masks])

    def draw(self, step: int, rank: int, fit: Fit) -> Batch:
        """Random crops of random slices, and the generator for whatever else the update draws."""
        seed = np.random.SeedSequence((fit.seed, step, rank)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed) >> 1)
        rows = torch.randint(len(self.images), (fit.batch_size,), generator=generator).tolist()
        pairs = [self._crop(torch.cat([self.images[i], self.masks[i]]), fit, generator) for i in rows]
        image, mask = torch.stack(pairs).tensor_split([len(self.images[0])], dim=1)
        return Batch(image, mask, step, generator)

    @staticmethod
    def _crop(pair: Tensor, fit: Fit, generator: torch.Generator) -> Tensor:
        height, width = fit.crop
        missing = [max(0, size - have) for size, have in zip(fit.crop, pair.shape[1:], strict=True)]
        pair = nn.functional.pad(pair, (0, missing[1], 0, missing[0]))
        top = int(torch.randint(pair.shape[1] - height + 1, (1,), generator=generator))
        left = int(torch.randint(pair.shape[2] - width + 1, (1,), generator=generator))
        pair = pair[:, top : top + height, left : left + width]
        flip = bool(torch.rand(1, generator=generator) < fit.flip_probability)
        return pair.flip(-1) if flip else pair


Losses = dict[str, Tensor]  # parts by name: their sum is minimised, each has its curve
Objective = Callable[[nn.Module, Batch], Losses]


def segmentation_objective(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """A segmenter's training loss on a batch: loss(logit, mask)."""
    return lambda network, batch: {"train_loss": loss(network(batch.image), batch.mask)}


def diffusion_objective(diffusion: Diffusion, t_max: int) -> Objective:
    """The simple DDPM loss (Ho et al. 2020, Eq. 14) on the mask channel, t uniform over the indices below t_max."""

    def objective(network: nn.Module, batch: Batch) -> Losses:
        _, x_t, t, target = _diffused(diffusion, t_max, batch)
        output = network(torch.cat([batch.image, x_t], dim=1), t.to(x_t.device))
        return {"train_loss": nn.functional.mse_loss(output.float(), target)}

    return objective


def hybrid_objective(diffusion: Diffusion, t_max: int, vlb_weight: float) -> Objective:
    """The simple loss and vlb_weight times the variational bound (Nichol & Dhariwal 2021, Eq. 16), for a network whose
    second half of channels says the variance. The bound's gradient does not pass the prediction's channels.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        x_start, x_t, t, target = _diffused(diffusion, t_max, batch)
        output, spread = network(torch.cat([batch.image, x_t], dim=1), t.to(x_t.device)).float().chunk(2, dim=1)
        unclamped = (-math.inf, math.inf)
        predicted = ops.predict_x_start(diffusion.prediction, output.detach(), x_t, t, diffusion.schedule, unclamped)
        terms = ops.variational_bound(x_start, predicted, spread, x_t, t, diffusion.schedule, diffusion.codec)
        bound = t_max * terms.mean()  # the mean over t stands for the bound's sum
        return {"train_loss": nn.functional.mse_loss(output, target), "vlb_loss": vlb_weight * bound}

    return objective


def _diffused(diffusion: Diffusion, t_max: int, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_start, x_t [B, C, h, w] at random indices t [B] below t_max, and the network's target there."""
    t = torch.randint(t_max, (len(batch.mask),), generator=batch.generator)
    noise = torch.randn(batch.mask.shape, generator=batch.generator).to(batch.mask.device)
    x_start = diffusion.codec.encode(batch.mask)
    x_t = ops.q_sample(x_start, t, noise, diffusion.schedule)
    return x_start, x_t, t, ops.training_target(diffusion.prediction, x_start, t, noise, diffusion.schedule)


def one_step_objective(
    diffusion: Diffusion, t_stop: int, mask_only: bool, loss: Callable[[Tensor, Tensor], Tensor]
) -> Objective:
    """ADDPM's last network: the mask from the state at index t_stop - 1, where the chain ends; loss(logit, mask)."""

    def objective(network: nn.Module, batch: Batch) -> Losses:
        noise = torch.randn(batch.mask.shape, generator=batch.generator).to(batch.mask.device)
        x_t = ops.q_sample(diffusion.codec.encode(batch.mask), t_stop - 1, noise, diffusion.schedule)
        seen = x_t if mask_only else torch.cat([batch.image, x_t], dim=1)
        return {"train_loss": loss(network(seen), batch.mask)}

    return objective


def probabilistic_objective(beta: float, warmup_steps: int) -> Objective:
    """The Probabilistic U-Net's bound (Kohl et al. 2018, Eq. 4): cross-entropy of a posterior draw, summed over pixels,
    and the weighted KL, means over the batch. The weight rises to beta in the first warmup_steps >= 1 updates.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        mask = batch.mask
        fresh = torch.randn(len(mask), network.latent, generator=batch.generator).to(mask.device)
        logit, kl = network(batch.image, mask=mask, fresh=fresh)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logit.float(), mask, reduction="sum")
        weight = beta * min(1.0, (batch.step + 1) / warmup_steps)
        return {"reconstruction_loss": cross_entropy / len(mask), "kl_loss": weight * kl.mean()}

    return objective


def adversarial_objective(diffusion: Diffusion, t_prime: int) -> Objective:
    """TDPM's game for x at index t_prime - 1 (Zheng et al. 2022), least squares (Mao et al. 2017), one update for both.

    The generator is told by the discriminator alone: no term pulls its draw to the reference. Adam's beta1 should be
    0.5: with 0.9 the discriminator wins within a hundred updates.
    """

    def objective(network: nn.Module, batch: Batch) -> Losses:
        x_start = diffusion.codec.encode(batch.mask)
        noise = torch.randn(x_start.shape, generator=batch.generator).to(x_start.device)
        fresh = torch.randn(len(noise), 1, *noise.shape[2:], generator=batch.generator).to(x_start.device)
        real = ops.q_sample(x_start, t_prime - 1, noise, diffusion.schedule)
        fooled, fake, true = (score.float() for score in network(batch.image, real=real, fresh=fresh))
        d_loss = (fake.square().mean() + (true - 1).square().mean()) / 2
        return {"g_loss": (fooled - 1).square().mean(), "d_loss": d_loss}

    return objective


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "segmentation": lambda loss, **options: segmentation_objective(segmentation_loss(loss, **options)),
    "probabilistic": probabilistic_objective,
}


def build_objective(name: str, **options) -> Objective:
    """A segmenter's objective from a profile's words, a key of OBJECTIVES and its options; ValueError if unknown."""
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name](**options)


def fit_network(
    network: nn.Module,
    objective: Objective,
    bank: SliceBank,
    validate: Callable[[nn.Module], dict[str, float]],
    *,
    select: str,
    fit: Fit,
    fabric: Fabric,
    folder: Path,
    card: dict,
    on_step: Callable[[int, Tensor], None],
) -> pd.DataFrame:
    """Train, validate the averaged weights, keep the best by the `select` metric (higher wins, the earlier on a tie).

    A killed run goes on from `last.safetensors`, to the same weights; another recipe in the same folder starts anew.

    Args:
        card: all that is needed to rebuild and use the network; stored in every weights file.
        on_step: called after each update with (updates done, training loss); reading the loss makes a GPU wait.

    Returns:
        The history: step, metric, value (a loss is its mean since the last validation).
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = json.dumps({"fit": asdict(fit), "card": card}, sort_keys=True)
    average = copy.deepcopy(network).requires_grad_(False).eval()
    optimizer = build_optimizer(network.to(fabric.device), fit)
    last = folder / "last.safetensors"
    done, history, best = _load_progress(last, recipe, network, average, optimizer)
    if done == 0:
        for stale in folder.glob("*.safetensors"):
            stale.unlink()
    average.to(fabric.device)
    bank = bank.to(fabric.device)
    network, optimizer = fabric.setup(network, optimizer)
    losses: list[Losses] = []
    for step in range(done, fit.steps):
        batch = bank.draw(step, fabric.global_rank, fit)
        parts = update(network, average, objective, batch, optimizer, fit, fabric)
        losses.append({name: part.detach() for name, part in parts.items()})
        on_step(step + 1, sum(losses[-1].values()))
        if (step + 1) % fit.validate_every == 0 or step + 1 == fit.steps:
            numbers = [{name: part.item() for name, part in parts.items()} for parts in losses]
            scores = {**pd.DataFrame(numbers).mean(skipna=False).to_dict(), **validate(average)}
            losses.clear()
            history += [{"step": step + 1, "metric": metric, "value": value} for metric, value in scores.items()]
            if fabric.is_global_zero:
                if fit.keep_validated:
                    _save(folder / f"step_{step + 1:06d}.safetensors", average.state_dict(), card)
                score = -np.inf if np.isnan(scores[select]) else scores[select]
                if best is None or score > best:
                    best = score
                    _save(folder / "best.safetensors", average.state_dict(), {**card, "step": step + 1, select: best})
                _save_progress(last, recipe, step + 1, history, best, network.module, average, optimizer)
            fabric.barrier()
    return pd.DataFrame(history, columns=["step", "metric", "value"])


def build_optimizer(network: nn.Module, fit: Fit) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) in one fused call."""
    arguments = {"lr": fit.learning_rate, "betas": fit.betas, "weight_decay": fit.weight_decay}
    return torch.optim.Adam(network.parameters(), **arguments, fused=True)


def update(
    network: nn.Module,
    average: nn.Module,
    objective: Objective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    fit: Fit,
    fabric: Fabric,
) -> Losses:
    """One update of a network, set up with its optimizer by Fabric, and of its averaged weights."""
    network.train()
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(batch.step, fit)
    torch.manual_seed(batch.generator.initial_seed())  # dropout draws from the global generator
    parts = objective(network, batch)
    fabric.backward(sum(parts.values()))
    optimizer.step()
    optimizer.zero_grad()
    _update_average(average, network.module, min(fit.ema_decay, (1 + batch.step) / (10 + batch.step)))
    return parts


def _learning_rate(step: int, fit: Fit) -> float:
    phase = 0.5 * (1 + np.cos(np.pi * step / fit.steps))
    return fit.final_learning_rate + (fit.learning_rate - fit.final_learning_rate) * float(phase)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1 - decay)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def _save(path: Path, tensors: dict[str, Tensor], card: dict) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"card": json.dumps(card, sort_keys=True)})
    os.replace(temporary, path)


def _save_progress(path, recipe, done, history, best, network, average, optimizer) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    _save(path, tensors, {"recipe": recipe, "done": done, "history": history, "best": best})


def _load_progress(path, recipe, network, average, optimizer) -> tuple[int, list[dict], float | None]:
    if not path.exists():
        return 0, [], None
    tensors, card = read_weights(path)
    if card["recipe"] != recipe:
        return 0, [], None
    parts = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    network.load_state_dict(parts["network"])
    average.load_state_dict(parts["average"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return card["done"], card["history"], card["best"]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and card of a weights file; ValueError naming the file when it is not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()["card"])
            return {name: file.get_tensor(name) for name in file.keys()}, card
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a readable weights file ({error})") from error
