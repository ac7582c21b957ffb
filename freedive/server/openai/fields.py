"""The fields of OpenAI's request bodies, with DeepSeek's, and what they ask for in our terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.model import Model
from freedive.server.openai.format_fields import NamedTool, ResponseFormat
from freedive.server.openai.message_fields import Message, Tool
from freedive.server.service import Ask
from freedive.server.wire import Text, Wire, listed
from freedive.text.question import Question
from freedive.text.thinking import EFFORTS
from freedive.text.tools import Function

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
    logit_bias: dict[Annotated[int, Field(strict=False)], float] = Field({}, max_length=4096)
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
            "tool_choice": Function(choice.function.name) if isinstance(choice, NamedTool) else choice,
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
        format = self.response_format.format() if self.response_format else None
        make_guide = model.make_guide(format) if format else None
        if self.suffix:
            return replace(model.infill(str(prompt), self.suffix), make_guide=make_guide)
        tokens = (
            prompt
            if isinstance(prompt, list)
            else model.tokenizer.encode(prompt, add_special=True, max_tokens=model.max_context)
        )
        return Question(tokens, continues=True, make_guide=make_guide)
