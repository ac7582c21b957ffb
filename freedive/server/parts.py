"""Content in parts, as several APIs have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freedive.errors import UserError


def parts(*kinds: str, param: str = "messages") -> Callable[[Any], Any]:
    """A validator that makes one text part of a plain string.

    Parts of other than these ``kinds``, for which there are no senses, are refused before their fields are looked at.
    """

    def checked(content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and (kind := part.get("type")) not in kinds:
                    raise UserError(f"content of type {kind!r} is not supported", "Send text parts", param=param)
        return content

    return checked
