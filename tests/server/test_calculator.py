"""The calculator and the reader of files, and what tools make of the arguments of a model."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.errors import UserError
from freedive.server.tools.calculator import MAX_CHARS, MAX_DEPTH, calculate
from freedive.server.tools.files import PART_CHARS, num_parts, read_part
from freedive.server.tools.tools import TOOLS, definition, result

WHOLE = st.integers(0, 10**12).map(str)
DECIMAL = st.decimals(0, 10**6, places=3, allow_nan=False, allow_infinity=False).map(lambda value: f"{value:f}")
EXACT = st.recursive(
    WHOLE | DECIMAL,
    lambda part: st.builds("({} {} {})".format, part, st.sampled_from("+-*"), part) | st.builds("(-{})".format, part),
    max_leaves=8,
)
SIGNS = st.text("0123456789.+-*/%^(),eE absqrtlogmxpi_'\"[]{}:=\n\t\0×÷٣π", max_size=MAX_CHARS)
TIME_S = 0.02


def python_value(expression: str) -> Fraction:
    """Returns what Python's own arithmetic of fractions makes of an expression that the test wrote."""
    return Fraction(eval(_with_fractions(expression), {"Fraction": Fraction}))


def _with_fractions(expression: str) -> str:
    words = expression.replace("(", "( ").replace(")", " )").replace("-", "- ").split(" ")
    return " ".join(f"Fraction('{word}')" if word[:1].isdigit() else word for word in words)


@settings(deadline=None)
@given(EXACT)
def test_whole_numbers_and_decimals_are_exact(expression: str) -> None:
    if len(expression) <= MAX_CHARS and (written := calculate(expression)):
        expected = python_value(expression)
        exact = not written.endswith("(rounded)")
        assert exact == (Fraction(written.split()[0]) == expected)
        assert exact or abs(Fraction(written.split()[0]) - expected) <= abs(expected) / 10**24


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**6), 10**6).filter(bool))
def test_division_is_that_of_mathematics(a: int, b: int) -> None:
    assert calculate(f"({a}) // ({b})") == str(a // b)
    assert calculate(f"({a}) % ({b})") == str(a % b)
    assert calculate(f"({a}) / ({b}) * ({b})") == str(a)


@settings(deadline=None)
@given(st.integers(0, 10**30))
def test_roots_of_squares_are_exact(number: int) -> None:
    assert calculate(f"sqrt({number}**2)") == str(number)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("-2**2", "-4"),
        ("2**-2", "0.25"),
        ("2**3**2", "512"),
        ("7 - 2 - 1", "4"),
        ("0.1 + 0.2", "0.3"),
        ("1e3", "1000"),
        (".5 * 2.", "1"),
        ("1/3", "0.3333333333333333333333333 (rounded)"),
        ("2^10 × 3 ÷ 2 − 1", "1535"),
        ("sqrt(2)", "1.4142135623731 (rounded)"),
        ("sqrt(9/4)", "1.5"),
        ("round(2.675, 2)", "2.68"),
        ("round(-0.5)", "-1"),
        ("round(1250, -2)", "1300"),
        ("max(1, 5/2, 2)", "2.5"),
        ("floor(-1/2) + ceil(1/2) + abs(-3)", "3"),
        ("log(8, 2)", "3 (rounded)"),
        ("cos(0) + sin(0) + exp(0) + ln(e)", "3 (rounded)"),
        ("1**99999999999999999999", "1"),
        ("(-1)**-3", "-1"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


HOSTILE = [
    *("", " ", "(", ")", "1 +", "1 2", "2e", "1e9999", "x", "abs", "abs(", "abs()", "sqrt(1, 2)", "1,2", "1_0"),
    *(
        "1/0",
        "1//0",
        "1%0",
        "0**-1",
        "0**-0.5",
        "sqrt(-1)",
        "(-8)**(1/3)",
        "ln(0)",
        "log(2, 1)",
        "log(2, -1)",
        "exp(1000)",
    ),
    *("9**9**9", "9**999", "2**2**2**2**2**2", "10**300*10**400", "2**0.5**-9999", "round(1, 99)", "round(1, 0.5)"),
    *("__import__('os')", "().__class__", "abs.__doc__", "[1]", "{}", "'a'*9", "1 if 1 else 2", "lambda: 1", "1;2"),
    *("٣ + 1", "π", "1\N{NO-BREAK SPACE}x", "\0", "\ud800", "(" * 299, "-" * 299 + "1", "2**" * 99 + "2", "9" * 301),
    *(
        "sqrt(" * 50,
        "max(" + "1," * 140 + ")",
        "1e308*1e308*pi",
        "pi**1000",
        "tan(10**400)",
        "float('nan')",
        "nan",
        "inf",
    ),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=ascii)
def test_what_has_no_value_is_refused_with_a_reason(expression: str) -> None:
    with pytest.raises(UserError, match="calculat"):
        calculate(expression)


@settings(deadline=None, max_examples=300)
@given(SIGNS)
def test_any_text_is_a_value_or_refused(expression: str) -> None:
    with suppress(UserError):
        assert calculate(expression)


UNITS = ["1/97", "(9**600)", "(3**600/7**500)", "sqrt(9**600)", "1.37", "1e-200", "2", "pi", "round(1/7,25)"]


@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "//", "%", "**"])
@pytest.mark.parametrize("unit", UNITS)
def test_no_expression_takes_long(unit: str, operator: str) -> None:
    number = (MAX_CHARS + 1) // (len(unit) + len(operator))
    expression = operator.join([unit] * number)
    times = []
    for _ in range(5):  # the shortest: the machine may be busy
        before = time.thread_time()
        with suppress(UserError):
            calculate(expression)
        times.append(time.thread_time() - before)
    assert min(times) < TIME_S


def test_nesting_is_bounded_and_allowed_up_to_there() -> None:
    depth = MAX_DEPTH - 1
    assert calculate("(" * depth + "1" + ")" * depth) == "1"


@given(st.text(max_size=3 * PART_CHARS))
@settings(deadline=None, max_examples=20)
def test_the_parts_of_a_file_are_its_text(text: str) -> None:
    read = [read_part({"a": text}, "a", 1 + index).partition(":\n")[2] for index in range(num_parts(text))]
    assert "".join(read) == text
    assert max(map(len, read)) <= PART_CHARS


@pytest.mark.parametrize(
    ("name", "part"), [("b", 1), ("../a", 1), ("", 1), ("a", 0), ("a", 3), ("a", -1), ("a", 10**30)]
)
def test_only_parts_of_known_files_are_read(name: str, part: int) -> None:
    with pytest.raises(UserError):
        read_part({"a": "x" * (PART_CHARS + 1)}, name, part)


@pytest.mark.parametrize(
    "arguments",
    [
        *("", "{", "[]", "7", "null", '{"expression": 7}', '{"expression": null}', '{"expr": "1"}'),
        *('{"expression": true}', "[" * 100_000, '{"expression": "\\ud800"}', f'{{"expression": {"9" * 5000}}}'),
    ],
    ids=lambda text: text[:20],
)
def test_arguments_that_do_not_fit_are_told_to_the_model(arguments: str) -> None:
    told = result("calculator", arguments, ["calculator"], {})
    assert told.startswith("Error: ")
    assert told.encode()


def test_every_tool_describes_what_it_takes() -> None:
    for name in TOOLS:
        function = definition(name)["function"]
        assert function["name"] == name
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
        assert json.dumps(function)
    assert math.isclose(float(calculate("pi").split()[0]), math.pi)
