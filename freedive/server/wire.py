"""OpenAI's request bodies: what each may hold, and how it becomes ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from freedive.engine.request import Sampling
from freedive.errors import UserError

IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "user_id",
    }
)
"""Fields that label a request for the operator and do not change its answer."""


class Wire(BaseModel):
    """A JSON object from a client. null means absent; what we would not honour is refused by name.

    ``unsupported`` maps fields of the format that are not served yet to the values that ask for nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _honoured(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        present = {name: value for name, value in data.items() if value is not None and name not in cls.ignored}
        for name, value in present.items():
            if name in cls.unsupported:
                if value not in cls.unsupported[name]:
                    raise UserError(f"'{name}' is not supported by this server", "Leave it out", param=name)
            elif name not in cls.model_fields:
                raise UserError(f"'{name}' is not a field of this request", "Leave it out", param=name)
        return {name: value for name, value in present.items() if name not in cls.unsupported}


def _unicode(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("half a surrogate pair is not text")
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""JSON can spell strings that no encoding can write."""


class TextPart(Wire):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text


def _parts(content: Any) -> Any:
    """A plain string is one part; parts that we have no senses for are named before their fields are looked at."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and part.get("type") != "text":
                kind = part.get("type")
                raise UserError(f"content of type {kind!r} is not supported", "Send text parts", param="messages")
    return content


class Message(Wire):
    """One turn of a conversation. Thoughts of earlier turns (``reasoning_content``) are accepted and left out."""

    ignored = frozenset({"annotations", "audio", "reasoning", "reasoning_content", "refusal", "thinking"})
    unsupported: ClassVar = {"tool_calls": ([],), "function_call": (), "tool_call_id": ()}

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])]
    name: Text = ""

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it: text content, and ``developer`` by its older name ``system``."""
        message = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(part.text for part in self.content),
        }
        return message | ({"name": self.name} if self.name else {})


class StreamOptions(Wire):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = False


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerationRequest(Wire):
    """What chat and plain completions share. top_k, min_p, repetition_penalty and ignore_eos are ours."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(strict=False)], float] = {}
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = []
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> GenerationRequest:
        if self.stream_options and not self.stream:
            raise UserError("'stream_options' needs 'stream': true", "Leave it out", param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def given(self, *, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
        """The fields of Sampling that the request sets; the others are the model's to choose."""
        shared = GenerationRequest.model_fields.keys() & Sampling.__dataclass_fields__.keys()
        fields = {name: value for name in shared if (value := getattr(self, name)) is not None}
        return fields | {"max_tokens": max_tokens, "logprobs": logprobs, "stop": tuple(self.stop)}


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    ignored = IGNORED
    unsupported: ClassVar = {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise UserError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return self

    def sampling(self) -> dict[str, Any]:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.given(max_tokens=limit, logprobs=self.top_logprobs if self.logprobs else None)


DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for plain completions."""

Prompt = Text | list[int]


def _prompts(value: Any) -> Any:
    is_ids = isinstance(value, list) and value and all(isinstance(item, int) for item in value)
    return [value] if is_ids else _listed(value)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    ignored = IGNORED
    unsupported: ClassVar = {"best_of": (1,), "suffix": ("",)}

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(_prompts, json_schema_input_type=Prompt | list[Prompt]),
        Field(min_length=1, max_length=1024),
    ]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise UserError("'echo' together with 'logprobs' is not supported", "Leave one out", param="echo")
        return self

    def sampling(self) -> dict[str, Any]:
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self.given(max_tokens=limit, logprobs=self.logprobs)
