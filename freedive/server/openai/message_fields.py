"""The fields of messages and tools in OpenAI's chat API."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.call_ids import object_text
from freedive.server.content_parts import content_validator
from freedive.server.offers import offered
from freedive.server.request_body import JsonObject, RequestBody, Text


class TextPart(RequestBody):
    """One part of a message's content."""

    ignores_unknown = True

    type: Literal["text"]
    text: Text


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class FunctionCall(RequestBody):
    """``arguments`` are JSON as text; an object is taken, too."""

    ignores_unknown = True

    name: Text
    arguments: Annotated[Text, BeforeValidator(_as_json, json_schema_input_type=str | JsonObject)] = "{}"


class ToolCall(RequestBody):
    """A call that the model made before."""

    ignores_unknown = True

    id: Text = ""
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates know it."""
        function = {"name": self.function.name, "arguments": object_text(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class Message(RequestBody):
    """One turn of a conversation.

    Thoughts go by any of three names; whether the model sees them again is for its template to choose. What else a
    client kept with a message is ignored.
    """

    ignores_unknown = True
    unsupported: ClassVar = {"function_call": ()}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            list[TextPart], BeforeValidator(content_validator("text"), json_schema_input_type=str | list[TextPart])
        ]
        | None
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
        if self.content is None and self.role not in ("assistant", "tool"):
            raise UserError(f"A message of role '{self.role}' has no 'content'", "Give it some", param="content")
        if self.role != "assistant" and (self.tool_calls or self.prefix):
            name = "tool_calls" if self.tool_calls else "prefix"
            raise UserError(f"'{name}' is for messages of the assistant", "Leave it out", param=name)
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: text content, and ``developer`` by its older name ``system``."""
        reasoning = next((text for text in (self.reasoning_content, self.reasoning, self.thinking) if text), None)
        delta = {
            "name": self.name or None,
            "reasoning_content": reasoning,
            "tool_calls": [call.for_template() for call in self.tool_calls] or None,
            "tool_call_id": self.tool_call_id or None,
        }
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": "\n".join(part.text for part in self.content or ()),
            **{name: value for name, value in delta.items() if value is not None},
        }


class Function(RequestBody):
    """What the model can call: ``parameters`` are a JSON schema."""

    ignores_unknown = True

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: Text | None = None
    parameters: JsonObject = {}
    strict: bool = False


class Tool(RequestBody):
    ignores_unknown = True

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """The tool as it came: templates write all of it into the prompt."""
        return {"type": "function", "function": {"parameters": {}} | self.function.model_dump(exclude_unset=True)}


Tools = Annotated[list[Tool], BeforeValidator(offered("function"), json_schema_input_type=list[Tool])]
"""Tools that a server would have to run are left out."""
