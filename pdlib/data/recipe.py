"""Recipes of configs/phantom*.yaml as dataclasses: every key is needed, none is ignored."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def from_mapping(kind: type, mapping: Mapping[str, Any], where: str):
    """Build the dataclass `kind`, or raise ValueError naming each key that is missing or unknown."""
    wanted = {field.name for field in fields(kind)}
    missing, unknown = sorted(wanted - set(mapping)), sorted(set(mapping) - wanted)
    if missing or unknown:
        raise ValueError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return kind(**mapping)
