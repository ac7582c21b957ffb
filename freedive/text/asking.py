"""What a guide must see to, for what is asked of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from freedive.errors import UserError
from freedive.text.dialects.answers import answer
from freedive.text.dialects.dialect import Dialect, State
from freedive.text.format import Format
from freedive.text.guide import Guides, MakeGuide
from freedive.text.lark import Lark
from freedive.text.tools import Function, ToolChoice, Tools, functions


@dataclass(frozen=True)
class Wish:
    """A ``format`` for the text of an answer, if any, and when to call which of the ``tools``, and how many at once.

    Without ``thoughts`` the answer begins with what was asked for.
    """

    format: Format | None = None
    tools: Tools = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    thoughts: bool = True

    @property
    def must_call(self) -> bool:
        """Whether nothing but calls will do."""
        return self.choice == "required" or isinstance(self.choice, Function)


def granted(wish: Wish, guides: Guides, dialect: Dialect, state: State) -> tuple[Dialect, MakeGuide | None]:
    """How to read what answers ``wish``, and what guides it if need be. UserError for what this model cannot do."""
    callable_ = functions(wish.tools, wish.choice)
    param = _needs_guided_calls(wish, callable_)
    if param and not dialect.writing:
        raise UserError(
            "How this model writes calls is not known well enough to see to them",
            "Leave them to the model: tool_choice auto without strict, format or a limit on their number.",
            param=param,
        )
    if not param and not wish.format:
        return dialect, None
    if dialect.bare and param == "response_format":
        raise UserError(
            "This model's calls are JSON, and could not be told from an answer that is", "Ask for one.", param=param
        )
    lark = Lark(guides.tokens)
    rules = lark.rules(
        guides.lead
        + answer(
            lark,
            dialect,
            state,
            form=wish.format.grammar if wish.format else None,
            functions=callable_ if param else (),
            must_call=wish.must_call,
            parallel=wish.parallel and not isinstance(wish.choice, Function),
            thoughts=wish.thoughts,
        )
    )
    make_guide = guides.guide(rules, lark.parts, "response_format" if wish.format else "tools")
    return replace(dialect, verbatim=wish.format is not None, guided=param is not None), make_guide


def _needs_guided_calls(wish: Wish, callable_: list[Mapping[str, Any]]) -> str | None:
    """The parameter for whose sake calls must be guided, if there is one."""
    reasons = {
        "tool_choice": wish.must_call,
        "tools": any(function.get("strict") for function in callable_),
        "parallel_tool_calls": not wish.parallel,
        "response_format": wish.format is not None,
    }
    return next((param for param, holds in reasons.items() if callable_ and holds), None)
