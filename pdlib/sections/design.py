"""Data, machine and chain, and what each notebook of the study asks."""

from typing import Annotated, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from pdlib.methods import CHAIN
from pdlib.sections.base import (
    MOST_MEMBERS,
    ChainName,
    ChainNames,
    Count,
    Counts,
    MethodName,
    MethodNames,
    NonNegative,
    Percentiles,
    Positive,
    Presegmenter,
    ProfileError,
    Rule,
    Section,
    Seed,
    Share,
    Steps,
    Whole,
)


class Data(Section):
    folds: Annotated[StrictInt, Field(ge=3)]
    clip_percentiles: Percentiles
    multiple: Count  # slices are cut to the brain and padded to a multiple of this
    cases_per_site: Count  # of the phantom, as the next two
    grid_scale: tuple[Positive, Positive, Positive]
    label2_fraction: Share
    t1_dropped: Share  # of the training crops, whose T1 is missing: such networks also segment a FLAIR alone


class Machine(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "bf16-mixed", "32-true"]
    batch_size: Count
    threads: Count  # of a job
    workers: Count  # processes that write the phantom
    gpus_per_job: Whole


class Ensemble(Section):
    size: Annotated[Count, Field(le=MOST_MEMBERS)]
    threshold: Annotated[StrictFloat, Field(gt=0, lt=1)]
    vote: Literal["soft", "majority"]


class ChainSettings(Section):
    """How a row of Table 1 becomes a chain: T' and t_stop are the paper's, of `paper_steps`."""

    paper_steps: Steps
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

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]  # of pre-segmenter, denoiser and start-matched denoiser
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


class Confirmation(Section):
    """Phantom subjects of their own, which the ledger is read from: tested once, after the run (`study.confirm`)."""

    per_site: Count
    few_per_site: Count  # of them the dear rows of claims that few subjects decide are tested on these
    few: MethodNames  # those rows; the random ensembles of Fig. 4 are tested on few as well

    @model_validator(mode="after")
    def _few_are_a_part(self) -> Self:
        if self.few_per_site > self.per_site:
            raise ValueError(f"few_per_site {self.few_per_site} exceeds per_site {self.per_site}")
        return self


class Comparison(Section):
    methods: MethodNames
    presegmenter: Presegmenter
    deep_ensemble_seeds: Annotated[tuple[Seed, ...], Field(min_length=2)]
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
    gain: NonNegative  # of Dice: what "beats" has to bring; where less is shown, the claim fails
    power: Annotated[StrictFloat, Field(gt=0, lt=1)]
    seed_share: Share  # of a difference's variance, between trainings: what a plan assumes
