"""The fields of Anthropic's request bodies, and the generation requests that they describe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.engine.request import GenerationRequest
from freedive.engine.submission import Scope
from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.anthropic.turns import BLOCKS, Message, TextBlock, ToolUseBlock, referenced, text_of, turns
from freedive.server.content_parts import content_validator, readable
from freedive.server.offers import offered
from freedive.server.request_body import JsonObject, RequestBody, Text
from freedive.text.format import Format
from freedive.text.request import ChatInput
from freedive.text.tools import Function
from freedive.text.tools import ToolChoice as WantedTool

BILLING = re.compile(r"\A(?:x-anthropic-billing-header:.*(?:\n|\Z))+")
"""Claude Code's first lines, which are removed: they change in every request and would defeat the prefix cache."""


class Tool(RequestBody):
    """A tool that the model can call. A call is always streamed as a whole.

    A tool with ``defer_loading`` is not in the prompt before a tool result refers to it.
    """

    ignores_unknown = True
    unsupported: ClassVar = {"allowed_callers": (["direct"],)}

    type: Literal["custom"] = "custom"
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: Text | None = None
    input_schema: JsonObject
    input_examples: list[JsonObject] = []
    strict: bool = False
    defer_loading: bool = False

    def for_template(self) -> Json:
        """Returns the tool in the format of chat templates."""
        return {"type": "function", "function": self.function()}

    def function(self) -> Json:
        """Returns the tool's function; its examples become ``examples`` of the JSON schema."""
        described = {"description": self.description} if self.description else {}
        examples = {"examples": self.input_examples} if self.input_examples else {}
        strict = {"strict": True} if self.strict else {}
        return {"name": self.name, **described, "parameters": {**self.input_schema, **examples}, **strict}


def _client_tools(tools: Any) -> Any:
    """Returns the client's tools; if no client tool can search for the deferred ones, none stays deferred.

    Raises UserError if none is left: Claude Code asks for a web search in a request of its own, and would take any
    answer for what was found.
    """
    if not isinstance(tools, list):
        return tools
    kept = _without_server_tools([{"type": "custom"} | tool if isinstance(tool, dict) else tool for tool in tools])
    if tools and not kept:
        what = "All of these tools are Anthropic's own: this server runs none, and describes none to the model"
        raise UserError(what, "Leave 'tools' out, or give tools with an 'input_schema'", param="tools")
    all_given, given = ([tool for tool in some if isinstance(tool, dict)] for some in (tools, kept))
    searched_here = any(str(tool.get("type")).startswith("tool_search_tool") for tool in all_given)
    if searched_here or all(tool.get("defer_loading") for tool in given):
        return [tool | {"defer_loading": False} if isinstance(tool, dict) else tool for tool in kept]
    return kept


_without_server_tools = offered("custom", remedy="Give tools a name, a description and an input_schema")


class ToolChoice(RequestBody):
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
        """The tool choice of the generation request."""
        return Function(self.name) if self.type == "tool" else _CHOICES[self.type]


_CHOICES: dict[str, WantedTool] = {"auto": "auto", "any": "required", "none": "none"}


class Thinking(RequestBody):
    """Whether the model may think, and for how many tokens at most (``budget_tokens``).

    Thoughts are shown as they are, unless ``display`` is "omitted": Claude Code asks for "updates" and "highlights".
    """

    ignores_unknown = True

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "updates", "highlights", "omitted"] = "summarized"


