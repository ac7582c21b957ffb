"""Tools and tool choice of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from freedive.errors import UserError

Tools = Sequence[Mapping[str, Any]]
"""As OpenAI has them: {"type": "function", "function": {"name": ..., "parameters": ..., "strict": ...}}."""


@dataclass(frozen=True)
class Function:
    """The function that must be called, by its ``name``."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Function
"""Whether the model decides, may call nothing, must call something, or must call one function."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def functions(tools: Tools, choice: ToolChoice) -> list[Mapping[str, Any]]:
    """The functions that may be called under ``choice``. UserError if there are none."""
    if choice not in ("auto", "none", "required") and not isinstance(choice, Function):
        raise UserError(
            f"tool_choice is {choice!r}", "Choose auto, none, required or the name of a function", param="tool_choice"
        )
    offered = [tool["function"] for tool in tools]
    wanted = [function for function in offered if not isinstance(choice, Function) or function["name"] == choice.name]
    if choice == "required" and not wanted:
        raise UserError("A tool is to be called, but there are none", "Give some in tools", param="tool_choice")
    if isinstance(choice, Function) and not wanted:
        names = ", ".join(function["name"] for function in offered) or "none"
        raise UserError(f"There is no tool {choice.name!r}", f"Those given: {names}", param="tool_choice")
    return wanted


def checked_name(function: Mapping[str, Any]) -> str:
    """The name of ``function``, if every dialect can write it."""
    name = function["name"]
    if not _NAME.fullmatch(name):
        raise UserError(
            f"The tool {name!r} cannot be called under a constraint",
            "Name it with letters, digits, dots, _ and - only",
            param="tools",
        )
    return str(name)
