"""The fields of request bodies of OpenAI's Responses, and the generation requests that they describe."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from freedive.engine.request import GenerationRequest
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.model import Model
from freedive.server.openai.foreign_fields import LABELS
from freedive.server.openai.responses import items
from freedive.server.openai.responses.item_fields import ItemReference, Items, readable_items
from freedive.server.openai.responses.tools import Tools
from freedive.server.request_body import JsonObject, Label, RequestBody, Text, ignore
from freedive.text.format import Format
from freedive.text.request import ChatInput
from freedive.text.thinking import EFFORTS
from freedive.text.tools import Function

LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"
Includable = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
OF_TOOLS = re.compile(r"(code_interpreter|computer|file_search|mcp|message\.input_image|web_search)[a-z_.]*")
"""Values of ``include`` that have no effect: results of tools that this server never calls."""


def _includable(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [name for name in value if not (isinstance(name, str) and OF_TOOLS.fullmatch(name))]


def _effort(value: str) -> str:
    if value not in EFFORTS:
        raise ValueError(f"choose one of {', '.join(EFFORTS)}")
    return value


class Reasoning(RequestBody):
    """How hard to think. The response has no summary of the thoughts, because it has the thoughts themselves."""

    ignores_unknown = True

    effort: Annotated[Text, AfterValidator(_effort), WithJsonSchema({"enum": list(EFFORTS)})] | None = None
    summary: Label | None = None


class TextFormat(RequestBody):
    """The format of an answer. A schema is enforced with any value of ``strict``."""

    type: Literal["text", "json_object", "json_schema"]
    name: Label | None = None
    description: Label | None = None
    strict: bool | None = None
    schema_: JsonObject | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise UserError("'schema' belongs to the type 'json_schema', and to no other", param="text.format.schema")
        return self

    def format(self) -> Format | None:
        """Returns the format, None for plain text."""
        return None if self.type == "text" else Format(self.type, self.schema_)


class NamedFunction(RequestBody):
    """A tool choice that names the function to call."""

    type: Literal["function", "custom"]
    name: Text


class TextConfig(RequestBody):
    """The format of the answer's text; ``verbosity`` has no effect."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class PromptRequest(RequestBody):
    """The fields of a request from which the prompt is built."""

    ignored = LABELS
    called: ClassVar = {"reasoning_effort": "reasoning", "response_format": "text", "thinking": "reasoning"}
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "conversation": (),
        "truncation": ("disabled", "auto"),
    }

    input: Items = []
    instructions: Text | None = None
    previous_response_id: Text | None = None
    tools: Tools = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    text: TextConfig = TextConfig()

    @model_validator(mode="before")
    @classmethod
    def _goes_on(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        under_way = data.get("previous_response_id") is not None or bool(data.get("tools"))
        return data | {"input": readable_items(data.get("input"), under_way=under_way)}

    @model_validator(mode="after")
    def _asks_something(self) -> PromptRequest:
        if not (self.input or self.previous_response_id or self.instructions):
            raise UserError("'input' is missing", "Send one", param="input")
        return self

    def items(self, stored: Callable[[str], Json]) -> list[Json]:
        """Returns the input items; ``stored`` returns an item by its id, or raises NotFound."""
        return [stored(item.id) if isinstance(item, ItemReference) else item.item() for item in self.input]

    def generation_request(self, model: str, conversation: Sequence[Json], **others: Any) -> GenerationRequest:
        """Returns the generation request that continues the items of ``conversation``."""
        leading = [{"role": "system", "content": self.instructions}] if self.instructions else []
        choice = self.tool_choice
        asked = ChatInput(
            messages=(*leading, *items.messages(conversation)),
            tools=tuple(tool.for_template() for tool in self.tools),
            tool_choice=Function(choice.name) if isinstance(choice, NamedFunction) else choice,
            parallel_tool_calls=self.parallel_tool_calls,
            format=self.text.format.format() if self.text.format else None,
            effort=self.reasoning.effort,
        )
        return GenerationRequest(model, (asked,), **others)

    def report_unheeded(self, model: Model) -> None:
        """Reports ``reasoning`` as ignored if it sets an effort and ``model`` cannot think."""
        if self.reasoning.effort not in (None, "none") and not model.can_think:
            ignore("reasoning")


class CountRequest(PromptRequest):
    """POST /v1/responses/input_tokens."""

    unsupported: ClassVar = {**PromptRequest.unsupported, "personality": ()}

    model: Text = ""


class ResponseStreamOptions(RequestBody):
    ignored = frozenset({"include_obfuscation"})


class ResponseRequest(PromptRequest):
    """POST /v1/responses. top_k, min_p, repetition_penalty and seed are extensions of OpenAI's API.

    ``max_tool_calls`` limits calls of built-in tools, which this server does not have.
    """

    ignored = LABELS - {"metadata", "prompt_cache_key", "safety_identifier", "store"} | {"context_management"}
    unsupported: ClassVar = {
        **PromptRequest.unsupported,
        "access_programs": ([],),
        "background": (False,),
        "background_options": (),
        "image": (),
        "moderation": (),
        "personality": (),
        "prompt": (),
    }

    model: Text
    max_output_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    include: Annotated[list[Includable], BeforeValidator(_includable, json_schema_input_type=list[Includable])] = []
    top_logprobs: int = Field(0, ge=0, le=20)
    max_tool_calls: int | None = None
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] = Field(
        {}, max_length=16
    )
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    user: Label | None = None
    store: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ResponseRequest:
        if self.top_logprobs and LOGPROBS not in self.include:
            raise UserError(f"'top_logprobs' needs 'include': [\"{LOGPROBS}\"]", param="top_logprobs")
        if self.stream_options and not self.stream:
            ignore("stream_options")
        return self

    def sampling(self) -> Json:
        """Returns the fields of Sampling that the request sets."""
        return self.given(
            max_tokens=self.max_output_tokens, logprobs=self.top_logprobs if LOGPROBS in self.include else None
        )


class RetrieveQuery(RequestBody):
    """GET /v1/responses/{id}. ``include`` has no effect here: it takes effect when the response is created."""

    ignored = frozenset({"include", "include[]", "include_obfuscation"})
    unsupported: ClassVar = {"starting_after": (), "stream": ("false",)}


class ListQuery(RequestBody):
    """GET /v1/responses/{id}/input_items."""

    ignored = frozenset({"include", "include[]"})

    after: Text | None = None
    limit: int = Field(20, ge=1, le=100, strict=False)
    order: Literal["asc", "desc"] = "desc"
