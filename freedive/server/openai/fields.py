"""The fields of OpenAI's request bodies, with DeepSeek's, and the generation requests that they describe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from freedive.engine.request import GenerationRequest
from freedive.engine.submission import Scope
from freedive.errors import UserError
from freedive.server.call_ids import matched
from freedive.server.content_parts import readable
from freedive.server.model import Model
from freedive.server.openai.foreign_fields import LABELS, NEUTRAL, OLLAMA_OPTIONS, WITHOUT_EFFECT
from freedive.server.openai.format_fields import Guided, NamedTool, ResponseFormat, parsed_schema
from freedive.server.openai.message_fields import Message, Tools
from freedive.server.request_body import JsonObject, RequestBody, Text, call, ignore, listed
from freedive.text.format import Format
from freedive.text.request import ChatInput, TextInput, check_template_kwargs
from freedive.text.thinking import EFFORTS
from freedive.text.tools import Function


class StreamOptions(RequestBody):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = False
    continuous_usage_stats: bool = False


class BaseCompletionRequest(RequestBody):
    """The fields that chat and text completions share.

    top_k, min_p, repetition_penalty, repetition_detection, ignore_eos and timings are extensions of OpenAI's API.
    """

    ignored = LABELS | WITHOUT_EFFECT | OLLAMA_OPTIONS
    synonyms = {"cache_salt": "user_id", "n_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
    unsupported: ClassVar = NEUTRAL

    model: Text
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(strict=False)], float] = Field({}, max_length=4096)
    seed: Annotated[int | None, AfterValidator(lambda seed: None if seed == -1 else seed)] = None
    stop: Annotated[list[Text], BeforeValidator(listed, json_schema_input_type=str | list[str])] = []
    ignore_eos: bool = False
    repetition_detection: bool = False
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text = ""
    user_id: Text = ""
    timings: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: Guided | None = None
    guided_json: Annotated[JsonObject, BeforeValidator(parsed_schema)] | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> BaseCompletionRequest:
        if self.stream_options and not self.stream:
            ignore("stream_options")
        return self

    @model_validator(mode="after")
    def _has_one_form(self) -> BaseCompletionRequest:
        forms = [name for name in ("response_format", "structured_outputs", *GUIDED) if getattr(self, name) is not None]
        if len(forms) > 1:
            raise UserError(f"'{forms[0]}' and '{forms[1]}' both set a format", "Send one of them", param=forms[1])
        if forms:
            call({"response_format": forms[0]})
        return self

    @property
    def scope(self) -> Scope:
        """The user on whose behalf the client sends the request, and the salt of the prefix cache."""
        return Scope(user=self.user_id or self.user, cache_salt=self.user_id)

    @property
    def format(self) -> Format | None:
        """The format of the answer, from the field that sets it."""
        fields = {short: value for name, short in GUIDED.items() if (value := getattr(self, name)) is not None}
        guided = Guided(**fields) if fields else self.structured_outputs
        asked = guided or self.response_format
        return asked.format() if asked else None


GUIDED = {f"guided_{kind}": kind for kind in ("json", "regex", "choice", "grammar")}
"""vLLM's older fields for a format, and their names in ``structured_outputs``."""


class Thinking(RequestBody):
    """DeepSeek's switch for thinking, with Anthropic's budget in tokens."""

    type: Literal["enabled", "disabled", "auto"]
    budget_tokens: int | None = Field(None, ge=0)


class Reasoning(RequestBody):
    """OpenRouter's settings for thinking."""

    ignored = frozenset({"exclude", "max_tokens", "summary"})

    effort: Text | None = None
    enabled: bool | None = None


