"""Recipes of configs/phantom*.yaml: every key is needed, none is ignored, each has its type."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, StrictFloat, ValidationError

Range = tuple[StrictFloat, StrictFloat]  # [low, high] of a uniform draw, unless said otherwise
Numbers = tuple[StrictFloat, ...]


class Recipe(BaseModel):
    """A part of a recipe, checked and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """The recipe of a YAML file's content; ValueError: one line with the path of each key at fault."""
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ValueError(f"{cls.__name__}: {'; '.join(faults)}") from None
