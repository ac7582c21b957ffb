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
    """A text part of a message's content."""

    ignores_unknown = True

    type: Literal["text"]
    text: Text


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class FunctionCall(RequestBody):
    """A function call; ``arguments`` are JSON text, and an object is accepted, too."""

    ignores_unknown = True

    name: Text
    arguments: Annotated[Text, BeforeValidator(_as_json, json_schema_input_type=str | JsonObject)] = "{}"


class ToolCall(RequestBody):
    """A tool call of an earlier turn."""

    ignores_unknown = True

    id: Text = ""
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Returns the call in the format of chat templates."""
        function = {"name": self.function.name, "arguments": object_text(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class Message(RequestBody):
    """One message of a conversation.

    Thoughts may have any of three names; the chat template decides whether the model sees them again. Unknown fields,
    such as those that a client stores with an answer, are ignored.
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
            raise UserError(f"A message of role '{self.role}' has no 'content'", "Send it", param="content")
        if self.role != "assistant" and (self.tool_calls or self.prefix):
            name = "tool_calls" if self.tool_calls else "prefix"
            raise UserError(f"'{name}' is only for messages of the assistant", "Leave it out", param=name)
        return self

    def for_template(self) -> dict[str, Any]:
        """Returns the message in the format of chat templates, where the role ``developer`` becomes ``system``."""
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
    """A function that the model can call; ``parameters`` are a JSON schema."""

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
        """Returns the tool with the fields that were sent, because templates write all of them into the prompt."""
        return {"type": "function", "function": {"parameters": {}} | self.function.model_dump(exclude_unset=True)}


Tools = Annotated[list[Tool], BeforeValidator(offered("function"), json_schema_input_type=list[Tool])]
"""A list of tools, without those that a server would have to run."""
