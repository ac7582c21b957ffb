"""Facts about a model that clients see before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model that need no weights in memory; unknown fields are empty.

    ``format`` is the storage format of most weights, ``sampling`` the settings that the maker recommends. Values of
    ``capabilities`` are "completion", "tools", "thinking", "insert" (fill in the middle) and "embedding".
    """

    family: str = ""
    num_params: int = 0
    format: str = ""
    max_context: int = 0
    hidden_dim: int = 0
    template: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ("completion",)
