"""Numbers of JSON schemas in the precision of llguidance: doubles for numbers, 64 bits for integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

MAX_INTEGER = 2**63 - 1024
"""The largest double that fits into a signed 64-bit integer."""

MAX_NUMBER = Decimal(10**17)
"""The largest bound of non-integers: llguidance has 64 bits for digits before the point."""

NUM_DIGITS = 15
"""The most significant digits of a bound, and digits after its point, which a double represents exactly."""

DISTANCE = Decimal("1e-9")
"""The distance to an exclusive bound, which llguidance does not always exclude."""

MAX_MULTIPLE = 100_000
"""The limit of multipleOf values, of their sum and their common multiple: every remainder is a lexer state."""


class NumberError(Exception):
    """A number that cannot be enforced; the message says why."""


def is_exact(value: float) -> bool:
    """Whether llguidance keeps ``value``: its JSON parser rounds the digits to a double, and then their power of 10."""
    if not abs(value) <= MAX_INTEGER:
        return False
    if isinstance(value, int):
        return int(float(value)) == value
    _, digits, exponent = Decimal(repr(abs(value))).as_tuple()
    number, power = float("".join(map(str, digits))), float(f"1e{abs(int(exponent))}")
    return abs(value) == (number * power if int(exponent) > 0 else number / power)


def inner_bounds(bounds: Mapping[str, Any], *, integer: bool) -> dict[str, Any]:
    """Returns minimum and maximum for the ``bounds`` of a schema, rounded inwards. Raises NumberError."""
    flags = {key for key, value in bounds.items() if key.startswith("exclusive") and isinstance(value, bool)}  # draft 4
    values = {key: _decimal(key, value) for key, value in bounds.items() if key not in flags}
    exclusive = {key for key in ("minimum", "maximum") if bounds.get(f"exclusive{key.title()}") is True}
    distance = Decimal(1) if integer else DISTANCE
    least, most = [], []
    for key, value in values.items():
        excluded = key.startswith("exclusive") or key in exclusive
        if key.lower().endswith("minimum"):
            value = value.to_integral_value(ROUND_FLOOR if excluded else ROUND_CEILING) if integer else value
            least.append(value + distance if excluded else value)
        else:
            value = value.to_integral_value(ROUND_CEILING if excluded else ROUND_FLOOR) if integer else value
            most.append(value - distance if excluded else value)
    inner = _inner_integer if integer else _inner_number
    result: dict[str, Any] = {}
    if least:
        result["minimum"] = inner(max(least), up=True)
    if most:
        result["maximum"] = inner(min(most), up=False)
    return result


def checked_multiple(value: Any, others: list[Decimal]) -> float:
    """Returns ``value`` of multipleOf, and adds it to ``others`` of the same schema. Raises NumberError."""
    number = _decimal("multipleOf", value)
    if not 0 < number <= MAX_MULTIPLE or number != round(number, 9):
        raise NumberError(
            f"multipleOf {short(value)}, which is not from 1e-9 to {MAX_MULTIPLE}, with up to 9 digits after the point"
        )
    exponent = -number.normalize().as_tuple().exponent  # type: ignore[operator]  # a finite number has an int
    scaled = float(value)
    for _ in range(exponent):  # the computation of llguidance
        scaled *= 10
    if exponent > 0 and (scaled != number.scaleb(exponent) or scaled % 1):
        raise NumberError(f"multipleOf {short(value)}, which cannot be counted exactly")
    others.append(number)
    unit = min(0, *(int(other.normalize().as_tuple().exponent) for other in (number, *others)))
    multiples = [int(other.scaleb(-unit)) for other in others]
    if sum(multiples) > MAX_MULTIPLE or math.lcm(*multiples) > MAX_MULTIPLE:
        raise NumberError(f"multipleOf that asks for multiples of more than {MAX_MULTIPLE}")
    return number_of(number)


def number_of(value: Decimal) -> float:
    """Converts ``value`` to int or float, for the JSON encoder."""
    return int(value) if value == value.to_integral_value() else float(value)


def _inner_integer(value: Decimal, *, up: bool) -> int:
    """Returns the next double from ``value`` upwards or downwards. Raises NumberError."""
    limit = -MAX_INTEGER if up else MAX_INTEGER
    if (value < limit) if up else (value > limit):
        return limit
    if abs(value) > MAX_INTEGER:
        raise NumberError(f"the bound {short(value)}, which 64 bits do not hold")
    number = float(value)
    if (number < value) if up else (number > value):
        number = math.nextafter(number, math.inf if up else -math.inf)
    return int(number)


def _inner_number(value: Decimal, *, up: bool) -> float:
    limit = -MAX_NUMBER if up else MAX_NUMBER
    if (value < limit) if up else (value > limit):
        return int(limit)
    if abs(value) > MAX_NUMBER:
        raise NumberError(f"the bound {short(value)}, which is beyond {MAX_NUMBER:.0e}")
    rounding = ROUND_CEILING if up else ROUND_FLOOR
    value = Context(prec=NUM_DIGITS, rounding=rounding).plus(value)
    if int(value.as_tuple().exponent) < -NUM_DIGITS:
        value = value.quantize(Decimal(1).scaleb(-NUM_DIGITS), rounding)
    return number_of(value)


def _decimal(key: str, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise NumberError(f"{key} {short(value)}, which is no number")
    if abs(value) > 10**308:
        raise NumberError(f"{key} {short(value)}, which is too large")
    return Decimal(repr(value))


def short(value: Any) -> str:
    """Returns ``value`` as short text for a message."""
    if isinstance(value, int) and value.bit_length() > 128:  # converting it to text takes quadratic time
        return f"of {int(value.bit_length() * math.log10(2)) + 1} digits"
    text = str(value)
    return text if len(text) < 40 else f"{text[:40]}..."
