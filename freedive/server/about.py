"""What a model is, for those who are to choose one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class About:
    """As far as it is known without loading the model; what is not known is empty.

    ``format`` is what most of its weights are stored as, ``sampling`` what its maker recommends. ``capabilities`` are
    of "completion", "tools", "thinking", "insert" (fill in the middle) and "embedding".
    """

    family: str = ""
    num_params: int = 0
    format: str = ""
    max_context: int = 0
    hidden_dim: int = 0
    template: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ("completion",)
