"""A prompt, and how to read what answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freedive.text.budget import Constraint, ThinkingBudget
from freedive.text.dialects.dialect import Dialect, State
from freedive.text.dialects.parser import Parser
from freedive.text.guide import MakeGuide


@dataclass(frozen=True)
class Question:
    """``tokens`` ask for the next message or, with ``continues``, for what follows them as the same text.

    ``keeps`` tells which special tokens of an answer its readers must see. ``budget`` bounds its thoughts.
    """

    tokens: Sequence[int]
    dialect: Dialect = field(default_factory=lambda: Dialect({}))
    state: State = field(default_factory=State)
    tools: Sequence[Mapping[str, Any]] = ()
    keeps: Callable[[str], bool] | None = None
    continues: bool = False
    make_guide: MakeGuide | None = None
    budget: ThinkingBudget | None = None

    def reader(self) -> Parser:
        """For one answer: tells its thoughts and calls from its text."""
        return Parser(self.dialect, self.state, self.tools)

    def guide(self, max_tokens: int | None = None) -> Constraint | None:
        """For one answer of at most ``max_tokens``: gives it the form that was asked for, and ends its thoughts."""
        guide = self.make_guide() if self.make_guide else None
        return self.budget.constraint(guide, max_tokens) if self.budget else guide
