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
"""The effort in templates by the effort in requests. "none" turns thoughts off."""

EFFORT_TOKENS = {"low": 1024, "medium": 8192}
"""The thinking budget in tokens by effort, for models without efforts; higher efforts have no limit.

The numbers are those of Google's OpenAI-compatible API.
"""

_SWITCHES = ("enable_thinking", "thinking")
"""Template variables that turn thoughts on and off."""


def thinking_variables(thinking: bool | None, effort: str | None, source: str, dialect: Dialect) -> Mapping[str, Any]:
    """Returns the template variables for ``thinking`` and ``effort``; None leaves the choice to the model.

    An effort turns thoughts on; a template without efforts ignores its amount, and a model without thoughts ignores it.
    Raises UserError if ``thinking`` is true, without an effort, for a model without thoughts.
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
    """Returns whether the request turns thoughts on or off, None if it leaves the choice to the model."""
    return thinking if effort is None else EFFORTS[effort] != "none"


def effort_budget(effort: str | None, source: str) -> int | None:
    """Returns the thinking budget of ``effort`` in tokens, None if the template supports efforts itself."""
    if effort is None or "reasoning_effort" in source:
        return None
    return EFFORT_TOKENS.get(EFFORTS[effort])


def has_switch(source: str) -> bool:
    """Whether the template with this ``source`` can turn thoughts on and off."""
    return any(name in source for name in _SWITCHES)


def can_think(source: str, dialect: Dialect) -> bool:
    """Whether the model of this template and dialect can think before it answers."""
    return bool({Mark.THINK, Mark.HEADER} & set(dialect.marks.values())) or has_switch(source)


def without_thoughts(prompt: str, state: State, dialect: Dialect) -> str:
    """Closes the thoughts at the end of ``prompt``, for templates that open them although they are turned off."""
    if state.mode is not Mode.THOUGHT:
        return prompt
    end = next(marker for marker, mark in dialect.marks.items() if mark is Mark.END_THINK)
    return f"{prompt.rstrip()}\n\n{end}\n\n"
