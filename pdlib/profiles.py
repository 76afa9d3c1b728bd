"""A profile: every setting of a run as one typed, frozen object, read from configs/.

`paper.yaml` is whole; another profile lists only where it departs from it, or from the profile that its `base` names,
and `changes` depart from that again. A wrong key, type or range is refused with the path of the setting and the choices
there are.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from operator import attrgetter
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from pdlib.methods import METHODS
from pdlib.paths import CONFIGS
from pdlib.sections.base import ProfileError, Section, Seed, Share, Whole, reason
from pdlib.sections.design import (
    ChainSettings,
    Comparison,
    Confirmation,
    Data,
    Ensemble,
    FewerCalls,
    Machine,
    Members,
    PresegAccuracy,
    Repeats,
    Statistics,
    Sweep,
    Truncation,
)
from pdlib.sections.text import read_yaml
from pdlib.sections.trainings import (
    SCHEDULES,
    DenoiserTraining,
    DistillationTraining,
    Fundus,
    LatentTraining,
    NoiseLevelTraining,
    RefineTraining,
    Segmenters,
    StartMatchedTraining,
    TdpmTraining,
)

BASE = "paper"
LONGEST_SAID = 500  # characters of what was given that a message repeats


class Profile(Section):
    """All settings of a run.

    Attributes:
        name: of the file in configs/.
        changes: what departs from that file.
    """

    name: str
    changes: dict[str, Any]
    seed: Seed
    fold: Whole
    reference: str | None  # the profile whose networks are in weights/ and whose scores the ledger reads; None: its own
    fine_tune: bool  # on patients trainings go on from the profile's networks in weights/, where they come along
    repeats: Repeats
    confirmation: Confirmation | None  # None: the ledger is read from the run's own scores
    data: Data
    machine: Machine
    ensemble: Ensemble
    chain: ChainSettings
    segmenters: Segmenters
    denoiser: DenoiserTraining
    wolleb2021: DenoiserTraining
    tdpm: TdpmTraining
    refine: RefineTraining
    distillation: DistillationTraining
    latent: LatentTraining
    start_matched: StartMatchedTraining
    noise_level: NoiseLevelTraining
    fundus: Fundus | None  # None: no photographs in notebook 08
    comparison: Comparison
    sweep: Sweep
    members: Members
    preseg_accuracy: PresegAccuracy
    truncation: Truncation
    fewer_calls: FewerCalls
    statistics: Statistics
    voxel_tolerance: Share  # `segment` resamples images whose in-plane voxels are further from those of the training

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        for name in sorted(self.rows):
            if wrong := set(METHODS[name].settings) - set(ChainSettings.model_fields):
                raise ValueError(f"{name}: methods.METHODS fixes {sorted(wrong)}, and no chain has such a setting")
            ChainSettings.model_validate({**self.chain.model_dump(), **METHODS[name].settings})
        if strange := [name for name in self.repeats.key_methods if name not in self.comparison.methods]:
            raise ValueError(f"repeats.key_methods: {strange[0]} is no row of comparison.methods")
        if self.reference is not None and self.reference not in profile_names():
            raise ValueError(f"reference: no profile {self.reference!r}: choose one of {', '.join(profile_names())}")
        if self.fold >= self.data.folds:
            raise ValueError(f"fold {self.fold}: there are folds 0 to {self.data.folds - 1}")
        starts = ("sweep.t_primes", "truncation.t_primes", "tdpm.t_primes", "comparison.t_prime_candidates")
        for name in (*starts, "truncation.t_stops"):
            if (longest := max(attrgetter(name)(self))) > self.chain.paper_steps:
                raise ValueError(f"{name}: {longest} exceeds chain.paper_steps {self.chain.paper_steps}")
        if self.chain.t_stop not in self.truncation.t_stops and "addpm" in self.comparison.methods:
            raise ValueError(f"truncation.t_stops: ADDPM of Table 1 stops at chain.t_stop {self.chain.t_stop}")
        drawn = {self.chain.t_prime, *self.comparison.t_prime_candidates}
        if "tdpm" in self.rows and not drawn <= {*self.tdpm.t_primes}:
            raise ValueError("tdpm.t_primes: a generator is needed for chain.t_prime and each of t_prime_candidates")
        for name, noisy in (("denoiser", self.denoiser), ("wolleb2021", self.wolleb2021)):
            learned = noisy.vlb_weight is not None
            if learned != (name == "wolleb2021"):
                raise ValueError(f"{name}.vlb_weight: belongs to wolleb2021 alone")
        return self

    @model_validator(mode="after")
    def _students_can_be_distilled(self) -> Self:
        if "distilled" in self.rows and self.denoiser.diffusion.prediction == "eps":
            raise ValueError("denoiser.diffusion.prediction: eps cannot be distilled, v and x_start can")
        return self

    @model_validator(mode="after")
    def _chains_start_as_they_were_trained(self) -> Self:
        if "start_matched" in self.rows and self.chain.convention != "consistent":
            raise ValueError("chain.convention: a start-matched chain is trained for consistent alone")
        sees, denoiser = self.start_matched.network.in_channels, self.denoiser.network
        if sees != denoiser.in_channels + denoiser.out_channels:
            raise ValueError(f"start_matched.network.in_channels {sees}: those of the denoiser and the preseg's")
        return self

    @model_validator(mode="after")
    def _codes_fit_the_slices(self) -> Self:
        masks = self.denoiser.network
        self.latent.require_fit(masks.in_channels - masks.out_channels, self.data.multiple)
        return self

    @property
    def rows(self) -> set[str]:
        """Every row of Table 1 that some notebook scores."""
        return {*self.comparison.methods, *self.fewer_calls.starts, *self.members.agreement_methods}

    @cached_property
    def interval(self) -> dict[str, float]:
        """The keywords of `stats.mean_interval` and `stats.paired_comparison`."""
        return {"resamples": self.statistics.resamples, "confidence": self.statistics.confidence, "seed": self.seed}

    def explain(self, *sections: str) -> str:
        """Sections as YAML, for a reader: in lines that fit a notebook's output beside an open side bar."""
        shown = self.model_dump(mode="json", include=set(sections))
        return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=76).rstrip()


