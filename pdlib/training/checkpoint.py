"""What a killed training goes on from: weights, averaged weights, optimiser and history, in last.safetensors."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pdlib.training.weights import Weights, require_fit, write_weights

if TYPE_CHECKING:
    from pdlib.training.fit import Fit, Learner, Training


@dataclass
class Progress:
    """How far a training has come: updates done, the history's rows, the best score, validations since it."""

    done: int = 0
    history: list[dict] = field(default_factory=list)
    best: float | None = None
    since_best: int = 0

    def gains(self, score: float, fit: "Fit") -> bool:
        """Whether a score is a new best; kept with it. The first one is, whatever it is."""
        gained = self.best is None or score > self.best + fit.min_gain
        self.best, self.since_best = (score, 0) if gained else (self.best, self.since_best + 1)
        return gained

    def has_stalled(self, fit: "Fit") -> bool:
        """Whether the training ends here, before its last update."""
        return fit.patience is not None and self.since_best >= fit.patience


def write_checkpoint(learner: "Learner", progress: Progress, training: "Training") -> None:
    """Write all that `resume` needs."""
    tensors = {f"network.{name}": tensor for name, tensor in learner.network.module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    write_weights(training.last, tensors, {"recipe": training.recipe, **asdict(progress)})


def resume(learner: "Learner", training: "Training") -> Progress:
    """Put a learner where its killed training was; without one of this recipe the folder is emptied and it starts."""
    stored = Weights.read(training.last) if training.last.exists() and training.best.exists() else None
    learner.fabric.barrier()  # every process has read it
    if stored is None or stored.card.get("recipe") != training.recipe:
        for stale in training.folder.glob("*.safetensors") if learner.fabric.is_global_zero else ():
            stale.unlink()
        return Progress()
    try:
        _restore(learner, stored.tensors)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{stored.path}: not a checkpoint of this training ({error})") from error
    return Progress(**{key: stored.card[key] for key in asdict(Progress())})


def _restore(learner: "Learner", tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's tensors into a learner; ValueError, KeyError or IndexError where they are not its own."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    parameters, state = list(learner.network.module.parameters()), {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        weights = parameters[int(index)]
        if tensor.ndim and tensor.shape != weights.shape:
            raise ValueError(f"{name} has shape {[*tensor.shape]}, its weights {[*weights.shape]}")
        # A file knows no strides, and the fused Adam goes through weights and moments in the order of their memory.
        laid_out = torch.empty_like(weights, dtype=tensor.dtype).copy_(tensor) if tensor.ndim else tensor
        state.setdefault(int(index), {})[key] = laid_out
    networks = {"network": learner.network.module, "average": learner.average}
    for part, network in networks.items():
        require_fit(network, parts[part])
        network.load_state_dict(parts[part])
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
