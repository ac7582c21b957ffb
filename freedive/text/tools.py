"""Tools and tool choice of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from freedive.errors import UserError

Tools = Sequence[Mapping[str, Any]]
"""Tools in OpenAI's format: {"type": "function", "function": {"name": ..., "parameters": ..., "strict": ...}}."""


@dataclass(frozen=True)
class Function:
    """A tool choice that names the function to call."""

    name: str


ToolChoice = Literal["auto", "none", "required"] | Function
"""Whether the model decides (auto), may call no tool, must call a tool, or must call one function."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def functions(tools: Tools, choice: ToolChoice) -> list[Mapping[str, Any]]:
    """Returns the functions that ``choice`` allows. Raises UserError if it requires one that does not exist."""
    if choice not in ("auto", "none", "required") and not isinstance(choice, Function):
        raise UserError(
            f"tool_choice is {choice!r}", "Choose auto, none, required or the name of a function", param="tool_choice"
        )
    offered = [tool["function"] for tool in tools]
    wanted = [function for function in offered if not isinstance(choice, Function) or function["name"] == choice.name]
    if choice == "required" and not wanted:
        raise UserError("tool_choice requires a tool call, but there are no tools", "Send tools", param="tool_choice")
    if isinstance(choice, Function) and not wanted:
        names = ", ".join(function["name"] for function in offered) or "none"
        raise UserError(f"There is no tool {choice.name!r}", f"Choose one of: {names}", param="tool_choice")
    return wanted


def checked_name(function: Mapping[str, Any]) -> str:
    """Returns the name of ``function``. Raises UserError for a name that some dialects cannot write."""
    name = function["name"]
    if not _NAME.fullmatch(name):
        raise UserError(
            f"The tool {name!r} cannot be called under a constraint",
            "Use only letters, digits, dots, _ and - in its name",
            param="tools",
        )
    return str(name)
