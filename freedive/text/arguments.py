"""Parses the arguments of tool calls: JSON written by a model, with numbers of any size."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DIGITS = 1000
"""The most digits of an integer that is parsed: Python takes quadratic time for them."""


def argument_values(text: str) -> Any:
    """Parses JSON. Numbers beyond a double or :data:`MAX_DIGITS` stay text. Raises ValueError for invalid JSON."""
    return _DECODER.decode(text)


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _int(text: str) -> int | str:
    return int(text) if len(text) <= MAX_DIGITS else text


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=str)
