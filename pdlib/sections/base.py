"""What every section of a profile shares: how it refuses a setting, and the ranges that settings have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt

from pdlib.methods import METHODS

MOST, MOST_STEPS, MOST_MEMBERS = 10**7, 10**6, 1000  # of anything that is counted, of diffusion steps, of an ensemble
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one
Count = Annotated[StrictInt, Field(ge=1, le=MOST)]
Whole = Annotated[StrictInt, Field(ge=0, le=MOST)]
Steps = Annotated[StrictInt, Field(ge=1, le=MOST_STEPS)]
Seed = Annotated[StrictInt, Field(ge=0, le=LARGEST_SEED)]
Positive = Annotated[StrictFloat, Field(gt=0, le=MOST)]
NonNegative = Annotated[StrictFloat, Field(ge=0, le=MOST)]
Share = Annotated[StrictFloat, Field(ge=0, le=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Norm = Literal["batch", "instance", "group"]
Rule = Literal["ddpm", "ddim", "dpm_solver", "start_matched", "noise_level"]
Presegmenter = Literal["unet", "attention_unet", "unet_plus_plus", "bayesian_unet", "probabilistic_unet"]
MethodName = Literal[tuple(METHODS)]
MethodNames = Annotated[tuple[MethodName, ...], Field(min_length=1)]
ChainName = Literal[tuple(name for name, method in METHODS.items() if method.start)]
ChainNames = Annotated[tuple[ChainName, ...], Field(min_length=1)]


def _ascending(clip_percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = clip_percentiles
    if not low < high <= 100:
        raise ValueError("the first is below the second, that at most 100")
    return clip_percentiles


Percentiles = Annotated[tuple[NonNegative, Positive], AfterValidator(_ascending)]


class ProfileError(ValueError):
    """A profile, or a change to one, that cannot be used: one line for each setting, with its path and the choices."""


def reason(error: Mapping[str, Any]) -> str:
    """What pydantic says of one fault, as our lines have it."""
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")


class Section(BaseModel):
    """A part of a profile. `arguments()` gives it as the keywords of the function that it configures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def arguments(self, *without: str) -> dict[str, Any]:
        """The settings that were given, as plain Python values."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in without}
