"""Parses the arguments of tool calls: JSON written by a model, with numbers of any size."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DIGITS = 1000
"""Of a whole number that is read: Python takes time that grows with their square."""


def argument_values(text: str) -> Any:
    """The value of ``text``. Numbers that a double or Python cannot hold stay text; ValueError for what is not JSON."""
    return _DECODER.decode(text)


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _int(text: str) -> int | str:
    return int(text) if len(text) <= MAX_DIGITS else text


_DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=str)
