"""The networks that `segment` runs: found, checked to belong together, and how their card says to sample."""

from dataclasses import dataclass
from pathlib import Path

from pdlib.diffusion.sampler import Chain
from pdlib.evaluation.quality import FILE, Quality
from pdlib.inference.chains import chain_of
from pdlib.methods import CHAIN, METHODS
from pdlib.paths import BEST_FIRST, committed_weights, weights_folder
from pdlib.profiles import profile_names
from pdlib.sections.base import MOST_MEMBERS
from pdlib.sections.cards import card_fault
from pdlib.sections.design import ChainSettings
from pdlib.training.weights import Weights, load_weights, same_data


@dataclass(frozen=True)
class Changes:
    """What differs from how the networks' card says to sample; None: as it says. ValueError for what cannot be."""

    threshold: float | None = None
    members: int | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold:g}: must lie between 0 and 1")
        if self.members is not None and not 1 <= self.members <= MOST_MEMBERS:
            raise ValueError(f"--members {self.members}: must be 1 to {MOST_MEMBERS}")
        if self.calls is not None and self.calls < 1:
            raise ValueError(f"--calls {self.calls}: must be at least 1")


@dataclass(frozen=True)
class Sampling:
    """How members are sampled and what they come to."""

    chain: Chain
    members: int
    threshold: float
    vote: str
    preseg_threshold: float  # of the pre-segmentation that the chain starts from: the card's, whatever the mask's
    seed: int


@dataclass(frozen=True)
class Trained:
    """A denoiser and its pre-segmenter, both trained to the end on the same subjects, and how good their masks are.

    quality: None where none was fitted to them.
    """

    folder: Path
    profile: str | None
    denoiser: Weights
    segmenter: Weights
    quality: Quality | None

    @classmethod
    def read(cls, folder: Path, profile: str | None = None) -> "Trained":
        """The networks of a folder; ValueError, naming the file, where one is missing, unfinished or does not fit."""
        denoiser = load_weights(folder / "denoiser_0" / "best.safetensors").require_kind("denoiser")
        _require_settings(denoiser)
        name = f"{denoiser.card['sampling']['presegmenter']}_0"
        segmenter = load_weights(folder / name / "best.safetensors").require_kind("segmenter")
        same_data(denoiser, segmenter)
        quality = Quality.load(folder / FILE) if (folder / FILE).exists() else None
        return cls(folder, profile, denoiser.require_finished(), segmenter.require_finished(), quality)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each weights file, by its training's name."""
        return {"denoiser_0": self.denoiser.digest, f"{self.sampling['presegmenter']}_0": self.segmenter.digest}

    @property
    def whose(self) -> str:
        """Whose networks these are, for a reader, in brackets; nothing where a folder was named."""
        if self.profile is not None:
            return f" (profile {self.profile})"
        return f" (of the repository, trained by profile {self.denoiser.card['profile']})" if self.committed else ""

    @property
    def of_profile(self) -> str | None:
        """The profile that trained them; None for a folder that was named."""
        return self.profile or (self.denoiser.card["profile"] if self.committed else None)

    @property
    def committed(self) -> bool:
        """Whether these are the networks that the repository comes with."""
        return self.folder in [_committed_folder(profile) for profile in ("", *BEST_FIRST)]

    @property
    def sampling(self) -> dict:
        """How to sample, as the profile of the training had it."""
        return self.denoiser.card["sampling"]

    @property
    def data(self) -> dict:
        """What the networks were trained on."""
        return self.denoiser.card["data"]

    @property
    def takes_flair_alone(self) -> bool:
        """Whether the T1 was dropped at times in their training, so that they know what to do without one."""
        return bool(self.data.get("t1_dropped"))

    def how(self, changes: Changes) -> Sampling:
        """How to sample with these networks. ValueError where a change does not fit their chain."""
        ensemble, settings = self.sampling["ensemble"], ChainSettings(**self.sampling["chain"])
        steps = self.denoiser.card["diffusion"]["schedule"]["steps"]
        chain = chain_of(METHODS[CHAIN], settings, steps)
        if changes.calls is not None:
            if changes.calls > chain.t_prime:
                raise ValueError(f"--calls {changes.calls}: the networks' chain has {chain.t_prime} steps")
            chain = chain_of(METHODS[CHAIN], settings, steps, calls=changes.calls)
        threshold = ensemble["threshold"] if changes.threshold is None else changes.threshold
        members = changes.members or ensemble["size"]
        return Sampling(chain, members, threshold, ensemble["vote"], ensemble["threshold"], self.sampling["seed"])


def find_trained(weights: Path | str | None) -> tuple[Trained, tuple[str, ...]]:
    """The networks to use, and why better profiles are passed over; see `segment_files` for weights.

    ValueError or FileNotFoundError, naming the file, where these are none.
    """
    if weights is None:
        return _best_trained()
    if isinstance(weights, str) and weights in profile_names():
        folder = weights_folder(weights)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: nothing trained; run `make reproduce PROFILE={weights}` first")
        return Trained.read(folder, weights), ()
    if not Path(weights).is_dir():
        raise FileNotFoundError(f"{weights}: no folder of weights, nor a profile ({', '.join(profile_names())})")
    return Trained.read(Path(weights)), ()


def _best_trained() -> tuple[Trained, tuple[str, ...]]:
    passed_over = []
    for profile in BEST_FIRST:
        folder = weights_folder(profile)
        if folder.is_dir():
            try:
                return Trained.read(folder, profile), tuple(passed_over)
            except ValueError as error:
                passed_over.append(f"profile {profile} is passed over: {error}")
        if committed_weights("denoiser_0", profile).exists():
            return Trained.read(_committed_folder(profile)), tuple(passed_over)
    if committed_weights("denoiser_0").exists():
        return Trained.read(_committed_folder()), tuple(passed_over)
    others = [name for name in profile_names() if name not in BEST_FIRST and weights_folder(name).is_dir()]
    advice = "".join(f", or --weights {name} for a try" for name in others)
    causes = "".join(f"; {cause}" for cause in passed_over)
    runs = weights_folder(BEST_FIRST[-1]).parents[1]
    raise FileNotFoundError(
        f"{runs}: no profile ({', '.join(BEST_FIRST)}) has a complete set of trained networks;"
        f" run `make reproduce` first, or pass --weights FOLDER{advice}{causes}"
    )


def _committed_folder(profile: str = "") -> Path:
    return committed_weights("denoiser_0", profile).parents[1]


def _require_settings(denoiser: Weights) -> None:
    """ValueError, naming the file, where its card does not say what sampling needs."""
    if fault := card_fault(denoiser.card):
        raise ValueError(f"{denoiser.path}: its card does not say how to sample ({fault}): train it again")
