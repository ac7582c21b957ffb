"""Times as Ollama writes them: durations like 1h30m to us and nanoseconds from us, moments as RFC 3339."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from freedive.server.models import FOREVER

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]++(?:\.[0-9]*+)?|\.[0-9]++)({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"([+-]?)(0|(?:{_PART.pattern})++)")

LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
"""The moment that stands for never."""


def seconds(value: Any) -> Any:
    """A duration in words as a number of seconds; everything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if not (found := _DURATION.fullmatch(value)):
        raise ValueError("write a number of seconds, or a duration like 30s, 5m or 1h30m")
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    return -total if found[1] == "-" else total


def _not_negative(value: float) -> float:
    return FOREVER if value < 0 else value


KeepAlive = Annotated[
    float, BeforeValidator(seconds, json_schema_input_type=float | str), AfterValidator(_not_negative)
]
"""Seconds that a model is to stay; a negative number stands for ever."""


def nanoseconds(value_s: float) -> int:
    """The duration as a whole number."""
    return round(1e9 * value_s)


def moment(timestamp: float) -> str:
    """Seconds since 1970 in words."""
    return datetime.fromtimestamp(min(timestamp, LAST), UTC).isoformat().replace("+00:00", "Z")
