"""What a maker's file declares: a :class:`Family` is data, and the registry in ``__init__`` holds them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from freedive.model.families.config import Config
from freedive.model.spec import Model


@dataclass(frozen=True)
class Family:
    """Models that share a description.

    ``name`` is config.json's model_type and, where llama.cpp has the family, its general.architecture.
    ``architectures`` are config.json's class names; ``defaults`` what those classes fill in for absent keys.
    ``interleaved_in_gguf``: llama.cpp stores the rows of query and key heads interleaved.
    """

    name: str
    architectures: tuple[str, ...]
    spec: Callable[[Config], Model]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    in_gguf: bool = True
    interleaved_in_gguf: bool = False
