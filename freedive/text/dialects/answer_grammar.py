"""Grammars of whole answers: thoughts in the dialect's markers, then calls or the required format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freedive.text.dialects.call_grammar import CallGrammar
from freedive.text.dialects.dialect import Dialect, Mark, Mode, State
from freedive.text.dialects.parser import active_markers
from freedive.text.lark import Lark, any_of


def answer_grammar(
    lark: Lark,
    dialect: Dialect,
    state: State,
    *,
    form: Mapping[str, Any] | None = None,
    functions: Sequence[Mapping[str, Any]] = (),
    must_call: bool = False,
    parallel: bool = True,
    thoughts: bool = True,
) -> str:
    """Returns the rule of an answer: optional ``thoughts``, then text, which matches ``form`` if given, or calls."""
    ways = []
    if functions:
        ways.append(_calls(lark, dialect, functions, after_text=not must_call and not form, parallel=parallel))
    if not must_call:
        opening = lark.literals(dialect.messages.answer) if dialect.messages else ""
        ways.append(f"{opening} {lark.part(form) if form else _text(lark, dialect)}")
    return f"{_thoughts(lark, dialect, state, may_begin=thoughts)} {any_of(ways)}"


def _calls(
    lark: Lark, dialect: Dialect, functions: Sequence[Mapping[str, Any]], *, after_text: bool, parallel: bool
) -> str:
    calls = CallGrammar(lark, dialect, functions)
    if dialect.messages:
        opening = lark.literal(calls.opening)
    elif after_text and calls.opening:
        opening = lark.until([calls.opening], active_markers(dialect, Mode.TEXT, begun=True))
    else:
        opening = f"SPACE? {lark.literal(calls.opening)}"
    return f"{opening} {calls.after_opening(parallel=parallel)}"


def _thoughts(lark: Lark, dialect: Dialect, state: State, *, may_begin: bool) -> str:
    """Returns the rule before the answer: the rest of open thoughts, and new thoughts if they ``may_begin``."""
    if dialect.messages and not may_begin:
        return ""
    if dialect.messages:
        begin, end = dialect.messages.thought
        return f"({lark.literal(begin)} {_thought(lark, dialect, [end])})*"
    begins = dialect.markers(Mark.THINK) if may_begin else []
    ends = dialect.markers(Mark.END_THINK)
    if state.mode is Mode.THOUGHT:
        before = f"{_thought(lark, dialect, ends)} SPACE?"
    elif state.after_marker:
        before = "SPACE?"
    else:
        before = f"({lark.literals(begins)} {_thought(lark, dialect, ends)} SPACE?)?" if begins else ""
    wrappers = [] if state.in_answer else dialect.markers(Mark.ANSWER)
    return f"{before} ({lark.literals(wrappers)} SPACE?)?" if wrappers else before


def _thought(lark: Lark, dialect: Dialect, ends: Sequence[str]) -> str:
    """Returns the rule of a thought including its end marker."""
    return lark.until(ends, active_markers(dialect, Mode.THOUGHT, begun=False))


def _text(lark: Lark, dialect: Dialect) -> str:
    """Returns the rule of text without tool calls."""
    if dialect.bare:
        return lark.terminal(r"/\s*([^\s{\[](?s:.*))?/")
    return lark.free(active_markers(dialect, Mode.TEXT, begun=True))
