"""The fields of Anthropic's request bodies, and what they ask for in our terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.anthropic.turns import LABELS, Message, TextBlock, ToolUseBlock, text_of, turns
from freedive.server.model import Model
from freedive.server.parts import parts
from freedive.server.service import Ask
from freedive.server.wire import Text, Wire
from freedive.text.format import Format
from freedive.text.question import Question
from freedive.text.tools import Function
from freedive.text.tools import ToolChoice as WantedTool

Json = dict[str, Any]

BILLING = re.compile(r"\A(?:x-anthropic-billing-header:.*(?:\n|\Z))+")
"""Claude Code's first lines, which change from request to request, so that no cache would know the rest again."""


def custom(tool: Any) -> Any:
    """Tools that the server would have to run, or to know, are named before their fields are looked at."""
    if isinstance(tool, dict) and (kind := tool.get("type")) not in (None, "custom"):
        what = f"a tool of type {kind!r} is not supported"
        raise UserError(what, "Give tools a name, a description and an input_schema", param="tools")
    return tool


class Tool(Wire):
    """What the model can call. Calls come whole, however eagerly their input might be streamed."""

    ignored = LABELS | {"eager_input_streaming"}
    unsupported: ClassVar = {"allowed_callers": (["direct"],), "defer_loading": (False,)}

    type: Literal["custom"] = "custom"
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: Text | None = None
    input_schema: Json
    input_examples: list[Json] = []
    strict: bool = False

    def for_template(self) -> Json:
        """The tool as chat templates know it. Examples have a place of their own in a JSON schema."""
        described = {"description": self.description} if self.description else {}
        examples = {"examples": self.input_examples} if self.input_examples else {}
        parameters = {**self.input_schema, **examples}
        function = {"name": self.name, **described, "parameters": parameters, "strict": self.strict}
        return {"type": "function", "function": function}


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: Text = ""
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_a_tool(self) -> ToolChoice:
        if (self.type == "tool") != bool(self.name):
            raise UserError("'name' belongs to the type 'tool', and to no other", param="tool_choice.name")
        return self

    @property
    def choice(self) -> WantedTool:
        """In our terms."""
        return Function(self.name) if self.type == "tool" else _CHOICES[self.type]


_CHOICES: dict[str, WantedTool] = {"auto": "auto", "any": "required", "none": "none"}


class Thinking(Wire):
    """Permission to think, for at most ``budget_tokens``."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] = "summarized"


class OutputFormat(Wire):
    """The form of an answer."""

    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Wire):
    unsupported: ClassVar = {"task_budget": ()}

    format: OutputFormat | None = None

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Conversation(Wire):
    """POST /v1/messages/count_tokens, and what it shares with /v1/messages.

    Ignored is what labels a request: who pays, in which queue, and what to report of the cache.
    """

    ignored = LABELS | {"billing_policy", "diagnostics", "service_tier"}
    unsupported: ClassVar = {
        "compaction": (),
        "container": (),
        # Claude Code asks that no thoughts be removed, and none are: which ones a model sees, its template decides.
        "context_management": ({}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
        "fallback_credit_token": (),
        "fallbacks": ([], "default"),
        "inference_geo": ("global",),
        "mcp_servers": ([],),
        "speed": ("standard",),
        "thread": (),
    }

    model: str
    messages: list[Message] = Field(min_length=1)
    system: Annotated[
        list[TextBlock],
        BeforeValidator(parts("text", param="system"), json_schema_input_type=str | list[TextBlock]),
    ] = []
    tools: list[Annotated[Tool, BeforeValidator(custom)]] = []
    tool_choice: ToolChoice = ToolChoice(type="auto")
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Conversation:
        if self.continues and any(isinstance(block, ToolUseBlock) for block in self.messages[-1].content):
            raise UserError("the last message has calls without results", "Add a 'tool_result' each", param="messages")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return self.messages[-1].role == "assistant"

    @property
    def shows_thoughts(self) -> bool:
        """Whether the client wants to read them."""
        return self.thinking is None or self.thinking.display != "omitted"

    def ask(self) -> Ask:
        """In our terms."""
        return Ask(self.model, self.questions)

    def questions(self, model: Model) -> Sequence[Question]:
        """The one question that the conversation is. Raises what ``Model.question`` raises."""
        format = self.output_config.format or self.output_format
        options: Json = {
            "tools": [tool.for_template() for tool in self.tools],
            "tool_choice": self.tool_choice.choice,
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            "format": format and Format("json_schema", format.schema_),
            "continues": self.continues,
        }
        messages = [*self._system(), *turns(self.messages)]
        return [model.question(messages, **options, **self._thinking(model))]

    def _thinking(self, model: Model) -> Mapping[str, Any]:
        """In this API both switches permit and advise, so that models without thoughts can be asked all the same."""
        if not model.can_think:
            return {}
        allowed = None if self.thinking is None else self.thinking.type != "disabled"
        effort = None if allowed is False else self.output_config.effort
        budget = self.thinking.budget_tokens if self.thinking and allowed else None
        return {"thinking": allowed, "effort": effort, "thinking_budget": budget}

    def _system(self) -> Iterator[Json]:
        if text := BILLING.sub("", text_of(self.system)):
            yield {"role": "system", "content": text}


class Metadata(Wire):
    user_id: str = ""


class MessagesRequest(Conversation):
    """POST /v1/messages."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] = []
    stream: bool = False
    metadata: Metadata = Metadata()

    def ask(self) -> Ask:
        """In our terms."""
        sampling = self.given(stop=tuple(self.stop_sequences))
        return Ask(self.model, self.questions, sampling, user=self.metadata.user_id)
