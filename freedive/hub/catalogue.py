"""The catalogue of models with short names, read from catalogue.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue; ``total`` and ``active`` are in 1e9 parameters, ``gigabytes`` is the download."""

    name: str
    ref: str
    about: str
    family: str
    total: float
    active: float
    gigabytes: float
    licence: str
    sha256: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether freedive supports the family of the model."""
        from freedive.families import FAMILIES

        return any(family.name == self.family for family in FAMILIES)


@cache
def catalogue() -> Mapping[str, Entry]:
    """Returns every entry by its name, in the order of the file."""
    tables = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
    return MappingProxyType({name: Entry(name=name, **table) for name, table in tables.items()})


def entry_for(ref: str) -> Entry | None:
    """Returns the entry with this name or address, or None."""
    return next((entry for entry in catalogue().values() if ref.lower() == entry.name or ref == entry.ref), None)
