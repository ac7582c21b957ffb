"""The fields of Ollama's request bodies, and what they ask for in our terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.model import Model
from freedive.server.ollama.options import Options
from freedive.server.ollama.times import KeepAlive
from freedive.server.openai.message_fields import Tool
from freedive.server.service import Ask, to_embed
from freedive.server.wire import JsonObject, Text, Wire, listed, writable
from freedive.text.format import Format
from freedive.text.question import Question

Json = dict[str, Any]


class FunctionCall(Wire):
    ignored = frozenset({"index"})

    name: Text
    arguments: Annotated[Json, AfterValidator(writable)] = {}


class ToolCall(Wire):
    """A call that the model made before."""

    ignored = frozenset({"type"})

    id: Text = ""
    function: FunctionCall


class Message(Wire):
    """One turn of a conversation. ``tool_name`` and ``tool_call_id`` say which call a result is of."""

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
            raise UserError("'tool_calls' is for messages of the assistant", "Leave it out", param="tool_calls")
        return self


class AnswerRequest(Wire):
    """What chat and generate share."""

    unsupported: ClassVar = {"truncate": (False,), "shift": (False,)}

    model: str
    stream: bool = True
    format: Literal["", "json"] | JsonObject = ""
    think: bool | Literal["low", "medium", "high"] | None = None
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
        """Whether there is anything to answer; otherwise the model is to be loaded or, with keep_alive 0, unloaded."""
        raise NotImplementedError

    def questions(self, model: Model) -> Sequence[Question]:
        """The one question that the request is. Raises what ``Model.question`` raises."""
        raise NotImplementedError

    def ask(self) -> Ask:
        """In our terms."""
        sampling = self.options.sampling() | ({"logprobs": self.top_logprobs} if self.logprobs else {})
        return Ask(
            self.model,
            self.questions,
            sampling,
            max_context=self.options.num_ctx,
            keep_alive_s=self.keep_alive,
        )

    def _format(self) -> Format | None:
        schema = None if isinstance(self.format, str) else self.format
        return Format("json_schema", schema) if schema else Format("json_object") if self.format else None

    def _options(self) -> dict[str, Any]:
        thinking = {"effort": self.think} if isinstance(self.think, str) else {"thinking": self.think}
        return {"format": self._format(), **thinking}


class ChatRequest(AnswerRequest):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: list[Tool] = []

    @property
    def asks(self) -> bool:
        return bool(self.messages)

    def questions(self, model: Model) -> Sequence[Question]:
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return [model.question(for_template(self.messages), tools, **self._options())]


class GenerateRequest(AnswerRequest):
    """POST /api/generate. With a ``suffix`` the answer is what stands between the prompt and that."""

    unsupported: ClassVar = AnswerRequest.unsupported | {
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
            raise UserError("'format' does not go with 'suffix'", "Leave one of them out", param="format")
        for name in ("system", "think"):
            if plain and getattr(self, name):
                what = f"'{name}' is for prompts that go through the chat template, and those with '{plain}' do not"
                raise UserError(what, "Leave one of them out", param=name)
        return self

    @property
    def asks(self) -> bool:
        return bool(self.prompt)

    def questions(self, model: Model) -> Sequence[Question]:
        if self.suffix:
            return [model.infill(self.prompt, self.suffix)]
        if self.raw:
            tokens = model.tokenizer.encode(self.prompt, add_special=True, max_tokens=model.max_context)
            format = self._format()
            return [Question(tokens, continues=True, make_guide=model.make_guide(format) if format else None)]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [model.question([*system, {"role": "user", "content": self.prompt}], **self._options())]


class EmbedRequest(Wire):
    """POST /api/embed."""

    unsupported: ClassVar = {"dimensions": (), "truncate": (False,)}

    model: str
    input: Annotated[list[Text], BeforeValidator(listed, json_schema_input_type=str | list[str])]
    options: Options = Options()
    keep_alive: KeepAlive | None = None

    def ask(self) -> Ask:
        """In our terms."""
        return to_embed(self.model, self.input, keep_alive_s=self.keep_alive, max_context=self.options.num_ctx)


class EmbeddingsRequest(Wire):
    """POST /api/embeddings, the older form."""

    model: str
    prompt: Text = ""
    options: Options = Options()
    keep_alive: KeepAlive | None = None

    def ask(self) -> Ask:
        """In our terms."""
        return to_embed(self.model, [self.prompt], keep_alive_s=self.keep_alive, max_context=self.options.num_ctx)


class ModelRequest(Wire):
    """What names a model; older clients do it by ``name``."""

    model: str = ""
    name: str = ""

    @model_validator(mode="after")
    def _names_one(self) -> ModelRequest:
        self.model = self.model or self.name
        if not self.model:
            raise UserError("'model' is missing", "Name a model", param="model")
        return self


class ShowRequest(ModelRequest):
    """POST /api/show. ``verbose`` asks for the vocabulary, too, which is not told."""

    unsupported: ClassVar = {"options": ({},), "system": ("",), "template": ("",), "verbose": (False,)}


class PullRequest(ModelRequest):
    """POST /api/pull."""

    unsupported: ClassVar = {"insecure": (False,), "password": ("",), "username": ("",)}

    stream: bool = True


def for_template(messages: Sequence[Message]) -> list[Json]:
    """The messages as chat templates know them.

    Some templates tell by an id which call a result is of. Calls that came without have their number; a result without
    is of the first call of its name, or of any name if it has none, that was not answered before.
    """
    written: list[Json] = []
    unanswered: list[Json] = []
    num_calls = 0
    for message in messages:
        calls = [_call(call, num_calls + index) for index, call in enumerate(message.tool_calls)]
        num_calls += len(calls)
        unanswered += calls
        said = {
            "name": message.tool_name,
            "reasoning_content": message.thinking or None,
            "tool_calls": calls or None,
            "tool_call_id": _answered(message, unanswered) if message.role == "tool" else None,
        }
        given = {name: value for name, value in said.items() if value is not None}
        written.append({"role": message.role, "content": message.content, **given})
    return written


def _call(call: ToolCall, number: int) -> Json:
    """Nine letters and digits are what Mistral's templates want of an id."""
    return {"id": call.id or f"call{number:05}", "type": "function", "function": call.function.model_dump()}


def _answered(result: Message, unanswered: list[Json]) -> str | None:
    """The id of the call that a result is of, which is then no longer unanswered."""
    for call in unanswered:
        names = (None, call["function"]["name"])
        if call["id"] == result.tool_call_id or (result.tool_call_id is None and result.tool_name in names):
            unanswered.remove(call)
            return str(call["id"])
    return result.tool_call_id
