"""The tools of a request: those that the client runs are kept, those that a server would run are left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freedive.server.request_body import ignore, only, type_of

_SCHEMAS = ("function", "input_schema", "parameters")
"""Fields by which a tool says how it is called: what has one is no tool of a server's."""


def offered(*kinds: str | None, remedy: str = "") -> Callable[[Any], Any]:
    """A validator of a list of tools, which leaves out those that the server would have to run, and reports them.

    Tools of ``kinds`` stay. A tool of another type that brings a schema is refused.
    """
    check = only("tools", *kinds, remedy=remedy)

    def checked(tools: Any) -> Any:
        return check([tool for tool in tools if not _is_a_servers(tool, kinds)]) if isinstance(tools, list) else tools

    return checked


def _is_a_servers(tool: Any, kinds: tuple[str | None, ...]) -> bool:
    kind = type_of(tool)
    if kind is None or kind in kinds or any(name in tool for name in _SCHEMAS):
        return False
    ignore(f"tools.{kind}")
    return True
