"""A profile: every setting of a run as one typed, frozen object, read from configs/.

`paper.yaml` is whole; another profile lists only where it departs from it, and `changes` depart from that again. A
wrong key, type or range is refused with the path of the setting and the choices there are.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError, model_validator

from pdlib.methods import CHAIN, METHODS
from pdlib.paths import CONFIGS

BASE = "paper"
Count = Annotated[StrictInt, Field(ge=1)]
Whole = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[StrictFloat, Field(gt=0)]
NonNegative = Annotated[StrictFloat, Field(ge=0)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Norm = Literal["batch", "instance", "group"]
Rule = Literal["ddpm", "ddim", "dpm_solver"]
Presegmenter = Literal["unet", "attention_unet", "unet_plus_plus", "bayesian_unet", "probabilistic_unet"]
MethodName = Literal[tuple(METHODS)]
MethodNames = Annotated[tuple[MethodName, ...], Field(min_length=1)]
ChainName = Literal[tuple(name for name, method in METHODS.items() if method.start)]
ChainNames = Annotated[tuple[ChainName, ...], Field(min_length=1)]


class ProfileError(ValueError):
    """A profile, or a change to one, that cannot be used: one line for each setting, with its path and the choices."""


class Section(BaseModel):
    """A part of a profile. `arguments()` gives it as the keywords of the function that it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def arguments(self, *without: str) -> dict[str, Any]:
        """The settings that were given, as plain Python values."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in without}


# Networks: the keywords of the builders in pdlib.networks.
class Channels(Section):
    in_channels: Count
    out_channels: Count
    channels: Counts


class AttentionUNet(Channels):
    strides: Counts
    dropout: Share


class PlainUNet(Channels):
    strides: Counts
    num_res_units: Whole
    norm: Norm


class UNet(PlainUNet):
    dropout: Share


class UNetPlusPlus(Channels):
    channels: Annotated[tuple[Count, ...], Field(min_length=6, max_length=6)]
    norm: Norm
    dropout: Share


class BayesianUNet(UNet):
    dropout_from: Whole  # the first level that keeps its dropout, counted from 0


class ProbabilisticUNet(PlainUNet):
    block_convolutions: Count
    latent: Count
    log_sigma_range: tuple[StrictFloat, StrictFloat]
    combination_layers: Whole


class ConditionalGan(PlainUNet):
    discriminator_channels: Count
    discriminator_layers: Count
    discriminator_norm: Norm


class GuidedUNet(Section):
    in_channels: Count
    out_channels: Count
    model_channels: Count
    channel_mult: Counts
    num_res_blocks: Count
    attention_downsample: tuple[Count, ...]
    num_heads: Count
    scale_shift: StrictBool
    dropout: Share


# Training.
class SegmentationObjective(Section):
    name: Literal["segmentation"]
    loss: Literal["ce", "dice_ce"]
    batch: StrictBool | None = None  # of dice_ce: pool the batch before the ratio
    lambda_ce: NonNegative | None = None  # of dice_ce: the cross-entropy's weight

    @model_validator(mode="after")
    def _options_of_the_loss(self) -> Self:
        if (self.loss == "dice_ce") != (self.lambda_ce is not None and self.batch is not None):
            raise ValueError("batch and lambda_ce are options of dice_ce, which needs both")
        return self

    def arguments(self, *without: str) -> dict[str, Any]:
        """As of every section, without the options of the other loss."""
        return {name: value for name, value in super().arguments(*without).items() if value is not None}


class ProbabilisticObjective(Section):
    name: Literal["probabilistic"]
    beta: NonNegative
    warmup_steps: Count


class Fit(Section):
    steps: Count
    batch_size: Count
    crop: tuple[Count, Count]  # (Y, X)
    flip_probability: Share
    learning_rate: Positive
    final_learning_rate: NonNegative
    weight_decay: NonNegative
    betas: tuple[Share, Share]
    ema_decay: Share
    validate_every: Count
    keep_validated: StrictBool


class Segmenters(Section):
    objective: SegmentationObjective
    fit: Fit
    unet: UNet
    attention_unet: AttentionUNet
    unet_plus_plus: UNetPlusPlus
    bayesian_unet: BayesianUNet
    probabilistic_unet: ProbabilisticUNet
    probabilistic_objective: ProbabilisticObjective

    def network(self, architecture: Presegmenter) -> Section:
        """The hyperparameters of an architecture."""
        return getattr(self, architecture)

    def objective_of(self, architecture: Presegmenter) -> Section:
        """What an architecture is trained by: the Probabilistic U-Net by its own bound."""
        return self.probabilistic_objective if architecture == "probabilistic_unet" else self.objective


class CosineSchedule(Section):
    name: Literal["cosine"]
    steps: Count
    offset: Positive
    max_beta: Share


class LinearSchedule(Section):
    name: Literal["linear"]
    steps: Count
    first_beta: Positive
    last_beta: Share


SCHEDULES = {"cosine": CosineSchedule, "linear": LinearSchedule}


class Diffusion(Section):
    schedule: Annotated[CosineSchedule | LinearSchedule, Field(discriminator="name")]
    codec: Literal["zero_one", "minus_one_one", "official"]
    prediction: Literal["eps", "v", "x_start"]


class DenoiserTraining(Section):
    network: GuidedUNet
    diffusion: Diffusion
    t_max: Count
    vlb_weight: NonNegative | None = None  # of the hybrid loss, for a network that learns its variance
    fit: Fit
    validation_subjects: Count

    @model_validator(mode="after")
    def _within_the_schedule(self) -> Self:
        if self.t_max > self.diffusion.schedule.steps:
            raise ValueError(f"t_max {self.t_max} exceeds the schedule's {self.diffusion.schedule.steps} steps")
        return self


class TdpmTraining(Section):
    t_primes: Counts
    network: ConditionalGan
    fit: Fit


class RefineTraining(Section):
    network: AttentionUNet
    objective: SegmentationObjective
    fit: Fit
    validation_subjects: Count


class Fundus(Section):
    cases: Count
    held_out: Count  # of them for validation, and as many for the test
    size: Count
    segmenter: AttentionUNet
    denoiser: GuidedUNet
    refine: AttentionUNet
    objective: SegmentationObjective
    fit: Fit


# Data, machine, chain and what the notebooks ask.
class Data(Section):
    folds: Annotated[StrictInt, Field(ge=3)]
    clip_percentiles: tuple[NonNegative, Positive]
    multiple: Count  # slices are cut to the brain and padded to a multiple of this
    cases_per_site: Count  # of the phantom, as the next two
    grid_scale: tuple[Positive, Positive, Positive]
    label2_fraction: Share

    @model_validator(mode="after")
    def _percentiles_ascend(self) -> Self:
        low, high = self.clip_percentiles
        if not low < high <= 100:
            raise ValueError(f"clip_percentiles {low:g} and {high:g}: the first is below the second, that at most 100")
        return self


class Machine(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "bf16-mixed", "32-true"]
    batch_size: Count
    threads: Count  # of a job
    workers: Count  # processes that write the phantom
    gpus_per_job: Whole


class Ensemble(Section):
    size: Count
    threshold: Share
    vote: Literal["soft", "majority"]


class ChainSettings(Section):
    """How a row of Table 1 becomes a chain: T' and t_stop are the paper's, of `paper_steps`."""

    paper_steps: Count
    t_prime: Count
    t_stop: Whole  # where a chain with a refining network is left
    stride: Count  # about every stride-th index is visited, both ends always
    calls: Count | None  # this many indices instead, whatever the stride
    rule: Rule
    eta: Share
    convention: Literal["consistent", "official"]

    @model_validator(mode="after")
    def _within_the_chain(self) -> Self:
        for name in ("t_prime", "t_stop"):
            if getattr(self, name) > self.paper_steps:
                raise ValueError(f"{name} {getattr(self, name)} exceeds paper_steps {self.paper_steps}")
        return self


class Comparison(Section):
    methods: MethodNames
    presegmenter: Presegmenter
    deep_ensemble_seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]
    t_prime_candidates: Counts  # for rows that choose their own T', on the validation fold


class Sweep(Section):
    t_primes: Counts
    ensemble_size: Count


class Members(Section):
    pool: Count
    sizes: Counts
    draws: Count
    agreement_methods: MethodNames
    calibration_bins: Count

    @model_validator(mode="after")
    def _sizes_within_half_the_pool(self) -> Self:
        if max(self.sizes) > self.pool // 2:
            raise ValueError(
                f"sizes up to {max(self.sizes)}: draws from a pool of {self.pool} would share most members"
            )
        return self


class PresegAccuracy(Section):
    dice_gaps: tuple[NonNegative, ...]

    @model_validator(mode="after")
    def _ends_at_the_best(self) -> Self:
        if list(self.dice_gaps) != sorted(set(self.dice_gaps), reverse=True) or self.dice_gaps[-1:] != (0,):
            raise ValueError("dice_gaps: each is smaller than the one before, and the last is 0, the best checkpoint's")
        return self


class Truncation(Section):
    t_primes: Counts
    t_stops: Counts
    stride: Count  # finer than the chain's where ADDPM would otherwise have no calls to save
    methods: MethodNames
    ensemble_size: Count

    @model_validator(mode="after")
    def _with_the_rows_of_the_notebook(self) -> Self:
        if self.methods[:1] != (CHAIN,) or not {"x0_jump", "addpm"} <= {*self.methods}:
            raise ValueError(
                f"methods {list(self.methods)}: {CHAIN} comes first, and x0_jump and addpm have to be there"
            )
        return self


class FewerCalls(Section):
    starts: ChainNames
    every_step: ChainNames
    calls: Counts  # from T'
    noise_calls: Counts  # from pure noise
    few_calls: Count  # of the solver's row in the ledger
    rules: tuple[Literal["ddim", "ddim_eta_1", "dpm_solver"], ...]
    ensemble_size: Count

    @model_validator(mode="after")
    def _with_the_rows_of_the_ledger(self) -> Self:
        read = {"starts": CHAIN, "every_step": CHAIN, "rules": "dpm_solver", "calls": self.few_calls}
        for name, row in read.items():
            if row not in getattr(self, name):
                raise ValueError(f"{name}: the ledger reads {row}")
        return self


class Statistics(Section):
    resamples: Count
    confidence: Annotated[StrictFloat, Field(gt=0, lt=1)]
    margin: NonNegative  # of Dice: what "not worse" may cost


class Profile(Section):
    """All settings of a run.

    Attributes:
        name: of the file in configs/.
        changes: what departs from that file.
    """

    name: str
    changes: dict[str, Any]
    seed: Whole
    fold: Whole
    data: Data
    machine: Machine
    ensemble: Ensemble
    chain: ChainSettings
    segmenters: Segmenters
    denoiser: DenoiserTraining
    wolleb2021: DenoiserTraining
    tdpm: TdpmTraining
    refine: RefineTraining
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

    @property
    def rows(self) -> set[str]:
        """Every row of Table 1 that some notebook scores."""
        return {*self.comparison.methods, *self.fewer_calls.starts, *self.members.agreement_methods}

    @cached_property
    def interval(self) -> dict[str, float]:
        """The keywords of `stats.mean_interval` and `stats.paired_comparison`."""
        return {"resamples": self.statistics.resamples, "confidence": self.statistics.confidence, "seed": self.seed}

    def explain(self, *sections: str) -> str:
        """Sections as YAML, for a reader."""
        shown = self.model_dump(mode="json", include=set(sections))
        return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110)


def profile_names() -> list[str]:
    """The profiles of configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("phantom"))


