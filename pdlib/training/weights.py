"""A trained network's file: tensors, a card that says what they are, and a digest; each file is read and hashed once.

Every weights file is safetensors with one JSON card: "kind" (a key of `BUILDERS`), "network" (its builder's arguments),
"data" (what it was trained on) and what else its user needs. A file may come from anywhere: nothing in it is run, and
what it claims is checked before it is used.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from pdlib.sections.base import MOST_STEPS

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "segmenter": build_segmenter,
    "generator": build_generator,
    "one_step": build_segmenter,
    "denoiser": GuidedUNet,
    "noise_level": NoiseLevel,
    "autoencoder": MaskAutoencoder,
}
MOST_KEPT = 32  # files in memory; a run of every method uses fewer
LARGEST, LONGEST = 4096, 64  # number and list that a card's network may have: far beyond any network here
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")
PICKLE = (
    "a pickle, as torch.save writes it: reading one can run code that it holds, so none is read here;"
    " save its tensors as safetensors"
)


class Card(dict):
    """What a training wrote about its weights; ValueError naming the file for a key that it lacks."""

    def __init__(self, path: Path, content: Mapping):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str):
        raise ValueError(f"{self.path}: its card does not say its {key}")


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
        path, content = Path(path), b""
        try:
            if path.exists() and not path.is_file():
                raise ValueError("no file")
            content = path.read_bytes()
            tensors = safetensors.torch.load(content)
            card = Card(path, _card(content))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            why = PICKLE if _is_pickle(path, content) else " ".join(str(error).split())[:300]
            raise ValueError(f"{path}: not a readable weights file ({why})") from error
        return cls(path, tensors, card, hashlib.sha256(content).hexdigest())

    @property
    def finished(self) -> bool:
        """Whether the training that wrote it has come to its end."""
        return self.card.get("finished") is True

    @property
    def comes_along(self) -> bool:
        """Whether these are a copy that a clone comes with (see `export_weights`)."""
        return "full_precision" in self.card

    @property
    def data(self) -> dict:
        """What it was trained on; ValueError naming the file where the card does not say it."""
        data = self.card.get("data")
        if not isinstance(data, dict) or not {"fingerprint", "phantom", "train"} <= data.keys():
            raise ValueError(f"{self.path}: its card does not say what it was trained on")
        return data

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
        these kinds, or if tensors and card do not fit together: no memory is taken before they are known to.
        """
        self.require_kind(*kinds)
        try:
            builder, how = BUILDERS[self.card["kind"]], self.card["network"]
            _require_modest(how)
            with torch.device("meta"):
                require_fit(builder(**how), self.tensors)
            network = builder(**how)
            network.load_state_dict(self.tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.path}: weights and card do not fit together ({said})") from error
        return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def require_fit(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ValueError where tensors are not those of a network: other names, shapes or kinds of number, or not finite.

    Any precision of floating-point numbers fits; the network may lie on the meta device.
    """
    own = network.state_dict()
    if missing := [name for name in own if name not in tensors]:
        raise ValueError(f"{len(missing)} of the network's tensors are missing, {missing[0]} for one")
    if strange := sorted(set(tensors) - set(own)):
        raise ValueError(f"{len(strange)} tensors are none of the network's, {strange[0]} for one")
    for name, wanted in own.items():
        given = tensors[name]
        if given.shape != wanted.shape:
            raise ValueError(f"{name} has shape {[*given.shape]}, the network's {[*wanted.shape]}")
        if given.dtype != wanted.dtype and not (given.is_floating_point() and wanted.is_floating_point()):
            raise ValueError(f"{name} holds {given.dtype}, the network's {wanted.dtype}")
        if not given.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def _is_pickle(path: Path, content: bytes) -> bool:
    """Whether what is no safetensors file is a pickle: torch's zip archive, a bare one, or one by its name."""
    bare = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return bare or content.startswith(b"PK\3\4") or path.suffix in PICKLES


def _card(content: bytes) -> dict:
    """The card of a safetensors file, by its public form: a length, a JSON header, the tensors."""
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}
    if "card" not in about:
        raise ValueError("it has no card, which says of which network it is")
    card = json.loads(about["card"])
    if not isinstance(card, dict):
        raise ValueError("its card is no mapping")
    for key in ("step", "t_max", "t_start", "t_stop"):
        if key in card and not (type(card[key]) is int and 0 <= card[key] <= MOST_STEPS):
            raise ValueError(f"its card's {key} is no number from 0 to {MOST_STEPS}")
    return card


def _require_modest(network: Mapping) -> None:
    """ValueError where building a network as a card has it would take for ever, or calling it would fail."""
    if not isinstance(network, Mapping):
        raise ValueError("its network is no mapping")
    for key in ("channels", "strides", "discriminator_channels", "discriminator_strides"):
        if not all(isinstance(one, int) and one > 0 for one in network.get(key, ())):
            raise ValueError(f"{key} {network[key]} are no numbers of at least 1")
    for value in _values(network):
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise ValueError(f"{value} is more than any network here has")
        if isinstance(value, list) and len(value) > LONGEST:
            raise ValueError(f"a list of {len(value)} is more than any network here has")


def _values(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)


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
            if first.data[key] != other.data[key]:
                raise ValueError(f"{first.path} and {other.path}: trained on different {what}, so not to be combined")
