"""The declaration of a family as data; the registry in ``__init__`` lists all families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from freedive.families.config import Config
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.model.spec import Attention, LatentAttention, Layer, ModelSpec


def last_with_attention(config: Config, spec: ModelSpec) -> Layer:
    """Returns the last layer that has attention; most MTP layers have its shape."""
    return next(layer for layer in reversed(spec.layers) if isinstance(layer.mixer, Attention | LatentAttention))


@dataclass(frozen=True)
class Family:
    """A family of models with the same architecture.

    ``name`` is the model_type in config.json. ``models`` names well-known members. ``architectures`` are other
    names in config.json: class names and equivalent types. ``spec`` makes the specification from a configuration.
    ``defaults`` are the values of absent keys in these classes. ``ignorable`` keys do not change the computation.
    ``fixed`` keys are allowed only with the given value. MTP layers are not read unless ``runs_mtp``; ``mtp_layer``
    makes the description of one from the configuration and the description of the model. ``hub`` and ``gguf`` are
    the naming of tensors in the two kinds of files.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    spec: Callable[[Config], ModelSpec]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignorable: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    runs_mtp: bool = True
    mtp_layer: Callable[[Config, ModelSpec], Layer] = last_with_attention
    hub: Naming = field(default_factory=Naming)
    gguf: Gguf = field(default_factory=Gguf)
