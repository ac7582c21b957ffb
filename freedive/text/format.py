"""The response format of an answer, as a grammar."""

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

_ESCAPES = r"nrbtf\""  # with \u0061 a key could be given that the schema speaks of under its letter
_JSON_OPTIONS = {
    "whitespace_pattern": r"[ \t]{1,2}|\n[ \t]{0,40}",  # a model at a loss would go on with white space for ever
    "json_allowed_escapes": _ESCAPES,
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True)
class Format:
    """``kind`` is json_object, json_schema (``value``: the schema), regex (a regular expression, in Rust's syntax, that

    the whole answer matches), choice (texts, one of which is the answer) or grammar (Lark, as llguidance has it).
    Raises UserError for a ``value`` that is not of that kind; what a schema means is found out when it is used.
    """

    kind: Kind
    value: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _refused(f"There is no format {self.kind!r}", f"Choose one of {', '.join(KINDS)}")
        kind, expected = _EXPECTED[self.kind]
        if not isinstance(self.value, kind):
            raise _refused(f"The format {self.kind} has a wrong value", f"Give it {expected}")
        if self.kind == "choice" and not (self.value and all(isinstance(text, str) and text for text in self.value)):
            raise _refused("The choice is not a list of texts", "Give it at least one, and none that is empty")

    @property
    def grammar(self) -> dict[str, Any]:
        """As one of the grammars that llguidance knows; UserError for a schema that it would not keep to."""
        match self.kind:
            case "json_object":
                return json_grammar({"type": "object"})
            case "json_schema":
                return json_grammar(self.value)
            case "regex":
                if (len(self.value) - len(self.value.rstrip("\\"))) % 2:
                    raise _refused("The regular expression ends in the middle of an escape", "Correct it")
                from llguidance import regex_to_lark  # imported here: not every start needs it

                return {"lark_grammar": f"start: ANSWER\nANSWER: /{regex_to_lark(self.value, '')}/"}
            case "choice":
                return {"lark_grammar": f"start: ANSWER\nANSWER: {any_of([*map(quoted, self.value)])}"}
            case "grammar":
                return {"lark_grammar": self.value}


def json_grammar(schema: Mapping[str, Any], param: str = "response_format", *, loose: bool = False) -> dict[str, Any]:
    """The grammar of JSON under ``schema``. UserError, about ``param``, for what it could not keep to.

    With ``loose`` that is left out.
    """
    try:
        plain, escapes = rewritten(schema, param, loose=loose)
    except RecursionError:
        raise UserError("The schema is nested too deeply", "Use $defs and $ref", param=param) from None
    options = {**_JSON_OPTIONS, "json_allowed_escapes": _ESCAPES + "u"} if escapes else _JSON_OPTIONS
    return {"json_schema": {**plain, "x-guidance": options}}


def _refused(what: str, remedy: str) -> UserError:
    return UserError(what, remedy, param="response_format")
