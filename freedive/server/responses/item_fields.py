"""The items of a request's input, as they come by the wire."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from freedive.server.responses import items
from freedive.server.wire import Text, Wire, only

Json = dict[str, Any]


class Part(Wire):
    """A text in a message."""

    ignored = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text"]
    text: Text


_text_parts = only("content", "input_text", "output_text")


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else _text_parts(value)


Parts = Annotated[list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])]


class MessageItem(Wire):
    """What somebody said; the type may be left out."""

    ignored = frozenset({"id", "phase", "status"})

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts

    def item(self) -> Json:
        return items.message(self.role, [part.text for part in self.content])


class FunctionCallItem(Wire):
    ignored = frozenset({"created_by", "id", "status"})
    unsupported: ClassVar = {"async": (False,), "caller": ({"type": "direct"},), "namespace": ()}

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text

    def item(self) -> Json:
        return items.function_call(self.name, self.arguments, self.call_id)


class FunctionCallOutputItem(Wire):
    ignored = frozenset({"created_by", "id", "name", "status"})
    unsupported: ClassVar = {"caller": ({"type": "direct"},), "namespace": ()}

    type: Literal["function_call_output"]
    call_id: Text
    output: Parts

    def item(self) -> Json:
        return items.function_call_output(self.call_id, [part.model_dump() for part in self.output])


class Thought(Wire):
    type: Literal["reasoning_text", "summary_text", "text"]
    text: Text


class ReasoningItem(Wire):
    """Thoughts of an earlier turn: in the open, else sealed by this server, else as a summary."""

    ignored = frozenset({"id", "status"})

    type: Literal["reasoning"]
    summary: list[Thought] = []
    content: list[Thought] = []
    encrypted_content: Text | None = None

    def item(self) -> Json:
        texts = [thought.text for thought in self.content]
        if self.encrypted_content and not texts:
            texts = [items.unsealed(self.encrypted_content)]
        return items.reasoning(texts, [thought.text for thought in self.summary])


class ItemReference(Wire):
    """An item of a stored response."""

    type: Literal["item_reference"] = "item_reference"
    id: Text


KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
Item = Annotated[
    MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | ItemReference, Field(discriminator="type")
]
_known_items = only("input", *KINDS)


def _typed(item: Any) -> Any:
    """The two kinds of items that may go without their type."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return item | {"type": "message" if "role" in item or "content" in item else "item_reference"}


def _items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return _known_items([_typed(item) for item in value]) if isinstance(value, list) else value


Items = Annotated[list[Item], BeforeValidator(_items, json_schema_input_type=str | list[Item])]
"""A plain string is what the user says."""
