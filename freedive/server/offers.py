"""The tools of a request: tools that the client runs are kept, tools that the server would run are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freedive.server.request_body import ignore, only, type_of

_SCHEMAS = ("function", "input_schema", "parameters")
"""Fields that describe a tool's arguments: a tool with one of them is run by the client."""


def offered(*kinds: str | None, remedy: str = "") -> Callable[[Any], Any]:
    """Returns a validator of a list of tools, which drops and reports tools that the server would have to run.

    The validator keeps tools of the types ``kinds``, and refuses tools of other types that have a schema.
    """
    check = only("tools", *kinds, remedy=remedy)

    def checked(tools: Any) -> Any:
        return check([tool for tool in tools if not _is_server_tool(tool, kinds)]) if isinstance(tools, list) else tools

    return checked


def _is_server_tool(tool: Any, kinds: tuple[str | None, ...]) -> bool:
    kind = type_of(tool)
    if kind is None or kind in kinds or any(name in tool for name in _SCHEMAS):
        return False
    ignore(f"tools.{kind}")
    return True
