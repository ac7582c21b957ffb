"""The declaration of a family as data; the registry in ``__init__`` lists all families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from freedive.families.config import Config
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.model.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """Models that share a description.

    ``name`` is config.json's model_type, ``models`` what people call its members, ``architectures`` what else it may be
    called in config.json: class names, and types of the same make. ``defaults`` is what those classes fill in for
    absent keys. ``ignorable`` keys say nothing about the mathematics; ``fixed`` ones may be there with the only value
    for which the description holds. Layers of multi-token prediction are passed over unless ``runs_mtp``.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    spec: Callable[[Config], ModelSpec]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignorable: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    runs_mtp: bool = True
    hub: Naming = field(default_factory=Naming)
    gguf: Gguf = field(default_factory=Gguf)