def load_profile(name: str, changes: Mapping[str, Any] | None = None) -> Profile:
    """A profile of configs/ with changes, nested like the profile: {"chain": {"eta": 0}}.

    ProfileError for a name that is none, and for settings that cannot be used, one line for each.
    """
    if name not in profile_names():
        raise ProfileError(f"unknown profile {name!r}: choose one of {', '.join(profile_names())}")
    if not isinstance(changes or {}, Mapping):
        raise ProfileError(f"profile {name}: changes {changes!r}: should be sections: {{'chain': {{'eta': 0}}}}")
    changes = dict(changes or {})
    if own := [key for key in ("name", "changes") if key in changes]:
        raise ProfileError(f"profile {name}: {own[0]}: no such setting; choose one of {', '.join(_fields_at([]))}")
    settings = _read(BASE)
    if name != BASE:
        settings = _merged(settings, _read(name))
    settings = _merged(settings, changes)
    try:
        return Profile.model_validate({**settings, "name": name, "changes": json.loads(json.dumps(changes))})
    except ValidationError as error:
        raise ProfileError("\n".join(f"profile {name}: {_explained(one)}" for one in error.errors())) from None
    except TypeError as error:
        raise ProfileError(f"profile {name}: changes {changes!r} are not plain settings ({error})") from None


def _read(name: str) -> dict[str, Any]:
    path = CONFIGS / f"{name}.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    advice = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
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
