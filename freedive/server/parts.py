"""Content in parts, as several APIs have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freedive.server.wire import only


def parts(*kinds: str, param: str = "messages") -> Callable[[Any], Any]:
    """A validator that makes one text part of a plain string.

    Parts of other than these ``kinds``, for which there are no senses, are refused before their fields are looked at.
    """

    check = only(param, *kinds, thing="content", remedy="Send text parts")

    def checked(content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else check(content)

    return checked
