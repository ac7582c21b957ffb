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
    """The ``tokens`` of a prompt; with ``continues``, the answer continues the text of the prompt.

    ``is_visible`` returns whether the parser of an answer needs a special token. ``budget`` limits the thoughts.
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
        """Returns a parser for one answer, which separates thoughts and tool calls from text."""
        return Parser(self.dialect, self.state, self.tools)

    def constraint(self, max_tokens: int | None = None) -> Constraint | None:
        """Returns a constraint for one answer of at most ``max_tokens``, for its format and its thinking budget."""
        constraint = self.make_constraint() if self.make_constraint else None
        return self.budget.constraint(constraint, max_tokens) if self.budget else constraint
