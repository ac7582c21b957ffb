"""Times in Ollama's formats: durations like 1h30m in requests, nanoseconds and RFC 3339 in responses."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from freedive.server.models import FOREVER

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"([+-]?)(0|(?:{_PART.pattern})++)")

MAX_DURATION = 64
"""The most characters of a duration: a longer one is not read, because that would hold other requests."""

LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
"""The timestamp that represents "never", in seconds since 1970."""


def seconds(value: Any) -> Any:
    """Returns the seconds of a duration like "1h30m", and any other value unchanged. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_DURATION or not (found := _DURATION.fullmatch(value)):
        raise ValueError("write a number of seconds, or a duration like 30s, 5m or 1h30m")
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total


def _not_negative(value: float) -> float:
    return FOREVER if value < 0 else value


KeepAlive = Annotated[
    float, BeforeValidator(seconds, json_schema_input_type=float | str), AfterValidator(_not_negative)
]
"""Seconds that a model stays loaded after its last use; a negative number means for ever."""


def nanoseconds(value_s: float) -> int:
    """Returns a duration in seconds as whole nanoseconds."""
    return round(1e9 * value_s)


def moment(timestamp: float) -> str:
    """Returns seconds since 1970 as RFC 3339 text."""
    return datetime.fromtimestamp(min(timestamp, LAST), UTC).isoformat().replace("+00:00", "Z")
