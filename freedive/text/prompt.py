"""A prompt in tokens, with the parser and the constraint of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freedive.text.dialects.dialect import Dialect, State
from freedive.text.dialects.parser import Parser
from freedive.text.thinking_budget import Constraint, ThinkingBudget


@dataclass(frozen=True)
class Prompt:
    """``tokens`` ask for the next message or, with ``continues``, for what follows them as the same text.

    ``is_visible`` tells which special tokens the parser of an answer must see. ``budget`` bounds its thoughts.
    """

    tokens: Sequence[int]
    dialect: Dialect = field(default_factory=lambda: Dialect({}))
    state: State = field(default_factory=State)
    tools: Sequence[Mapping[str, Any]] = ()
    is_visible: Callable[[str], bool] | None = None
    continues: bool = False
    make_constraint: Callable[[], Constraint | None] | None = None
    budget: ThinkingBudget | None = None

    def parser(self) -> Parser:
        """A parser for one answer, which separates thoughts and calls from text."""
        return Parser(self.dialect, self.state, self.tools)

    def constraint(self, max_tokens: int | None = None) -> Constraint | None:
        """A constraint for one answer of at most ``max_tokens``: it enforces the format and the thinking budget."""
        constraint = self.make_constraint() if self.make_constraint else None
        return self.budget.constraint(constraint, max_tokens) if self.budget else constraint
