"""The fields of the input items of a request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from freedive.json_object import Json
from freedive.server.content_parts import content_validator, is_the_assistants, readable_part
from freedive.server.openai.responses import items
from freedive.server.request_body import RequestBody, Text, ignore, only, type_of


class Part(RequestBody):
    """A text part of a message or of a tool's output."""

    ignores_unknown = True

    type: Literal["input_text", "output_text"]
    text: Text


Parts = Annotated[
    list[Part],
    BeforeValidator(
        content_validator("input_text", "output_text", param="content"), json_schema_input_type=str | list[Part]
    ),
]


class MessageItem(RequestBody):
    """A message; its ``type`` is optional."""

    ignores_unknown = True

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts

    def item(self) -> Json:
        return items.message(self.role, [part.text for part in self.content])


class CallItem(RequestBody):
    ignores_unknown = True

    call_id: Text
    name: Text
    namespace: Text | None = None


class FunctionCallItem(CallItem):
    type: Literal["function_call"]
    arguments: Text

    def item(self) -> Json:
        return items.function_call(self.name, self.arguments, self.call_id, self.namespace)


class CustomToolCallItem(CallItem):
    type: Literal["custom_tool_call"]
    input: Text

    def item(self) -> Json:
        return items.custom_tool_call(self.name, self.input, self.call_id, self.namespace)


class CallOutputItem(RequestBody):
    ignores_unknown = True

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Text
    output: Parts

    def item(self) -> Json:
        return items.call_output(self.type, self.call_id, [part.model_dump() for part in self.output])


class Thought(RequestBody):
    type: Literal["reasoning_text", "summary_text", "text"]
    text: Text


class ReasoningItem(RequestBody):
    """Thoughts of an earlier turn, from ``content``, else from ``encrypted_content``, else from ``summary``.

    ``encrypted_content`` of another server is ignored and reported.
    """

    ignores_unknown = True

    type: Literal["reasoning"]
    summary: list[Thought] = []
    content: list[Thought] = []
    encrypted_content: Text | None = None

    def item(self) -> Json:
        texts = [thought.text for thought in self.content]
        if self.encrypted_content and not texts:
            opened = items.unsealed(self.encrypted_content)
            texts = [] if opened is None else [opened]
            if opened is None:
                ignore("encrypted_content")
        return items.reasoning(texts, [thought.text for thought in self.summary])


class ItemReference(RequestBody):
    """A reference to an item of a stored response."""

    type: Literal["item_reference"] = "item_reference"
    id: Text


def _without_discriminator(schema: Json) -> None:
    """Removes the discriminator: in OpenAPI it means that the field is required."""
    del schema["discriminator"]


Item = Annotated[
    MessageItem | FunctionCallItem | CustomToolCallItem | CallOutputItem | ReasoningItem | ItemReference,
    Field(discriminator="type", json_schema_extra=_without_discriminator),
]
KINDS = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
    "item_reference",
)
LEFT_OUT = frozenset(
    {
        "additional_tools",
        "agent_message",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_summary",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "context_compaction",
        "file_search_call",
        "ghost_snapshot",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "other",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Types of items that are dropped and reported: those of other servers, and of tools that do not exist here."""
_known_items = only("input", *KINDS)
_ASSISTANT_TYPES = frozenset({"function_call", "custom_tool_call", "reasoning"})
"""Types of items that the assistant wrote, other than messages."""


def _typed(item: Any) -> Any:
    """Adds the type to a message or an item reference, where it is optional."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return item | {"type": "message" if "role" in item or "content" in item else "item_reference"}


def _items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return _known_items([item for item in map(_typed, value) if not _is_left_out(item)])


def _is_left_out(item: Any) -> bool:
    if (kind := type_of(item)) in LEFT_OUT:
        ignore(f"input.{kind}")
        return True
    return False


def readable_items(value: Any, *, under_way: bool) -> Any:
    """Returns a request's input with texts in place of images, audio and files if its conversation is under way."""
    if not isinstance(value, list) or not (under_way or any(map(_is_the_assistants, value))):
        return value
    return [_readable(item) for item in value]


def _is_the_assistants(item: Any) -> bool:
    return type_of(item) in _ASSISTANT_TYPES or is_the_assistants(item)


def _readable(item: Any) -> Any:
    if not isinstance(item, dict) or item.get("type") == "reasoning":
        return item
    lists: Json = {name: item[name] for name in ("content", "output") if isinstance(item.get(name), list)}
    return item | {name: [readable_part(part) for part in value] for name, value in lists.items()}


Items = Annotated[list[Item], BeforeValidator(_items, json_schema_input_type=str | list[Item])]
"""A list of input items; a string is accepted as a message of the user."""
