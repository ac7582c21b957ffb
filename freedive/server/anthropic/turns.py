"""Conversations as Anthropic has them, and as chat templates do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.server.parts import parts
from freedive.server.wire import Text, Wire

Json = dict[str, Any]

LABELS = frozenset({"cache_control"})
"""What is found in the cache is used, marked or not."""


class TextBlock(Wire):
    """``citations`` are of sources that an earlier answer named."""

    ignored = LABELS | {"citations"}

    type: Literal["text"]
    text: Text


class ThinkingBlock(Wire):
    """Earlier thoughts. Whether the model sees them again is for its template to choose."""

    ignored = frozenset({"signature"})

    type: Literal["thinking"]
    thinking: Text


class RedactedThinkingBlock(Wire):
    """Earlier thoughts that only the server which wrote them can read."""

    ignored = frozenset({"data"})

    type: Literal["redacted_thinking"]


class ToolUseBlock(Wire):
    """A call that the model made before."""

    ignored = LABELS
    unsupported: ClassVar = {"caller": ({"type": "direct"},), "toolset_name": ()}

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: Json


class ToolResultBlock(Wire):
    """What a call came to."""

    ignored = LABELS
    unsupported: ClassVar = {"toolset_name": ()}

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Annotated[
        list[TextBlock], BeforeValidator(parts("text"), json_schema_input_type=str | list[TextBlock])
    ] = []
    is_error: bool = False


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]
BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
"""By role. Blocks of other types are refused."""


class Message(Wire):
    """One turn of a conversation, or a part of it: neighbours of the same role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        BeforeValidator(parts(*BLOCKS["user"], *BLOCKS["assistant"]), json_schema_input_type=str | list[Block]),
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _says_what_its_role_can(self) -> Message:
        for block in self.content:
            if block.type not in BLOCKS[self.role]:
                what = f"'{block.type}' is not for messages of role '{self.role}'"
                raise UserError(what, f"Choose from {', '.join(BLOCKS[self.role])}", param="messages")
        return self


def turns(messages: Iterable[Message]) -> Iterator[Json]:
    """``messages`` as chat templates know them: neighbours of the same role are one."""
    for role, group in groupby(messages, key=lambda message: message.role):
        blocks = [block for message in group for block in message.content]
        yield from [_assistant(blocks)] if role == "assistant" else _asked(role, blocks)


def _asked(role: str, blocks: Iterable[Block]) -> Iterator[Json]:
    """A turn of the user as chat templates know it: results of tools are messages of their own."""
    for _, group in groupby(blocks, key=type):
        same = list(group)
        results = [_result(block) for block in same if isinstance(block, ToolResultBlock)]
        yield from results or [{"role": role, "content": text_of(same)}]


def _result(block: ToolResultBlock) -> Json:
    """Templates have no other place for what failed."""
    start = "Error: " if block.is_error else ""
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": start + text_of(block.content)}


def _assistant(blocks: Sequence[Block]) -> Json:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock) and block.thinking]
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    return {
        "role": "assistant",
        "content": text_of(blocks),
        **({"reasoning_content": "\n".join(thoughts)} if thoughts else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call(block: ToolUseBlock) -> Json:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}


def text_of(blocks: Iterable[Block]) -> str:
    """What is text in ``blocks``."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))
