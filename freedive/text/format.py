"""The format of an answer, and its conversion to a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from freedive.errors import UserError
from freedive.text.lark import any_of, quoted
from freedive.text.schema.rewrite import rewritten

Kind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]

KINDS: tuple[Kind, ...] = get_args(Kind)

_EXPECTED: dict[Kind, tuple[Any, str]] = {
    "json_object": (type(None), "nothing"),
    "json_schema": (Mapping, "a JSON schema as an object"),
    "regex": (str, "a regular expression"),
    "choice": (list | tuple, "a list of texts"),
    "grammar": (str, "a grammar in llguidance's Lark"),
}

MAX_LENGTH = 1 << 20
"""The most characters of a grammar."""

_ESCAPES = r"nrbtf\""  # no \u0061: it could spell a key that the schema names
_JSON_OPTIONS = {
    "whitespace_pattern": r"[ \t]{1,2}|\n[ \t]{0,40}",  # unbounded white space could go on for ever
    "json_allowed_escapes": _ESCAPES,
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True)
class Format:
    """The format of an answer, by ``kind``.

    json_object has no ``value``; json_schema has a schema; regex has a regular expression in Rust's syntax that the
    whole answer matches; choice has texts, one of which is the answer; grammar has a grammar in llguidance's Lark.
    Raises UserError for a ``value`` of the wrong type or longer than MAX_LENGTH; a schema is checked when it is used.
    """

    kind: Kind
    value: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _refused(f"There is no format {self.kind!r}", f"Choose one of {', '.join(KINDS)}")
        kind, expected = _EXPECTED[self.kind]
        if not isinstance(self.value, kind):
            raise _refused(f"The format {self.kind} has a wrong value", f"Use {expected}")
        if self.kind == "choice" and not (self.value and all(isinstance(text, str) and text for text in self.value)):
            raise _refused("The choice is not a list of texts", "Use at least one text, and no empty one")
        # Rewriting a long text would hold other requests: it is refused before.
        texts = [self.value] if isinstance(self.value, str) else self.value if self.kind == "choice" else ()
        if sum(map(len, texts)) > MAX_LENGTH:
            raise _refused(f"The {self.kind} is longer than {MAX_LENGTH} characters", "Shorten it")

    @property
    def grammar(self) -> dict[str, Any]:
        """The format as a grammar for llguidance. Raises UserError for a schema that cannot be enforced."""
        match self.kind:
            case "json_object":
                return json_grammar({"type": "object"})
            case "json_schema":
                return json_grammar(self.value)
            case "regex":
                if (len(self.value) - len(self.value.rstrip("\\"))) % 2:
                    raise _refused("The regular expression ends in the middle of an escape", "Correct it")
                from llguidance import regex_to_lark  # imported here, because it is rarely needed

                return {"lark_grammar": f"start: ANSWER\nANSWER: /{regex_to_lark(self.value, '')}/"}
            case "choice":
                return {"lark_grammar": f"start: ANSWER\nANSWER: {any_of([*map(quoted, self.value)])}"}
            case "grammar":
                return {"lark_grammar": self.value}


def json_grammar(schema: Mapping[str, Any], param: str = "response_format", *, loose: bool = False) -> dict[str, Any]:
    """Returns the grammar of JSON that ``schema`` allows.

    Raises UserError, about ``param``, for keywords that cannot be enforced; with ``loose`` these are dropped.
    """
    try:
        plain, escapes = rewritten(schema, param, loose=loose)
    except RecursionError:
        raise UserError("The schema is nested too deeply", "Use $defs and $ref", param=param) from None
    options = {**_JSON_OPTIONS, "json_allowed_escapes": _ESCAPES + "u"} if escapes else _JSON_OPTIONS
    return {"json_schema": {**plain, "x-guidance": options}}


def _refused(what: str, remedy: str) -> UserError:
    return UserError(what, remedy, param="response_format")