class ChatRequest(BaseCompletionRequest):
    """POST /v1/chat/completions."""

    unsupported: ClassVar = NEUTRAL | {
        "add_special_tokens": (False,),
        "audio": (),
        "chat_template": ("",),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "prediction": (),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Tools = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    reasoning: Reasoning = Reasoning()
    reasoning_effort: Text | None = None
    thinking_budget: int | None = Field(None, ge=0)
    thinking_token_budget: int | None = Field(None, ge=-1)
    chat_template_kwargs: JsonObject = {}
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, data: Any) -> Any:
        return readable(data, ("text",))

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.max_completion_tokens is not None:
            call({"max_tokens": "max_completion_tokens"})
        if self.top_logprobs and not self.logprobs:
            raise UserError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        for param, effort in (("reasoning_effort", self.reasoning_effort), ("reasoning", self.reasoning.effort)):
            if effort not in (None, *EFFORTS):
                raise UserError(f"'{param}' is {effort!r}", f"Choose one of {', '.join(EFFORTS)}", param=param)
        check_template_kwargs(self.chat_template_kwargs)
        for message in self.messages[:-1]:
            if message.prefix:
                raise UserError("'prefix' is only for the last message", "Leave it out elsewhere", param="prefix")
        if self.continues and self.messages[-1].role != "assistant":
            raise UserError("'messages' do not end with the assistant's", "End them with one", param="messages")
        if self.add_generation_prompt == self.continues and "add_generation_prompt" in self.model_fields_set:
            what = "'add_generation_prompt' must be true, unless the last message is continued"
            raise UserError(what, "Leave it out", param="add_generation_prompt")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return self.messages[-1].prefix or self.continue_final_message

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        return GenerationRequest(self.model, (self.chat_input(),), self.sampling(), self.n, self.scope)

    def chat_input(self) -> ChatInput:
        """Returns the conversation as an input."""
        choice, variables = self.tool_choice, dict(self.chat_template_kwargs)
        thinking = self._switch(variables.pop("thinking", None))
        return ChatInput(
            messages=tuple(matched(message.for_template() for message in self.messages)),
            tools=tuple(tool.for_template() for tool in self.tools),
            tool_choice=Function(choice.function.name) if isinstance(choice, NamedTool) else choice,
            parallel_tool_calls=self.parallel_tool_calls,
            format=self.format,
            thinking=thinking,
            effort="none" if thinking is False else self._effort,
            thinking_budget=self._thinking_budget(variables.pop("thinking_budget", None)),
            continue_final_message=self.continues,
            template_kwargs=variables,
        )

    def sampling(self) -> dict[str, Any]:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = self.top_logprobs if self.logprobs else None
        return self.given(max_tokens=limit, logprobs=logprobs, stop=tuple(self.stop))

    def report_unheeded(self, model: Model) -> None:
        """Reports ``reasoning_effort`` as ignored if ``model`` cannot think."""
        if self.chat_input().effort not in (None, "none") and not model.can_think:
            ignore("reasoning_effort")

    @property
    def _effort(self) -> str | None:
        return self.reasoning_effort or self.reasoning.effort

    def _switch(self, variable: Any) -> bool | None:
        """Returns whether to think, None if no field says so; of several fields, the last in the list below counts."""
        switches = [variable, self.enable_thinking, self.reasoning.enabled]
        if self.thinking and self.thinking.type != "auto":
            switches.append(self.thinking.type == "enabled")
        return next((value for value in reversed(switches) if isinstance(value, bool)), None)

    def _thinking_budget(self, variable: Any) -> int | None:
        """Returns the smallest of Qwen's, vLLM's and Anthropic's budgets, in tokens; vLLM's -1 means no budget."""
        switch = self.thinking.budget_tokens if self.thinking else None
        given = (self.thinking_budget, self.thinking_token_budget, switch, variable)
        return min((budget for budget in given if isinstance(budget, int) and budget >= 0), default=None)


DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of ``max_tokens`` for text completions."""

PromptInput = Text | list[int]
"""A prompt as text or as token ids."""


def listed_prompts(value: Any) -> Any:
    """Returns a list of one prompt for a text or a list of token ids, and any other value unchanged."""
    is_ids = isinstance(value, list) and value and all(isinstance(item, int) for item in value)
    return [value] if is_ids else listed(value)


class CompletionRequest(BaseCompletionRequest):
    """POST /v1/completions. With a ``suffix``, the answer is the text between prompt and suffix."""

    synonyms = BaseCompletionRequest.synonyms | {"json_schema": "guided_json"}

    prompt: Annotated[
        list[PromptInput],
        BeforeValidator(listed_prompts, json_schema_input_type=PromptInput | list[PromptInput]),
        Field(min_length=1, max_length=1024),
    ]
    suffix: Text = ""
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.suffix and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise UserError("'suffix' needs a prompt of text", "Send the prompt as text", param="suffix")
        return self

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        scores = {"prompt_logprobs": self.logprobs} if self.echo else {}
        sampling = self.given(max_tokens=limit, logprobs=self.logprobs, stop=tuple(self.stop), **scores)
        texts = [
            TextInput(each if isinstance(each, str) else tuple(each), self.suffix, format=self.format)
            for each in self.prompt
        ]
        return GenerationRequest(self.model, tuple(texts), sampling, self.n, self.scope)
