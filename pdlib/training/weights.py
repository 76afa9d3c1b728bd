"""A trained network's file: tensors, a card that says what they are, and a digest; each file is read and hashed once.

Every weights file is safetensors with one JSON card: "kind" (a key of `BUILDERS`), "network" (its builder's arguments),
"data" (what it was trained on) and what else its user needs.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pdlib.networks.autoencoder import MaskAutoencoder
from pdlib.networks.gan import build_generator
from pdlib.networks.guided_unet import GuidedUNet
from pdlib.networks.noise_level import NoiseLevel
from pdlib.networks.segmenters import build_segmenter
from pdlib.paths import replacing

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "segmenter": build_segmenter,
    "generator": build_generator,
    "one_step": build_segmenter,
    "denoiser": GuidedUNet,
    "noise_level": NoiseLevel,
    "autoencoder": MaskAutoencoder,
}
MOST_KEPT = 32  # files in memory; a run of every method uses fewer


@dataclass(frozen=True, eq=False)
class Weights:
    """A weights file in memory; equal to another whose file has the same digest, so that it can key a cache.

    Args:
        path: where it lies; every error names it.
        tensors: by name; do not write into them.
        card: what the training wrote about them.
        digest: SHA-256 of the file, hexadecimal.
    """

    path: Path
    tensors: dict[str, Tensor]
    card: dict
    digest: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Read and hash a file; ValueError naming it when it is not one of ours. `load_weights` keeps what it read."""
        path = Path(path)
        try:
            content = path.read_bytes()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            card = json.loads(header["__metadata__"]["card"])
            return cls(path, safetensors.torch.load(content), card, hashlib.sha256(content).hexdigest())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable weights file ({error})") from error

    @property
    def finished(self) -> bool:
        """Whether the training that wrote it has come to its end."""
        return self.card.get("finished") is True

    @property
    def comes_along(self) -> bool:
        """Whether these are a copy that a clone comes with (see `export_weights`)."""
        return "full_precision" in self.card

    def require_finished(self) -> "Weights":
        """These weights; ValueError naming the file and the update if their training was cut off or still runs."""
        if not self.finished:
            step = self.card.get("step", "unknown")
            raise ValueError(f"{self.path}: its training has not ended, these weights are of update {step}")
        return self

    def require_kind(self, *kinds: str) -> "Weights":
        """These weights; ValueError naming the file if the network is of none of these kinds (keys of `BUILDERS`)."""
        if self.card.get("kind") not in kinds:
            raise ValueError(f"{self.path}: holds a {self.card.get('kind')}, not a {' or '.join(kinds)}")
        return self

    def build(self, device: torch.device, *kinds: str) -> nn.Module:
        """A new network on a device, in eval mode and without gradients. ValueError naming the file if it is of none of
        these kinds, or if tensors and card do not fit together.
        """
        self.require_kind(*kinds)
        try:
            network = BUILDERS[self.card["kind"]](**self.card["network"])
            network.load_state_dict(self.tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]  # torch names every tensor, a line each
            raise ValueError(f"{self.path}: weights and card do not fit together ({said})") from error
        return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def load_weights(path: Path) -> Weights:
    """A weights file, read and hashed once for as long as it does not change; ValueError as `Weights.read`."""
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: not a readable weights file ({error})") from error
    return _load(path, state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=MOST_KEPT)
def _load(path: Path, changed: int, size: int, inode: int) -> Weights:
    """The state of the file is part of the key: another training in the same place gives other weights."""
    return Weights.read(path)


def write_weights(path: Path, tensors: dict[str, Tensor], card: dict) -> None:
    """Write a weights file, whole or not at all; OSError names it."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(contiguous, temporary, metadata={"card": json.dumps(card, sort_keys=True)})
        except SafetensorError as error:  # a full disk, too, is one of these
            raise OSError(f"{path}: cannot be written ({error})") from error


def export_weights(run_folder: Path, names: Iterable[str], out: Path, profile: str) -> int:
    """Copy the best weights of finished trainings, run_folder/<name>/best.safetensors, into out in half precision.

    Kernels and matrices become float16, half of the size; vectors, which a norm's statistics are among, stay as they
    are. `Weights.build` gives float32 networks. The card also says the profile and how the tensors are kept. Returns
    the bytes written. ValueError, naming the file, for a training that has not ended and for a number beyond float16.
    """
    written = 0
    for name in names:
        weights = load_weights(Path(run_folder) / name / "best.safetensors").require_finished()
        halved = {
            key: one.half() if one.is_floating_point() and one.ndim > 1 else one for key, one in weights.tensors.items()
        }
        if beyond := [key for key, one in halved.items() if not one.isfinite().all()]:
            raise ValueError(f"{weights.path}: {beyond[0]} holds numbers beyond half precision")
        kept = {"profile": profile, "kept_as": "float16, vectors float32", "full_precision": weights.digest}
        path = Path(out) / name / "best.safetensors"
        write_weights(path, halved, weights.card | kept)
        written += path.stat().st_size
    return written


def same_data(*weights: Weights) -> None:
    """ValueError naming two of these files if they were not trained on the same subjects of the same data."""
    first = weights[0]
    for other in weights[1:]:
        for key, what in (("fingerprint", "data"), ("phantom", "kind of data"), ("train", "subjects")):
            if _data(first)[key] != _data(other)[key]:
                raise ValueError(f"{first.path} and {other.path}: trained on different {what}, so not to be combined")


def _data(weights: Weights) -> dict:
    data = weights.card.get("data")
    if not isinstance(data, dict) or not {"fingerprint", "phantom", "train"} <= data.keys():
        raise ValueError(f"{weights.path}: its card does not say what it was trained on")
    return data
