"""The request fields for structured output and for the choice of a tool, in OpenAI's API."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.body import check_json
from freedive.server.request_body import JsonObject, RequestBody, Text
from freedive.text.format import Format, Kind


class FunctionName(RequestBody):
    name: Text


class NamedTool(RequestBody):
    """A tool choice that names the function to call."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(RequestBody):
    ignored = frozenset({"name", "description", "strict"})

    schema_: JsonObject = Field(alias="schema")


class ResponseFormat(RequestBody):
    """The format of an answer; regex, choice and grammar are extensions. A schema is enforced with any ``strict``."""

    type: Literal["text", "json_object", "json_schema", "regex", "choice", "grammar"]
    json_schema: JsonSchema | None = None
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _has_its_value(self) -> ResponseFormat:
        given = self.model_fields_set - {"type"}
        wanted = {self.type} - {"text", "json_object"}
        if given != wanted:
            name = min(given ^ wanted)
            verb, remedy = ("needs", "Send it") if name in wanted else ("has no", "Leave it out")
            what = f"'response_format' of type '{self.type}' {verb} '{name}'"
            raise UserError(what, remedy, param="response_format")
        return self

    def format(self) -> Format | None:
        """Returns the format, None for plain text. Raises UserError for a value that cannot be enforced."""
        if self.type == "text":
            return None
        value = self.json_schema.schema_ if self.json_schema else self.regex or self.choice or self.grammar
        return Format(self.type, value)


def parsed_schema(value: Any) -> Any:
    """Returns the schema of a JSON text, and any other value unchanged. Raises UserError and ValueError."""
    if not isinstance(value, str):
        return value
    check_json(value.encode(errors="surrogatepass"))
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None


class Guided(RequestBody):
    """The format of an answer in vLLM's API: exactly one field is set."""

    ignored = frozenset({"disable_any_whitespace", "disable_fallback", "whitespace_pattern"})
    unsupported: ClassVar = {"disable_additional_properties": (False,), "structural_tag": ()}

    json_: Annotated[JsonObject, BeforeValidator(parsed_schema)] | None = Field(None, alias="json")
    json_object: bool = False
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Guided:
        if len(self._forms()) != 1:
            raise UserError(
                "'structured_outputs' must set exactly one format", "Set one field", param="structured_outputs"
            )
        return self

    def _forms(self) -> dict[Kind, Any]:
        forms: dict[Kind, Any] = {
            "json_object": {} if self.json_object else None,
            "json_schema": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return {kind: value for kind, value in forms.items() if value is not None}

    def format(self) -> Format:
        """Returns the format. Raises UserError for a value that cannot be enforced."""
        [(kind, value)] = self._forms().items()
        return Format("json_object") if kind == "json_object" else Format(kind, value)
