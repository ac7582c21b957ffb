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
    """A family of models with the same architecture.

    ``name`` is the model_type in config.json. ``models`` names well-known members. ``architectures`` are other names in
    config.json: class names and equivalent types. ``spec`` makes the specification from a configuration. ``defaults``
    are the values of absent keys in these classes. ``ignorable`` keys do not change the computation. ``fixed`` keys are
    allowed only with the given value. MTP layers are not read unless ``runs_mtp``. ``hub`` and ``gguf`` are the naming
    of tensors in the two kinds of files.
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
