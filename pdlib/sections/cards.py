"""What a denoiser's card has to say before anyone can sample with it: the type and the bounds of each entry."""

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictBool, StrictStr, ValidationError

from pdlib.sections.base import Count, NonNegative, Percentiles, Positive, Presegmenter, Section, Seed, Share, reason
from pdlib.sections.design import ChainSettings, Ensemble
from pdlib.sections.trainings import SCHEDULES, Diffusion

MOST_ROWS, LARGEST_MULTIPLE = 4096, 1024  # slices in a call, and pixels that a slice's sides are a multiple of


class Entries(Section):
    """A part of a card, which may hold other entries beside these."""

    model_config = ConfigDict(extra="ignore")


class HowToSample(Entries):
    presegmenter: Presegmenter
    chain: ChainSettings
    ensemble: Ensemble
    voxel_tolerance: NonNegative
    seed: Seed
    batch_size: Annotated[Count, Field(le=MOST_ROWS)]


class InPlane(Section):
    """Of the training subjects' voxels, (y, x) in mm."""

    low: tuple[Positive, Positive]
    median: tuple[Positive, Positive]
    high: tuple[Positive, Positive]


class Thickness(Section):
    """Of the training subjects' slices, in mm."""

    low: Positive
    median: Positive
    high: Positive


class TrainedOn(Entries):
    clip_percentiles: Percentiles
    in_plane_mm: InPlane
    slice_mm: Thickness | None = None
    multiple: Annotated[Count, Field(le=LARGEST_MULTIPLE)]
    phantom: StrictBool
    t1_dropped: Share = 0.0


class DenoiserCard(Entries):
    profile: StrictStr | None = None
    sampling: HowToSample
    data: TrainedOn
    diffusion: Diffusion


def card_fault(card: Mapping[str, Any]) -> str | None:
    """What is wrong with a denoiser's card, on one line; None: it can be sampled with."""
    try:
        DenoiserCard.model_validate(dict(card))
    except ValidationError as error:
        return "; ".join(_explained(one) for one in error.errors()[:3])
    return None


def _explained(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"] if part not in SCHEDULES)  # pydantic names the kind of schedule
    if error["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {reprlib.repr(error['input'])}: {reason(error)}"
