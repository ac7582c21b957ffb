"""Reasoning effort: maps the API's settings to the variables of each family's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freedive.errors import UserError
from freedive.text.dialects.dialect import Dialect, Mark, Mode, State

EFFORTS = {
    "none": "none",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
"""What clients may ask for, and what templates know. "none" is not to think at all."""

EFFORT_TOKENS = {"low": 1024, "medium": 8192}
"""Most tokens of thoughts by effort, for models that were not trained to tell efforts apart; higher ones have no bound.

The numbers are those of Google's OpenAI-compatible API.
"""

_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn thoughts on and off."""


def thinking_variables(thinking: bool | None, effort: str | None, source: str, dialect: Dialect) -> Mapping[str, Any]:
    """The variables of the template with this ``source`` that say so; None leaves it to the model.

    An effort is an order to think; a template without efforts takes it as just that, and a model without thoughts as
    advice that it cannot follow. UserError where it is told outright to think.
    """
    thinking = is_wanted(thinking, effort)
    effort = EFFORTS[effort] if effort is not None else None
    if thinking and not can_think(source, dialect):
        if effort is not None:
            return {}
        raise UserError("This model does not think before it answers", "Leave 'thinking' out", param="thinking")
    if thinking is None:
        return {}
    named = "high" if effort == "max" and '"max"' not in source and "'max'" not in source else effort
    efforts = {"reasoning_effort": named} if thinking and named else {}
    return dict.fromkeys(_SWITCHES, thinking) | efforts


def is_wanted(thinking: bool | None, effort: str | None) -> bool | None:
    """Whether thoughts are asked for; None leaves it to the model."""
    return thinking if effort is None else EFFORTS[effort] != "none"


def effort_budget(effort: str | None, source: str) -> int | None:
    """The most tokens of thoughts that ``effort`` allows, where the template with this ``source`` has no efforts."""
    if effort is None or "reasoning_effort" in source:
        return None
    return EFFORT_TOKENS.get(EFFORTS[effort])


def has_switch(source: str) -> bool:
    """Whether the template with this ``source`` can be told to have the model think or not."""
    return any(name in source for name in _SWITCHES)


def can_think(source: str, dialect: Dialect) -> bool:
    """Whether the model of this template and dialect may think before it answers."""
    return bool({Mark.THINK, Mark.HEADER} & set(dialect.marks.values())) or has_switch(source)


def without_thoughts(prompt: str, state: State, dialect: Dialect) -> str:
    """``prompt`` with its thoughts closed: for models whose template opens them though they were turned off."""
    if state.mode is not Mode.THOUGHT:
        return prompt
    end = next(marker for marker, mark in dialect.marks.items() if mark is Mark.END_THINK)
    return f"{prompt.rstrip()}\n\n{end}\n\n"