def profile_names() -> list[str]:
    """The profiles of configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("phantom"))


def load_profile(name: str, changes: Mapping[str, Any] | None = None) -> Profile:
    """A profile of configs/ with changes, nested like the profile: {"chain": {"eta": 0}}.

    ProfileError for a name that is none, and for settings that cannot be used, one line for each.
    """
    if name not in profile_names():
        raise ProfileError(f"unknown profile {name!r}: choose one of {', '.join(profile_names())}")
    changes = {} if changes is None else changes
    if not isinstance(changes, Mapping):
        raise ProfileError(f"profile {name}: changes {changes!r}: should be sections: {{'chain': {{'eta': 0}}}}")
    changes = dict(changes)
    if own := [key for key in ("name", "changes") if key in changes]:
        raise ProfileError(f"profile {name}: {own[0]}: no such setting; choose one of {', '.join(_fields_at([]))}")
    settings = _merged(_whole(name), changes)
    try:
        return Profile.model_validate({**settings, "name": name, "changes": json.loads(json.dumps(changes))})
    except ValidationError as error:
        raise ProfileError("\n".join(f"profile {name}: {_explained(one)}" for one in error.errors())) from None
    except TypeError as error:
        raise ProfileError(f"profile {name}: changes {changes!r} are not plain settings ({error})") from None


def asked_changes(text: str) -> dict:
    """What CHANGES asks for, also of `make plan`; ValueError, one line, where it is no mapping of settings."""
    shown = " ".join(text.split())
    said = f"CHANGES={shown if len(shown) <= LONGEST_SAID else shown[:LONGEST_SAID] + '...'}"
    try:
        changes = read_yaml(text, aliases=False)
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None
    if changes is None:
        return {}
    if not isinstance(changes, dict) or not all(isinstance(section, str) for section in changes):
        raise ValueError(f"{said}: has to be sections of the profile, such as {{chain: {{eta: 0.0}}}}")
    return changes


def _whole(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a file in configs/ on those of the profile that it departs from: `base`, if not the paper's.

    above: the profiles that depart from it. A section that the base leaves out departs from the paper's.
    """
    settings = _read(name)
    base = settings.pop("base", None if name == BASE else BASE)
    if base is None:
        return settings
    if base not in profile_names() or base in (*above, name):
        raise ProfileError(f"profile {name}: base: {base!r}: should be a profile that departs from {BASE} in the end")
    below = _whole(base, (*above, name))
    taken_up = {name: _read(BASE)[name] for name in settings if name in below and below[name] is None}
    return _merged(below | taken_up, settings)


def _read(name: str) -> dict[str, Any]:
    path = CONFIGS / f"{name}.yaml"
    try:
        settings = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ProfileError(f"{path}: holds no sections")
    return settings


def _merged(base: Any, departures: Any) -> Any:
    """Sections are merged key by key; everything else is replaced, lists too, and sections of another name."""
    if not (isinstance(base, Mapping) and isinstance(departures, Mapping)):
        return departures
    if departures.get("name", base.get("name")) != base.get("name"):
        return departures
    return {**base, **{key: _merged(base.get(key), value) for key, value in departures.items()}}


def _explained(error: Mapping[str, Any]) -> str:
    """One line on a setting: its path, what was given, what may stand there."""
    path = [str(part) for part in error["loc"]]
    place = [part for part in path if part not in SCHEDULES]  # pydantic names the kind within a path
    if error["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: no such setting; choose one of {', '.join(_fields_at(path[:-1]))}"
    if error["type"] == "missing":
        return f"{'.'.join(place)}: missing"
    given = "" if isinstance(error["input"], dict | BaseModel) else f"{error['input']!r}: "
    advice = reason(error)
    hint = " (write 1.0e-4, with a dot: YAML reads 1e-4 as text)" if _number_as_text(error) else ""
    return f"{'.'.join(place)}{': ' if place else ''}{given}{advice}{hint}"


def _number_as_text(error: Mapping[str, Any]) -> bool:
    try:
        return error["type"] == "float_type" and "e" in error["input"].lower() and float(error["input"]) is not None
    except (AttributeError, ValueError):
        return False


def _fields_at(path: list[str]) -> list[str]:
    """The settings that the section at a path knows, as pydantic writes paths; the empty path is the profile."""
    kind: type[BaseModel] = Profile
    for part in path:
        kind = SCHEDULES.get(part) or _section_of(kind.model_fields[part].annotation)
    return [name for name in kind.model_fields if kind is not Profile or name not in ("name", "changes")]


def _section_of(annotation: Any) -> type[BaseModel]:
    """The section that a setting holds, the first of several."""
    return next(
        one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)
    )
