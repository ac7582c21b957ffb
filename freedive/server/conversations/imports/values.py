"""Values from files of others, which may be anything."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.conversations.records import MAX_TEXT, MAX_TITLE, now

_SURROGATES = re.compile("[\ud800-\udfff]+")


def text(value: Any) -> str:
    """Returns a string that can be stored; "" for what is no string. Raises UserError if it is too long."""
    if not isinstance(value, str):
        return ""
    if len(value) > MAX_TEXT:
        raise UserError(f"It has a message of more than {MAX_TEXT} characters", "Remove it from the file")
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", value) if not value.isascii() else value


def title(value: Any) -> str:
    """Returns a title, on one line and shortened; "" for what is no string."""
    return " ".join(text(value).split())[:MAX_TITLE]


def label(value: Any) -> str:
    """Returns the short name of something; "" for what is no string."""
    return text(value)[:1000]


def mapping(value: Any) -> Json:
    """Returns ``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """Returns ``value`` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def milliseconds(value: Any, otherwise: int | None = None) -> int:
    """Returns a time in milliseconds since 1970 from an ISO date, or from seconds or smaller units since 1970.

    Returns ``otherwise``, or the present, for what is no time after 1970.
    """
    try:
        seconds = datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)
        while 1e11 < seconds < math.inf:  # of the year 5138: the unit is a thousandth, or a thousandth of that
            seconds /= 1000
        if 0 < seconds < 1e11:
            return int(seconds * 1000)
    except (TypeError, ValueError, OverflowError, OSError):
        pass
    return now() if otherwise is None else otherwise
