"""A profile: every setting of a run as one typed, frozen object, read from configs/.

`paper.yaml` is whole; another profile lists only where it departs from it, or from the profile that its `base` names,
and `changes` depart from that again. A wrong key, type or range is refused with the path of the setting and the choices
there are.
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
Rule = Literal["ddpm", "ddim", "dpm_solver", "start_matched", "noise_level"]
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
    combination_layers: Annotated[StrictInt, Field(ge=1)]  # the first sees the code
    code_gain: NonNegative  # of its first weights, times He's


class ConditionalGan(PlainUNet):
    noise_scales: Counts  # pixels: how wide each number of a map of Gaussian numbers is, one map each
    discriminator_channels: Counts
    discriminator_strides: Counts


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
    dice_nats: NonNegative  # of a whole Dice loss, a pixel; 0: the authors' bound


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
    patience: Count | None = None  # validations in a row without a new best that end a training; None: none do
    min_gain: NonNegative = 0.0  # a later checkpoint becomes the best if its score is higher by more than this

    @model_validator(mode="after")
    def _may_end_at_any_update(self) -> Self:
        if self.patience is not None and (self.learning_rate != self.final_learning_rate or not self.ema_decay):
            raise ValueError(
                f"patience {self.patience}: wants final_learning_rate equal to learning_rate, and ema_decay above 0: a"
                " falling rate is still high where a training ends early; averaged weights stand in for its fall"
            )
        return self


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


class MaskAutoencoder(Section):
    classes: Count
    factor: Literal[1, 2, 4]  # between the grids of mask and code
    latent_channels: Count
    channels: Counts


class AutoencoderTraining(Section):
    network: MaskAutoencoder
    positive_weight: Positive  # of a lesion's pixel in the cross-entropy
    deviation: Literal["unit", "masks"]  # of the training masks' codes in the chain: one, or as masks have themselves
    fit: Fit


class LatentTraining(Section):
    autoencoder: AutoencoderTraining
    network: GuidedUNet  # the denoiser of codes, on the schedule of the masks' denoiser
    prediction: Literal["eps", "v", "x_start"]
    fit: Fit
    validation_subjects: Count
    calls: Counts  # of the chains that are compared with those of masks, on the validation subjects
    ensemble_size: Count

    @model_validator(mode="after")
    def _network_of_the_codes(self) -> Self:
        if self.network.out_channels != self.autoencoder.network.latent_channels:
            raise ValueError(
                f"network.out_channels {self.network.out_channels}: a code has "
                f"{self.autoencoder.network.latent_channels} channels"
            )
        return self

    def require_fit(self, image_channels: int, multiple: int) -> None:
        """ValueError unless the network takes the image on the codes' grid, and window and crops fall on its grids."""
        factor = self.autoencoder.network.factor
        wanted = image_channels * factor**2 + self.network.out_channels
        if self.network.in_channels != wanted:
            raise ValueError(
                f"latent.network.in_channels {self.network.in_channels}: an image of {image_channels} channels and a "
                f"code of {self.network.out_channels} come to {wanted} at factor {factor}"
            )
        coarsest = factor * 2 ** (len(self.network.channel_mult) - 1)
        for name, size, unit in (
            ("data.multiple", (multiple,), coarsest),
            ("latent.fit.crop", self.fit.crop, coarsest),
            ("latent.autoencoder.fit.crop", self.autoencoder.fit.crop, factor),
        ):
            if any(length % unit for length in size):
                raise ValueError(f"{name} {[*size]}: factor and levels of the latent networks want multiples of {unit}")


class StateLimits(Section):
    """How far a generator's states may be from a diffused mask's before its row is called weak."""

    mean_in_lesions: NonNegative
    mean_outside: NonNegative
    deviation_outside: NonNegative  # a share
    between_draws: Share  # of the deviation between draws, at least


