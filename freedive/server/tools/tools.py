"""The tools of the chat page: what the model is told of them, and what they do. None of them runs before it is allowed.

A tool reads its arguments and the files of the conversation; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.tools import calculator
from freedive.server.tools.files import read_part
from freedive.text.arguments import argument_values

Texts = Mapping[str, str]
"""The texts of files by name."""


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool; without a ``default`` it must be given."""

    type: type[str] | type[int]
    description: str
    default: Any = None


@dataclass(frozen=True)
class Tool:
    """A tool; ``run`` takes the files and the arguments, and raises UserError if there is no result."""

    description: str
    run: Callable[..., str]
    parameters: dict[str, Parameter] = field(default_factory=dict)


TOOLS = {
    "calculator": Tool(
        "Computes an arithmetic expression. Whole numbers, decimals and fractions are exact.",
        lambda texts, expression: calculator.calculate(expression),
        {
            "expression": Parameter(
                str,
                f"Numbers, + - * / // % **, parentheses, {', '.join(calculator.CONSTANTS)}, and the functions "
                f"{', '.join(calculator.FUNCTIONS)}; for example: 3 * (17.5 - 2) ** 2",
            )
        },
    ),
    "files": Tool(
        "Reads a part of a file that the user has sent in this conversation.",
        read_part,
        {
            "name": Parameter(str, "The name of the file"),
            "part": Parameter(int, "The number of the part, from 1", default=1),
        },
    ),
}
"""The tools by the name under which the model calls them and under which conversations turn them on."""

_TYPES = {str: "string", int: "integer"}


def definition(name: str) -> Json:
    """Returns a tool as it stands in a chat request."""
    tool = TOOLS[name]
    properties = {
        key: {"type": _TYPES[each.type], "description": each.description} for key, each in tool.parameters.items()
    }
    required = [key for key, each in tool.parameters.items() if each.default is None]
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": tool.description, "parameters": parameters}}


def result(name: str, arguments: str, enabled: Collection[str], texts: Texts) -> str:
    """Runs a tool and returns its result, or what is wrong with the call, for the model. Blocks for milliseconds."""
    if name not in enabled:
        return f"Error: There is no tool {name[:100]!r}. The tools are: {', '.join(enabled)}"
    try:
        text = TOOLS[name].run(texts, **_given(TOOLS[name], arguments))
    except UserError as error:
        text = f"Error: {error}"
    return text.encode(errors="replace").decode()  # an argument may have halves of characters


def _given(tool: Tool, arguments: str) -> Json:
    """Returns the arguments of a call by name. Raises UserError if they are not those of the tool."""
    try:
        values = argument_values(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError("The arguments are not a JSON object", "Send one")
    given = {}
    for name, parameter in tool.parameters.items():
        value = values.get(name, parameter.default)
        if isinstance(value, bool) or not isinstance(value, parameter.type):
            raise UserError(f"{name!r} must be of type {_TYPES[parameter.type]}", "Call the tool again")
        given[name] = value
    return given
