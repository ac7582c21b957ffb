"""The requirements of a request on its answer, and the constraint that enforces them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from freedive.errors import UserError
from freedive.text.dialects.answer_grammar import answer_grammar
from freedive.text.dialects.dialect import Dialect, State
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler, MakeConstraint
from freedive.text.lark import Lark
from freedive.text.tools import Function, ToolChoice, Tools, functions


@dataclass(frozen=True)
class OutputSpec:
    """The ``format`` of an answer's text, if any; the ``tools``, which of them must be called, and whether in parallel.

    Without ``thoughts``, the answer begins with the text or the calls.
    """

    format: Format | None = None
    tools: Tools = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    thoughts: bool = True

    @property
    def must_call(self) -> bool:
        """Whether the answer must have a tool call."""
        return self.choice == "required" or isinstance(self.choice, Function)


def constrain(
    spec: OutputSpec, compiler: GrammarCompiler, dialect: Dialect, state: State
) -> tuple[Dialect, MakeConstraint | None]:
    """Returns the dialect of the answer's parser, and a factory of its constraint, None if it needs none.

    Raises UserError if this model cannot fulfil ``spec``.
    """
    callable_ = functions(spec.tools, spec.choice)
    param = _needs_constrained_calls(spec, callable_)
    if param and not dialect.writing:
        raise UserError(
            "The tool calls of this model cannot be constrained, because their syntax is not known",
            "Use tool_choice auto, and leave out strict, the format and parallel_tool_calls",
            param=param,
        )
    if not param and not spec.format:
        return dialect, None
    if dialect.bare and param == "response_format":
        raise UserError(
            "This model's tool calls cannot be told from an answer in JSON", "Send tools or a format", param=param
        )
    lark = Lark(compiler.tokens)
    rules = lark.rules(
        compiler.lead
        + answer_grammar(
            lark,
            dialect,
            state,
            form=spec.format.grammar if spec.format else None,
            functions=callable_ if param else (),
            must_call=spec.must_call,
            parallel=spec.parallel and not isinstance(spec.choice, Function),
            thoughts=spec.thoughts,
        )
    )
    make_constraint = compiler.compile(rules, lark.parts, "response_format" if spec.format else "tools")
    return replace(
        dialect, constrained_text=spec.format is not None, constrained_calls=param is not None
    ), make_constraint


def _needs_constrained_calls(spec: OutputSpec, callable_: list[Mapping[str, Any]]) -> str | None:
    """Returns the request parameter that requires constrained calls, None if none does."""
    reasons = {
        "tool_choice": spec.must_call,
        "tools": any(function.get("strict") for function in callable_),
        "parallel_tool_calls": not spec.parallel,
        "response_format": spec.format is not None,
    }
    return next((param for param, holds in reasons.items() if callable_ and holds), None)