class TdpmTraining(Section):
    t_primes: Counts
    network: ConditionalGan
    lesion_share: Share  # of the images of a batch that are crops around a lesion
    mismatched_steps: Count  # updates in which the discriminator also learns to refuse other images' references
    limits: StateLimits
    fit: Fit


class RefineTraining(Section):
    network: AttentionUNet
    objective: SegmentationObjective
    fit: Fit
    validation_subjects: Count


class DistillationTraining(Section):
    calls: Count  # of the first teacher's chain, the trained denoiser's; each student makes half of its teacher's
    preseg_share: Share  # of the states that are diffused pre-segmentations; the others are diffused references
    fit: Fit  # of each student
    validation_subjects: Count
    ensemble_size: Count  # where students and denoiser are compared on the validation subjects

    @model_validator(mode="after")
    def _can_be_halved(self) -> Self:
        if self.calls < 2 or self.calls & (self.calls - 1):
            raise ValueError(f"calls {self.calls}: a power of two from 2 on, which halves down to 1")
        if self.fit.ema_decay:
            raise ValueError(f"fit.ema_decay {self.fit.ema_decay:g}: a student's weights are not averaged")
        return self

    @property
    def students(self) -> tuple[int, ...]:
        """The calls of each student, in the order of their training: 8, 4, 2, 1 after a teacher of 16."""
        return tuple(self.calls >> k for k in range(1, self.calls.bit_length()))


class PresegMixture(Section):
    """What stands in for out-of-fold pre-segmentations while training: see `corruption.Mixture`."""

    corrupted: Share
    empty: Share
    dropped: Share
    added: Share

    @model_validator(mode="after")
    def _shares_of_one_whole(self) -> Self:
        if self.corrupted + self.empty > 1:
            raise ValueError(f"corrupted {self.corrupted:g} and empty {self.empty:g} are shares of the same images")
        return self


class RefinerTraining(Section):
    network: AttentionUNet
    fit: Fit


class StartMatchedTraining(Section):
    network: GuidedUNet  # of x_start from image, pre-segmentation and state, with the denoiser's schedule and masks
    presegs: PresegMixture
    fit: Fit
    halves: Fit  # of the pre-segmenters of half the training subjects, which segment the other half
    refiner: RefinerTraining  # with the segmenters' objective
    calls: Counts  # of the chains that are compared on the validation subjects
    ensemble_size: Count


class NoiseLevel(Section):
    in_channels: Count
    channels: Counts


class NoiseLevelTraining(Section):
    network: NoiseLevel  # of alphas_cumprod from image and state, at the indices below chain.t_prime
    fit: Fit
    calls: Counts  # of the chains that are compared on the validation subjects, one member each


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
    spacing: Literal["both_ends", "trailing"]

    @model_validator(mode="after")
    def _within_the_chain(self) -> Self:
        for name in ("t_prime", "t_stop"):
            if getattr(self, name) > self.paper_steps:
                raise ValueError(f"{name} {getattr(self, name)} exceeds paper_steps {self.paper_steps}")
        return self


class Repeats(Section):
    """How often the key trainings are repeated, and on whom they are tested: each subject by one of the trainings."""

    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]  # of pre-segmenter, denoiser and start-matched denoiser
    further_per_site: Whole  # phantom subjects that are tested instead of the test fold's; 0: that fold's are
    others_per_site: Count | None  # of them every row is tested on these, key_methods on all; None: every row on all
    key_methods: tuple[MethodName, ...]

    @model_validator(mode="after")
    def _can_be_dealt(self) -> Self:
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: each stands there once")
        if (self.others_per_site or 0) > self.further_per_site:
            raise ValueError(f"others_per_site {self.others_per_site} exceeds further_per_site {self.further_per_site}")
        return self

    def require_phantom(self, data: str) -> None:
        """ProfileError for a folder of cases where further subjects are to be tested: only the phantom has more."""
        if data and self.further_per_site:
            raise ProfileError(
                f"repeats.further_per_site {self.further_per_site}: further subjects are drawn from the phantom, and "
                f"{data} holds other cases; set it to 0 (others_per_site: null), and the test fold is tested"
            )


