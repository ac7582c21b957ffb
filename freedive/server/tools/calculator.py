"""A calculator: exact for whole numbers, decimals and fractions, and bounded in time for any expression.

Each value is a fraction, or a float where no exact value is known (``sqrt(2)``). The length of an expression bounds the
number of operations, and :data:`MAX_BITS` the cost of each.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal, Inexact
from fractions import Fraction

from freedive.errors import UserError

MAX_CHARS = 300
"""Characters of an expression."""
MAX_BITS = 2048
"""Bits of a numerator or denominator; about 600 digits."""
MAX_DEPTH = 40
"""Parentheses, signs and powers inside one another."""
DIGITS = 25
"""Digits of a result that is not a whole number."""

Number = Fraction | float

_NUMBER = re.compile(r"(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?")
_TOKEN = re.compile(rf"\s*+({_NUMBER.pattern}|[a-z]\w*|\*\*|//|.)", re.ASCII)
_SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"})
"""Other signs for the same operations."""


def calculate(expression: str) -> str:
    """Returns the value of ``expression`` as text. Raises UserError if it is not one, or has no such value."""
    if len(expression) > MAX_CHARS:
        raise _wrong(f"the expression has more than {MAX_CHARS} characters")
    try:
        return _written(_Parser(expression.translate(_SAME)).whole())
    except ZeroDivisionError:
        raise _wrong("division by zero") from None
    except OverflowError:
        raise _too_large() from None


def _wrong(why: str) -> UserError:
    return UserError(f"This cannot be calculated: {why}", "Write it in another way")


def _too_large() -> UserError:
    return _wrong("a number in it is too large")


def _checked(value: Number) -> Number:
    """Returns ``value`` if it is a number of which further operations are cheap."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _too_large()
    elif max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _too_large()
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if base in (1, -1):
            return Fraction(base ** (exponent.numerator % 2))
        if base and abs(exponent) * max(base.numerator.bit_length(), base.denominator.bit_length()) > 2 * MAX_BITS:
            raise _too_large()
        return Fraction(base**exponent.numerator)
    if base < 0:
        raise _wrong("a power of a negative number whose exponent is not whole")
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    return math.pow(base, exponent)


def _root(value: Number) -> Number:
    if value < 0:
        raise _wrong("the square root of a negative number")
    if isinstance(value, Fraction):
        over, under = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if over * over == value.numerator and under * under == value.denominator:
            return Fraction(over, under)
    return math.sqrt(value)


def _rounded(value: Number, digits: Number = Fraction(0)) -> Number:
    if digits != int(digits) or not -DIGITS <= digits <= DIGITS:
        raise _wrong(f"'round' takes a whole number of digits up to {DIGITS}")
    scale = Fraction(10) ** int(digits)
    magnitude = math.floor(abs(Fraction(value)) * scale + Fraction(1, 2)) / scale
    return magnitude if value >= 0 else -magnitude


def _logarithm(value: Number, base: Number = math.e) -> Number:
    if value <= 0 or base <= 0 or base == 1:
        raise _wrong("a logarithm that does not exist")
    return math.log(value) / (1.0 if base == math.e else math.log(base))


def _real(function: Callable[[float], float]) -> Callable[[Number], Number]:
    return lambda value: function(float(value))


BINARY: dict[str, tuple[int, Callable[[Number, Number], Number]]] = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, operator.truediv),
    "//": (2, lambda a, b: Fraction(a // b)),
    "%": (2, operator.mod),
}
"""How tightly an operator binds, and what it does."""
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {
    "abs": (1, 1, abs),
    "ceil": (1, 1, lambda value: Fraction(math.ceil(value))),
    "cos": (1, 1, _real(math.cos)),
    "exp": (1, 1, _real(math.exp)),
    "floor": (1, 1, lambda value: Fraction(math.floor(value))),
    "ln": (1, 1, _logarithm),
    "log": (1, 2, _logarithm),
    "max": (1, MAX_CHARS, max),
    "min": (1, MAX_CHARS, min),
    "round": (1, 2, _rounded),
    "sin": (1, 1, _real(math.sin)),
    "sqrt": (1, 1, _root),
    "tan": (1, 1, _real(math.tan)),
}
"""The fewest and the most arguments of a function, and what it does."""
CONSTANTS = {"pi": math.pi, "e": math.e}


class _Parser:
    """Reads an expression by the precedence of its operators, and computes while it reads."""

    def __init__(self, text: str) -> None:
        self._tokens = [*map(str, _TOKEN.findall(text.strip())), ""]
        self._at = self._depth = 0

    def whole(self) -> Number:
        value = self._sum(1)
        if self._next:
            raise _wrong(f"{self._next!r} is not expected there")
        return value

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _skip(self, token: str) -> bool:
        """Returns whether ``token`` comes next, and skips it."""
        found = self._next == token
        self._at += found
        return found

    def _sum(self, tightness: int) -> Number:
        """Returns the value of what follows, up to an operator that binds less tightly."""
        value = self._signed()
        while self._next in BINARY and BINARY[self._next][0] >= tightness:
            binds, compute = BINARY[self._take()]
            value = _checked(compute(value, self._sum(binds + 1)))
        return value

    def _signed(self) -> Number:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _wrong(f"it is nested more than {MAX_DEPTH} times")
        if self._skip("-"):
            value = -self._signed()
        elif self._skip("+"):
            value = self._signed()
        else:
            value = self._single()
            if self._skip("**"):
                value = _checked(_power(value, self._signed()))
        self._depth -= 1
        return value

    def _single(self) -> Number:
        token = self._take()
        if _NUMBER.fullmatch(token):
            return _checked(Fraction(token))
        if token == "(":
            [value] = self._until_closed(1, 1)
            return value
        if token in FUNCTIONS and self._skip("("):
            fewest, most, compute = FUNCTIONS[token]
            return _checked(compute(*self._until_closed(fewest, most)))
        if token in CONSTANTS:
            return CONSTANTS[token]
        raise _wrong(f"{token!r} is not known" if token else "it ends too early")

    def _until_closed(self, fewest: int, most: int) -> list[Number]:
        values = [self._sum(1)]
        while self._skip(","):
            values.append(self._sum(1))
        if not self._skip(")"):
            raise _wrong("a parenthesis is not closed" if not self._next else f"{self._next!r} is not expected there")
        if not fewest <= len(values) <= most:
            raise _wrong("a function has too many arguments")
        return values


def _written(value: Number) -> str:
    """Returns a value in digits, and says if they are not all of it."""
    if isinstance(value, float):
        return f"{value:.15g} (rounded)"
    if value.denominator == 1:
        return str(value.numerator)
    context = Context(prec=DIGITS)
    quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize(context)
    return f"{quotient}{' (rounded)' * context.flags[Inexact]}"
