"""Checks that the fields of a dataclass have values of their declared types: what a caller in Python may get wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from freedive.errors import UserError
from freedive.files import quote

Fits = Callable[[Any], bool]
"""Returns whether a value is of a type."""


def check_fields(record: Any) -> None:
    """Raises UserError, which names the field, if a value of the dataclass ``record`` is not of the type of its field.

    Numbers of any library are accepted, an integer for a float, and a list or a set for a tuple or a frozenset.
    """
    kind: Any = type(record)
    for name, written, fits in _checks(kind):
        value = getattr(record, name)
        if not fits(value):
            raise UserError(f"{name} is {quote(value)}", f"Give it a value of the type {written}", param=name)


@cache
def _checks(kind: type) -> tuple[tuple[str, str, Fits], ...]:
    """Returns the name of each field, its type as text, and its check."""
    hints = get_type_hints(kind)
    return tuple((field.name, _written(hints[field.name]), _fits(hints[field.name])) for field in fields(kind))


def _written(hint: Any) -> str:
    """Returns a type as text, without the names of modules."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else re.sub(r"\b[a-z_]+\.", "", str(hint))


def _fits(hint: Any) -> Fits:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if hint is int or hint is float:
        number = Integral if hint is int else Real
        return lambda value: isinstance(value, number) and not isinstance(value, bool)
    if origin is Union or origin is UnionType:
        options = [_fits(part) for part in parts]
        return lambda value: any(fits(value) for fits in options)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in parts
    if origin is Mapping:
        fits_key, fits_value = map(_fits, parts)
        return lambda value: (
            isinstance(value, Mapping)
            and all(map(fits_key, value))
            and (parts[1] is Any or all(map(fits_value, value.values())))
        )
    if origin is not None:
        return _all_fit(parts[0])
    return lambda value: isinstance(value, hint)


def _all_fit(member: Any) -> Fits:
    """Returns the check of a collection whose items are of the type ``member``."""
    fits = _fits(member)

    def check(value: Any) -> bool:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
            return False
        return set(map(type, value)) == {member} or all(map(fits, value))  # the first is quick for many tokens

    return check