class Comparison(Section):
    methods: MethodNames
    presegmenter: Presegmenter
    deep_ensemble_seeds: Annotated[tuple[Whole, ...], Field(min_length=2)]
    t_prime_candidates: Counts  # for rows that choose their own T', on the validation fold
    calls: dict[ChainName, Count]  # of rows that make another number of calls than the chain's stride gives
    weak_gap: NonNegative  # of Dice, that the Probabilistic U-Net may lie below the U-Net before its title says so


class Sweep(Section):
    t_primes: Counts
    ensemble_size: Count


class Members(Section):
    pool: Count
    sizes: Counts
    draws: Count
    agreement_methods: MethodNames
    calibration_bins: Count
    spread_subjects: Count  # validation subjects on which the causes of the members' spread are told apart
    spread_size: Annotated[StrictInt, Field(ge=2)]  # members of each chain that is tried there

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
    power: Annotated[StrictFloat, Field(gt=0, lt=1)]
    seed_share: Share  # of a difference's variance, between trainings: what a plan assumes


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
    reference: (
        str | None
    )  # a profile whose networks a clone comes with, and whose scores the ledger reads; None: its own
    repeats: Repeats
    data: Data
    machine: Machine
    ensemble: Ensemble
    chain: ChainSettings
    segmenters: Segmenters
    denoiser: DenoiserTraining
    wolleb2021: DenoiserTraining
    tdpm: TdpmTraining
    refine: RefineTraining
    distillation: DistillationTraining | None  # None: no students, in no notebook
    latent: LatentTraining | None  # None: no chain of codes, in no notebook
    start_matched: StartMatchedTraining | None  # None: no such row, nor the refiner
    noise_level: NoiseLevelTraining | None  # None: no levels are estimated, in no notebook
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
        if "distilled" in self.rows and self.distillation is None:
            raise ValueError("distillation: null leaves no networks for the row distilled")
        if "distilled" in self.rows and self.denoiser.diffusion.prediction == "eps":
            raise ValueError("denoiser.diffusion.prediction: eps cannot be distilled, v and x_start can")
        return self

    @model_validator(mode="after")
    def _chains_start_as_they_were_trained(self) -> Self:
        rows, denoiser = sorted({"start_matched", "unmatched", "refiner"} & self.rows), self.denoiser.network
        if rows and self.start_matched is None:
            raise ValueError(f"start_matched: null leaves no networks for the row {rows[0]}")
        if "start_matched" in rows and self.chain.convention != "consistent":
            raise ValueError("chain.convention: a start-matched chain is trained for consistent alone")
        if self.start_matched is not None:
            sees, preseg = self.start_matched.network.in_channels, denoiser.out_channels
            if sees != denoiser.in_channels + preseg:
                raise ValueError(f"start_matched.network.in_channels {sees}: those of the denoiser and the preseg's")
        return self

    @model_validator(mode="after")
    def _codes_fit_the_slices(self) -> Self:
        if self.latent is None and "latent" in self.rows:
            raise ValueError("latent: null leaves no networks for the row latent")
        if self.latent is not None:
            masks = self.denoiser.network
            self.latent.require_fit(masks.in_channels - masks.out_channels, self.data.multiple)
        return self

    @model_validator(mode="after")
    def _levels_can_be_estimated(self) -> Self:
        if self.noise_level is None and "noise_level" in self.rows:
            raise ValueError("noise_level: null leaves no network for the row noise_level")
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
    settings = _merged(_whole(name), changes)
    try:
        return Profile.model_validate({**settings, "name": name, "changes": json.loads(json.dumps(changes))})
    except ValidationError as error:
        raise ProfileError("\n".join(f"profile {name}: {_explained(one)}" for one in error.errors())) from None
    except TypeError as error:
        raise ProfileError(f"profile {name}: changes {changes!r} are not plain settings ({error})") from None


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
