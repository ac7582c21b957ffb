"""Reads a maker's configuration key by key; refuses impossible values and keys that the family does not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from freedive.errors import UserError
from freedive.families.harmless import HARMLESS, HARMLESS_VALUES, SECTION_HARMLESS
from freedive.files import quote

T = TypeVar("T", bound=str | int)

_REMEDY = "Choose another file of this model, or another model"


class Config:
    """The configuration of one model, with the keys of Hugging Face.

    ``defaults`` are the values of absent keys. A key with the value null is absent and has no default. ``names`` maps
    keys to their names in the file, for error messages. Every getter raises UserError for an impossible value, and for
    a missing key without a default.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        self._values = {key: value for key, value in {**(defaults or {}), **values}.items() if value is not None}
        self._names = names or {}
        self._prefix = prefix
        self._given = {key for key in values if key in self._values}
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}

    def supply(self, values: Mapping[str, Any]) -> None:
        """Sets ``values`` for absent keys, also in sections; :meth:`refuse_unread` does not check these keys."""
        for key, value in values.items():
            if isinstance(value, dict):
                self._values.setdefault(key, {})
                self.section(key).supply(value)
            else:
                self._values.setdefault(key, value)

    def respell(self, names: Mapping[str, str]) -> None:
        """Renames keys by ``names`` (spelling in the file -> standard key), unless the standard key is present too."""
        for theirs, ours in names.items():
            if theirs in self._given:
                self._read.add(theirs)
                if ours not in self._given:
                    self._values[ours] = self._values[theirs]
                    self._names = {**self._names, self._prefix + ours: self._prefix + theirs}

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 20) -> int:
        """Returns a whole number in ``least`` .. ``most``; accepts a float without a fraction, such as 64.0."""
        value = _whole(self._get(key, default))
        if type(value) is not int or not least <= value <= most:
            raise self._impossible(key, value, f"a whole number from {least} to {most}")
        return value

    def counts(self, key: str, length: int, default: int | None = None, *, most: int = 1 << 20) -> list[int]:
        """Returns ``length`` whole numbers in 1 .. ``most``; a single number in the file is repeated."""
        value = self._get(key, default)
        values = [_whole(count) for count in (value if isinstance(value, list) else [value] * length)]
        if len(values) != length or not all(type(count) is int and 1 <= count <= most for count in values):
            raise self._impossible(key, value, f"a whole number from 1 to {most}, or {length} of them")
        return values

    def number(self, key: str, default: float | None = None, *, least: float = 1e-12, most: float = 1e12) -> float:
        """Returns a finite number in ``least`` .. ``most``; the file may have it as a string."""
        value = _numeric(self._get(key, default))
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._impossible(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def numbers(self, key: str, length: int, *, least: float, most: float) -> list[float] | None:
        """Returns ``length`` numbers in ``least`` .. ``most``, or None if the key is absent or its list is empty."""
        value = self._get(key, [])
        if value == []:
            return None
        given: list[float] = value if isinstance(value, list) else []
        if len(given) != length or not all(type(x) in (int, float) and least <= x <= most for x in given):
            raise self._impossible(key, value, f"{length} numbers from {least:g} to {most:g}")
        return given

    def flag(self, key: str, default: bool = False) -> bool:
        """Returns the boolean value of ``key``."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._impossible(key, value, "true or false")
        return value

    def choice(self, key: str, known: tuple[T, ...]) -> T:
        """Returns one of ``known``, the first one if the key is absent."""
        value = self._get(key, known[0])
        if value not in known:
            raise self._impossible(key, value, f"one of {', '.join(map(str, known))}")
        return known[known.index(value)]

    def choices(self, key: str, length: int, known: tuple[str, ...]) -> list[str] | None:
        """Returns ``length`` values of ``known``, or None if the key is absent."""
        if key not in self._values:
            return None
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != length or not all(entry in known for entry in value):
            raise self._impossible(key, value, f"{length} of {', '.join(known)}")
        return value

    def length(self, key: str) -> int:
        """Returns the number of entries of the list ``key``, 0 if it is absent or no list."""
        value = self._values.get(key)
        return len(value) if isinstance(value, list) else 0

    def indices(self, key: str, length: int) -> list[int]:
        """Returns a list of whole numbers below ``length``; an empty list if the key is absent."""
        value = self._get(key, [])
        if not isinstance(value, list) or not all(type(x) is int and 0 <= x < length for x in value):
            raise self._impossible(key, value, f"whole numbers below {length}")
        return value

    def section(self, key: str) -> Config:
        """Returns the object under ``key``, empty if the key is absent."""
        if key not in self._sections:
            value = self._get(key, {})
            if not isinstance(value, dict):
                raise self._impossible(key, value, "an object")
            self._sections[key] = Config(value, names=self._names, prefix=f"{self._prefix}{key}.")
        return self._sections[key]

    def first(self, *keys: str) -> str:
        """Returns the first present key of ``keys``, which have the same meaning.

        If no key is present, returns the one that a GGUF file would have, else the last one.
        """
        return next((key for known in (self._values, self._names) for key in keys if key in known), keys[-1])

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def used(self) -> dict[str, Any]:
        """Returns the present keys that were read so far, with their values, also in sections."""
        used = {key: value for key, value in self._values.items() if key in self._read}
        return used | {key: section.used() for key, section in self._sections.items() if key in used}

    def refuse_unread(
        self, family: str, ignorable: Collection[str] = (), fixed: Mapping[str, object] | None = None
    ) -> None:
        """Raises UserError if a key of the configuration or of a section was never read and is not harmless.

        The keys in HARMLESS and ``ignorable`` are harmless with any value, and the keys in HARMLESS_VALUES and
        ``fixed`` with the value there.
        """
        self._refuse(family, HARMLESS.union(ignorable), {**HARMLESS_VALUES, **(fixed or {})})

    def _refuse(self, family: str, harmless: Collection[str], fixed: Mapping[str, object]) -> None:
        for key in sorted((self._given - self._read).difference(harmless)):
            value = self._values[key]
            if (key, value) not in fixed.items():
                what = f"The configuration has {self._name(key)} = {quote(value)}, unknown to freedive for {family}"
                raise UserError(what, _REMEDY)
        for section in self._sections.values():
            section._refuse(family, SECTION_HARMLESS, {})

    def refusal(self, key: str, what: str) -> UserError:
        """Returns the error that the value of ``key`` is impossible, or contradicts the rest of the configuration."""
        return UserError(f"The configuration's {self._name(key)} {what}", _REMEDY)

    def _get(self, key: str, default: object) -> Any:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise UserError(f"The configuration lacks {self._name(key)}", "Fetch the model again, or choose another")
        return value

    def _impossible(self, key: str, value: object, wanted: str) -> UserError:
        return self.refusal(key, f"is {quote(value)}, not {wanted}")

    def _name(self, key: str) -> str:
        full = self._prefix + key
        return quote(self._names.get(full, full))[1:-1]


def _whole(value: Any) -> Any:
    """Converts a float without a fraction to an integer; returns any other value unchanged."""
    return int(value) if type(value) is float and value.is_integer() else value


def _numeric(value: Any) -> Any:
    """Converts a string that contains a number to a float; returns any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