class OutputFormat(RequestBody):
    """The JSON schema of an answer."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(RequestBody):
    ignored = frozenset({"task_budget"})

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class ThreadNotFound(NotFound):
    """A request that continues a conversation stored on the server, which this server does not support."""

    code = "thread_not_found"


class Conversation(RequestBody):
    """POST /v1/messages/count_tokens, and the fields that it shares with /v1/messages.

    Ignored are labels of a request (billing, service tier, cache control), and settings for shortening a conversation,
    which only the client does.
    """

    ignored = frozenset(
        {
            "betas",
            "billing_policy",
            "cache_control",
            "client_metadata",
            "compaction",
            "container",
            "context_management",
            "diagnostics",
            "fallback_credit_token",
            "fallbacks",
            "inference_geo",
            "service_tier",
            "speed",
            "user_profile_id",
        }
    )
    called: ClassVar = {"response_format": "output_config", "stop": "stop_sequences"}
    unsupported: ClassVar = {
        "mcp_servers": ([],),
        "safeguards": ([],),  # a client that believed its tool calls checked here would not check them itself
        "thread": ({"type": "create"},),
    }

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Annotated[
        list[TextBlock],
        BeforeValidator(content_validator("text", param="system"), json_schema_input_type=str | list[TextBlock]),
    ] = []
    tools: Annotated[list[Tool], BeforeValidator(_client_tools, json_schema_input_type=list[Tool])] = []
    tool_choice: ToolChoice = ToolChoice(type="auto")
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_whole(cls, data: Any) -> Any:
        """Refuses stored conversations, and drops blocks that a server's own tools wrote in earlier answers.

        After the error ``thread_not_found``, clients send the whole conversation.
        """
        match data:
            case {"thread": {"type": "continue"}}:
                what = "Conversations are not kept here"
                raise ThreadNotFound(what, "Send the whole conversation", param="thread")
        return readable(data, {kind for kinds in BLOCKS.values() for kind in kinds})

    @model_validator(mode="after")
    def _fits_together(self) -> Conversation:
        if self.continues and any(isinstance(block, ToolUseBlock) for block in self.messages[-1].content):
            raise UserError("The last message has calls without results", "Add their results", param="messages")
        return self

    @property
    def continues(self) -> bool:
        """Whether the answer is the rest of the last message."""
        return self.messages[-1].role == "assistant"

    @property
    def shows_thoughts(self) -> bool:
        """Whether the client wants to read the thoughts."""
        return self.thinking is None or self.thinking.display != "omitted"

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        return GenerationRequest(self.model, (self.chat_input(),))

    def chat_input(self) -> ChatInput:
        """Returns the conversation as an input; ``thinking`` and ``effort`` are only advice in this API."""
        format, found = self.output_config.format or self.output_format, referenced(self.messages)
        late = [tool for tool in self.tools if tool.name in found and not self._is_shown(tool)]
        allowed = None if self.thinking is None else self.thinking.type != "disabled"
        return ChatInput(
            messages=(*self._system(), *turns(self.messages, {tool.name: tool.function() for tool in self.tools})),
            tools=tuple(tool.for_template() for tool in self.tools if self._is_shown(tool)),
            tool_choice=self.tool_choice.choice,
            parallel_tool_calls=not self.tool_choice.disable_parallel_tool_use,
            format=Format("json_schema", format.schema_) if format else None,
            thinking=allowed,
            effort=None if allowed is False else self.output_config.effort,
            thinking_budget=self.thinking.budget_tokens if self.thinking and allowed else None,
            continue_final_message=self.continues,
            unlisted_tools=tuple(tool.for_template() for tool in late),
            thinking_is_advice=True,
        )

    def _is_shown(self, tool: Tool) -> bool:
        return not tool.defer_loading or tool.name == self.tool_choice.name

    def _system(self) -> Iterator[Json]:
        if text := BILLING.sub("", text_of(self.system)):
            yield {"role": "system", "content": text}


class Metadata(RequestBody):
    ignores_unknown = True

    user_id: Text = ""


class MessagesRequest(Conversation):
    """POST /v1/messages."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[Text] = []
    stream: bool = False
    metadata: Metadata = Metadata()

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        sampling = self.given(stop=tuple(self.stop_sequences))
        scope = Scope(user=self.metadata.user_id)
        return GenerationRequest(self.model, (self.chat_input(),), sampling, scope=scope)
