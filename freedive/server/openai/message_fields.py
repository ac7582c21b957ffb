"""What a conversation of OpenAI's is made of: messages, and tools that can be called."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.parts import parts
from freedive.server.wire import JsonObject, Text, Wire


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
    parameters: JsonObject = {}
    strict: bool = False


class Tool(Wire):
    ignored = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function
