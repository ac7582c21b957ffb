"""The fields of OpenAI's request bodies, with DeepSeek's, and what they ask for in our terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.model import Model, guide_maker
from freedive.server.parts import parts
from freedive.server.service import Ask
from freedive.server.wire import Text, Wire, listed
from freedive.text.format import Format
from freedive.text.question import Question
from freedive.text.thinking import EFFORTS
from freedive.text.tools import Function as WantedFunction

IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "verbosity",
    }
)
"""Fields that label a request for the operator, or only advise."""


class TextPart(Wire):
    """One part of a message's content."""

    ignored = frozenset({"cache_control", "annotations", "logprobs"})

    type: Literal["text"]
    text: Text


class FunctionCall(Wire):
    name: Text
    arguments: Text = "{}"


class ToolCall(Wire):
    """A call that the model made before. ``index`` is what streams add."""

    ignored = frozenset({"index"})

    id: Text = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    """One turn of a conversation.

    Thoughts go by any of three names; whether the model sees them again is for its template to choose.
    """

    ignored = frozenset({"annotations", "audio", "refusal"})
    unsupported: ClassVar = {"function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[list[TextPart], BeforeValidator(parts("text"), json_schema_input_type=str | list[TextPart])] | None
    ) = None
    name: Text = ""
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    thinking: Text | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: Text | None = None
    prefix: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise UserError(f"a message of role '{self.role}' has no 'content'", "Give it some", param="content")
        if self.role != "assistant" and (self.tool_calls or self.prefix):
            name = "tool_calls" if self.tool_calls else "prefix"
            raise UserError(f"'{name}' is for messages of the assistant", "Leave it out", param=name)
        if self.role == "tool" and self.tool_call_id is None:
            what = "a message of role 'tool' has no 'tool_call_id'"
            raise UserError(what, "Say which call it answers", param="tool_call_id")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: text content, and ``developer`` by its older name ``system``."""
        reasoning = next((text for text in (self.reasoning_content, self.reasoning, self.thinking) if text), None)
        said = {
            "name": self.name or None,
            "reasoning_content": reasoning,
            "tool_calls": [call.model_dump() for call in self.tool_calls] or None,
            "tool_call_id": self.tool_call_id,
        }
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(part.text for part in self.content or ()),
            **{name: value for name, value in said.items() if value is not None},
        }


class Function(Wire):
    """What the model can call: ``parameters`` are a JSON schema."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: Text | None = None
    parameters: dict[str, Any] = {}
    strict: bool = False


class Tool(Wire):
    ignored = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function


class FunctionName(Wire):
    name: Text


class NamedTool(Wire):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Wire):
    ignored = frozenset({"name", "description", "strict"})

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Wire):
    """The form of an answer; regex, choice and grammar are ours. A schema is always kept to, ``strict`` or not."""

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
            remedy = "Give it" if name in wanted else "Leave it out"
            what = f"'{name}' and the type '{self.type}' of 'response_format' do not go together"
            raise UserError(what, remedy, param="response_format")
        return self

    def format(self) -> Format | None:
        """In our terms. Raises UserError for a value that cannot be kept to."""
        if self.type == "text":
            return None
        value = self.json_schema.schema_ if self.json_schema else self.regex or self.choice or self.grammar
        return Format(self.type, value)


class StreamOptions(Wire):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(Wire):
    """What chat and plain completions share. top_k, min_p, repetition_penalty, ignore_eos and timings are ours."""

    ignored = IGNORED

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
    stop: Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])] = []
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = ""
    user_id: str = ""
    timings: bool = False

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> GenerationRequest:
        if self.stream_options and not self.stream:
            raise UserError("'stream_options' needs 'stream': true", "Leave it out", param="stream_options")
        return self


class Thinking(Wire):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled", "auto"]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    unsupported: ClassVar = {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "prediction": (),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    thinking: Thinking | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise UserError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        if self.reasoning_effort not in (None, *EFFORTS):
            what = f"'reasoning_effort' is {self.reasoning_effort!r}"
            raise UserError(what, f"Choose one of {', '.join(EFFORTS)}", param="reasoning_effort")
        for message in self.messages[:-1]:
            if message.prefix:
                raise UserError("'prefix' is for the last message", "Leave it out of the others", param="prefix")
        if self.continues and self.messages[-1].role != "assistant":
            raise UserError("'messages' do not end with the assistant's", "Continue one of these", param="messages")
        if self.add_generation_prompt == self.continues and "add_generation_prompt" in self.model_fields_set:
            what = "'add_generation_prompt' is true exactly where no message is continued"
            raise UserError(what, "Leave it out", param="add_generation_prompt")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return self.messages[-1].prefix or self.continue_final_message

    def ask(self) -> Ask:
        """In our terms."""
        return Ask(self.model, self.questions, self.sampling(), self.n, self.user_id or self.user, self.user_id)

    def questions(self, model: Model) -> Sequence[Question]:
        """The one question that the conversation is. Raises what ``Model.question`` raises."""
        return [model.question([message.for_template() for message in self.messages], **self._options())]

    def sampling(self) -> dict[str, Any]:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = self.top_logprobs if self.logprobs else None
        return self.given(max_tokens=limit, logprobs=logprobs, stop=tuple(self.stop))

    def _options(self) -> Mapping[str, Any]:
        choice = self.tool_choice
        switch = self.thinking.type if self.thinking else "auto"
        return {
            "tools": [tool.model_dump(exclude_none=True) for tool in self.tools],
            "tool_choice": WantedFunction(choice.function.name) if isinstance(choice, NamedTool) else choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "format": self.response_format and self.response_format.format(),
            "thinking": None if switch == "auto" else switch == "enabled",
            "effort": self.reasoning_effort if switch != "disabled" else "none",
            "continues": self.continues,
            **self.chat_template_kwargs,
        }


DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for plain completions."""

Prompt = Text | list[int]
"""Text, or token ids."""


def listed_prompts(value: Any) -> Any:
    """One prompt, text or token ids, as a list of it; everything else as it is."""
    is_ids = isinstance(value, list) and value and all(isinstance(item, int) for item in value)
    return [value] if is_ids else listed(value)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. With a ``suffix`` the answer is what stands between the prompt and that."""

    unsupported: ClassVar = {"best_of": (1,)}

    prompt: Annotated[
        list[Prompt],
        BeforeValidator(listed_prompts, json_schema_input_type=Prompt | list[Prompt]),
        Field(min_length=1, max_length=1024),
    ]
    suffix: Text = ""
    response_format: ResponseFormat | None = None
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise UserError("'echo' together with 'logprobs' is not supported", "Leave one out", param="echo")
        if self.suffix and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise UserError("'suffix' needs a prompt of text", "Send text", param="suffix")
        return self

    def ask(self) -> Ask:
        """In our terms."""
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        sampling = self.given(max_tokens=limit, logprobs=self.logprobs, stop=tuple(self.stop))
        return Ask(self.model, self.questions, sampling, self.n, self.user_id or self.user, self.user_id)

    def questions(self, model: Model) -> Sequence[Question]:
        """One for each prompt."""
        return [self._question(model, prompt) for prompt in self.prompt]

    def _question(self, model: Model, prompt: str | list[int]) -> Question:
        make_guide = guide_maker(model, self.response_format.format() if self.response_format else None)
        if self.suffix:
            return replace(model.infill(str(prompt), self.suffix), make_guide=make_guide)
        tokens = prompt if isinstance(prompt, list) else model.tokenizer.encode(prompt, add_special=True)
        return Question(tokens, continues=True, make_guide=make_guide)
