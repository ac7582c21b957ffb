"""Anthropic's messages, and their conversion to the messages of chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.content_parts import content_validator
from freedive.server.request_body import JsonObject, RequestBody, Text


class TextBlock(RequestBody):
    """A text. What is found in the cache is used, marked by ``cache_control`` or not."""

    ignores_unknown = True

    type: Literal["text"]
    text: Text


class ThinkingBlock(RequestBody):
    """Earlier thoughts. Whether the model sees them again is for its template to choose."""

    ignores_unknown = True

    type: Literal["thinking"]
    thinking: Text


class RedactedThinkingBlock(RequestBody):
    """Earlier thoughts that only the server which wrote them can read."""

    ignores_unknown = True

    type: Literal["redacted_thinking"]


class ToolUseBlock(RequestBody):
    """A call that the model made before."""

    ignores_unknown = True

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: JsonObject = {}


class ToolReferenceBlock(RequestBody):
    """A tool that a search found: from here on the model knows it."""

    ignores_unknown = True

    type: Literal["tool_reference"]
    tool_name: Text


ResultPart = Annotated[TextBlock | ToolReferenceBlock, Field(discriminator="type")]


class ToolResultBlock(RequestBody):
    """What a call came to."""

    ignores_unknown = True

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Annotated[
        list[ResultPart],
        BeforeValidator(content_validator("text", "tool_reference"), json_schema_input_type=str | list[ResultPart]),
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


class Message(RequestBody):
    """One turn of a conversation, or a part of it: neighbours of the same role are one turn."""

    ignores_unknown = True

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        BeforeValidator(
            content_validator(*BLOCKS["user"], *BLOCKS["assistant"]), json_schema_input_type=str | list[Block]
        ),
        Field(min_length=1),
    ]

    @model_validator(mode="after")
    def _says_what_its_role_can(self) -> Message:
        for block in self.content:
            if block.type not in BLOCKS[self.role]:
                what = f"'{block.type}' is not for messages of role '{self.role}'"
                raise UserError(what, f"Choose from {', '.join(BLOCKS[self.role])}", param="messages")
        return self


Definitions = Mapping[str, Json]
"""The functions that results may refer to, by name."""


def turns(messages: Iterable[Message], definitions: Definitions) -> Iterator[Json]:
    """``messages`` as chat templates know them: neighbours of the same role are one."""
    for role, group in groupby(messages, key=lambda message: message.role):
        blocks = [block for message in group for block in message.content]
        yield from [_assistant(blocks)] if role == "assistant" else _asked(role, blocks, definitions)


def _asked(role: str, blocks: Iterable[Block], definitions: Definitions) -> Iterator[Json]:
    """A turn of the user as chat templates know it: results of tools are messages of their own."""
    for _, group in groupby(blocks, key=type):
        same = list(group)
        results = [_result(block, definitions) for block in same if isinstance(block, ToolResultBlock)]
        yield from results or [{"role": role, "content": text_of(same)}]


def _result(block: ToolResultBlock, definitions: Definitions) -> Json:
    """Templates have no other place for what failed."""
    start = "Error: " if block.is_error else ""
    content = start + "\n".join(_result_text(part, definitions) for part in block.content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _result_text(part: TextBlock | ToolReferenceBlock, definitions: Definitions) -> str:
    """A tool that was found is described where it was, so that the prompt's head stays as it is in the cache."""
    if isinstance(part, TextBlock):
        return part.text
    if definition := definitions.get(part.tool_name):
        return f"Tool that can be called from now on: {json.dumps(definition, ensure_ascii=False)}"
    return f"There is no tool {part.tool_name}"


def referenced(messages: Iterable[Message]) -> set[str]:
    """The names of all tools that results refer to."""
    results = (block for message in messages for block in message.content if isinstance(block, ToolResultBlock))
    return {part.tool_name for block in results for part in block.content if isinstance(part, ToolReferenceBlock)}


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
