"""The fields of Ollama's request bodies, and the generation requests that they describe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.engine.request import GenerationRequest, embedding_request
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.call_ids import matched
from freedive.server.content_parts import is_under_way, placeholder
from freedive.server.ollama.options import Options
from freedive.server.ollama.times import KeepAlive
from freedive.server.openai.message_fields import Tools
from freedive.server.request_body import JsonObject, RequestBody, Text, listed
from freedive.text.format import Format
from freedive.text.request import ChatInput, Input, TextInput


class FunctionCall(RequestBody):
    ignores_unknown = True

    name: Text
    arguments: JsonObject = {}


class ToolCall(RequestBody):
    """A tool call of an earlier turn."""

    ignores_unknown = True

    id: Text = ""
    function: FunctionCall

    def for_template(self) -> Json:
        """Returns the call in the format of chat templates."""
        return {"id": self.id, "type": "function", "function": self.function.model_dump()}


class Message(RequestBody):
    """One message of a conversation. ``tool_name`` and ``tool_call_id`` tell which call a tool result answers."""

    ignores_unknown = True
    synonyms = {"name": "tool_name"}
    unsupported: ClassVar = {"images": ([],)}

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text | None = None
    tool_calls: list[ToolCall] = []
    tool_name: Text | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _calls_are_the_assistants(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise UserError("'tool_calls' is only for messages of the assistant", "Leave it out", param="tool_calls")
        return self

    def for_template(self) -> Json:
        """Returns the message in the format of chat templates."""
        calls = [call.for_template() for call in self.tool_calls]
        optional = {
            "name": self.tool_name,
            "reasoning_content": self.thinking or None,
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id if self.role == "tool" else None,
        }
        given = {name: value for name, value in optional.items() if value is not None}
        return {"role": self.role, "content": self.content, **given}


def _without_images(message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(images := message.get("images"), list):
        return message
    texts = [message.get("content") or "", *(placeholder("image") for _ in images)]
    return message | {"images": [], "content": "\n".join(filter(None, texts))} if images else message


class AnswerRequest(RequestBody):
    """The fields that /api/chat and /api/generate share."""

    ignored = frozenset({"shift", "truncate"})
    called: ClassVar = {"reasoning_effort": "think", "response_format": "format", "thinking": "think"}

    model: Text
    stream: bool = True
    format: Literal["", "json"] | JsonObject = ""
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    options: Options = Options()
    keep_alive: KeepAlive | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _top_of_something(self) -> AnswerRequest:
        if self.top_logprobs and not self.logprobs:
            raise UserError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return self

    @property
    def asks(self) -> bool:
        """Whether the request has a prompt; without one it loads the model, or unloads it if keep_alive is 0."""
        raise NotImplementedError

    def input(self) -> Input:
        """Returns the one input of the request."""
        raise NotImplementedError

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        sampling = self.options.sampling() | ({"logprobs": self.top_logprobs} if self.logprobs else {})
        return GenerationRequest(
            self.model, (self.input(),), sampling, max_context=self.options.num_ctx, keep_alive_s=self.keep_alive
        )

    def _format(self) -> Format | None:
        schema = None if isinstance(self.format, str) else self.format
        return Format("json_schema", schema) if schema else Format("json_object") if self.format else None

    def _chat(self, messages: Iterable[Json], tools: Iterable[Json] = ()) -> ChatInput:
        effort = self.think if isinstance(self.think, str) else None
        thinking = self.think if isinstance(self.think, bool) else None
        return ChatInput(tuple(messages), tuple(tools), format=self._format(), thinking=thinking, effort=effort)


class ChatRequest(AnswerRequest):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: Tools = []

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, data: Any) -> Any:
        """Replaces each image by a text if the conversation is under way."""
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list) or not is_under_way(data, messages):
            return data
        return data | {"messages": [_without_images(message) for message in messages]}

    @property
    def asks(self) -> bool:
        return bool(self.messages)

    def input(self) -> Input:
        messages = matched(message.for_template() for message in self.messages)
        return self._chat(messages, [tool.for_template() for tool in self.tools])


class GenerateRequest(AnswerRequest):
    """POST /api/generate. With a ``suffix``, the answer is the text between prompt and suffix."""

    unsupported: ClassVar = {
        "context": ([],),
        "height": (),
        "images": ([],),
        "steps": (),
        "template": ("",),
        "width": (),
    }

    prompt: Text = ""
    suffix: Text = ""
    system: Text = ""
    raw: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> GenerateRequest:
        plain = "raw" if self.raw else "suffix" if self.suffix else ""
        if self.suffix and self.format:
            raise UserError("'format' and 'suffix' cannot be combined", "Leave one of them out", param="format")
        for name in ("system", "think"):
            if plain and getattr(self, name):
                what = f"'{name}' needs the chat template, which '{plain}' turns off"
                raise UserError(what, "Leave one of them out", param=name)
        return self

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    def input(self) -> Input:
        if self.suffix or self.raw:
            return TextInput(self.prompt, self.suffix, format=self._format())
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._chat([*system, {"role": "user", "content": self.prompt}])


def _texts(value: Any) -> Any:
    return listed(value) if value else []


class EmbedRequest(RequestBody):
    """POST /api/embed. An empty list gives no vector; an empty text is embedded as a space."""

    ignored = frozenset({"truncate"})
    unsupported: ClassVar = {"dimensions": (0,)}

    model: Text
    input: Annotated[list[Text], BeforeValidator(_texts, json_schema_input_type=str | list[str])]
    options: Options = Options()
    keep_alive: KeepAlive | None = None

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        texts = [text or " " for text in self.input]
        return embedding_request(self.model, texts, keep_alive_s=self.keep_alive, max_context=self.options.num_ctx)


class EmbeddingsRequest(RequestBody):
    """POST /api/embeddings, the older form of /api/embed."""

    model: Text
    prompt: Text = ""
    options: Options = Options()
    keep_alive: KeepAlive | None = None

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        return embedding_request(
            self.model, [self.prompt], keep_alive_s=self.keep_alive, max_context=self.options.num_ctx
        )


class ModelRequest(RequestBody):
    """A request that names a model; older clients use ``name`` instead of ``model``."""

    model: Text = ""
    name: Text = ""

    @model_validator(mode="after")
    def _names_one(self) -> ModelRequest:
        self.model = self.model or self.name
        if not self.model:
            raise UserError("'model' is missing", "Name a model", param="model")
        return self


class ShowRequest(ModelRequest):
    """POST /api/show. ``verbose``, which asks for the vocabulary, has no effect."""

    ignored = frozenset({"options", "verbose"})
    unsupported: ClassVar = {"system": ("",), "template": ("",)}


class PullRequest(ModelRequest):
    """POST /api/pull."""

    unsupported: ClassVar = {"insecure": (False,), "password": ("",), "username": ("",)}

    stream: bool = True
