"""Trainings: what is trained, by which loss, for how long, and how the best weights are chosen."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

from pdlib.sections.base import Count, Counts, NonNegative, Positive, Presegmenter, Section, Share, Steps
from pdlib.sections.networks import (
    AttentionUNet,
    BayesianUNet,
    ConditionalGan,
    GuidedUNet,
    MaskAutoencoder,
    NoiseLevel,
    ProbabilisticUNet,
    UNet,
    UNetPlusPlus,
)


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
    steps: Steps
    offset: Positive
    max_beta: Share


class LinearSchedule(Section):
    name: Literal["linear"]
    steps: Steps
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
