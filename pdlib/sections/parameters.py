"""What a notebook may be told by papermill: the type and the bounds of each parameter."""

import ast
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StrictInt, StrictStr, ValidationError

from pdlib.sections.base import MOST_MEMBERS, ChainNames, Count, Presegmenter, Section, Seed, Share, Whole, reason

MOST_ITEMS = 1000
Folder = Annotated[StrictStr, Field(max_length=4096, pattern=r"^[^\x00]*$")]
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


class Parameters(Section):
    """The parameters of the notebooks here; a notebook has some of them."""

    profile: StrictStr = ""
    fold: Whole | None = None  # None: the profile's own
    out: Folder = ""
    data: Folder = ""
    changes: dict[str, Any] = Field(default_factory=dict)
    members: Annotated[StrictInt, Field(ge=1, le=MOST_MEMBERS)] = 1
    architecture: Presegmenter = "unet"
    seed: Seed = 0
    t_primes: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_ITEMS)] | None = None
    starts: ChainNames | None = None
    test_folds: Annotated[tuple[Whole, ...], Field(min_length=1, max_length=MOST_ITEMS)] = (0,)
    too_clean: Share = 0.0  # of the index


def require_allowed(cell: Mapping[str, Mapping[str, str]], given: Mapping[str, Any]) -> Parameters:
    """The parameters that a run gets: those given, else those of the notebook's cell, as papermill inspects it.

    A name that is none of `Parameters` has to be of the type that the cell gives it. ValueError, one line for each
    parameter that cannot be used. Nothing is evaluated: what the cell sets is a literal.
    """
    faults = {name: fault for name in given if (fault := _type_fault(name, given[name], cell[name]))}
    whole = {name: _literal(about["default"]) for name, about in cell.items()} | dict(given)
    try:
        found = Parameters.model_validate({name: whole[name] for name in whole if name in Parameters.model_fields})
    except ValidationError as error:
        faults |= {str(one["loc"][0]): _explained(one, whole) for one in reversed(error.errors())}
    if faults:
        raise ValueError("\n".join(faults[name] for name in whole if name in faults))
    return found


def _type_fault(name: str, value: Any, about: Mapping[str, str]) -> str | None:
    """What is wrong with the type of a parameter that only its own notebook knows."""
    if name in Parameters.model_fields:
        return None
    default = _literal(about["default"])
    wanted = TYPES.get(about["inferred_type_name"].partition("[")[0]) or TYPES.get(type(default).__name__)
    fits = wanted is None or (isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)))
    if fits or (value is None and default is None):
        return None
    return f"{name}: {reprlib.repr(value)}: should be like {about['default']}"


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _explained(error: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    name = str(error["loc"][0])
    return f"{name}: {reprlib.repr(given[name])}: {reason(error)}"
