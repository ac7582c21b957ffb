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
    """A text. The prefix cache is used with and without ``cache_control``."""

    ignores_unknown = True

    type: Literal["text"]
    text: Text


class ThinkingBlock(RequestBody):
    """Thoughts of an earlier turn; the chat template decides whether the model sees them again."""

    ignores_unknown = True

    type: Literal["thinking"]
    thinking: Text


class RedactedThinkingBlock(RequestBody):
    """Thoughts of an earlier turn, encrypted by another server, which are ignored."""

    ignores_unknown = True

    type: Literal["redacted_thinking"]


class ToolUseBlock(RequestBody):
    """A tool call of an earlier turn."""

    ignores_unknown = True

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: JsonObject = {}


class ToolReferenceBlock(RequestBody):
    """A deferred tool that a tool search found; the model sees its definition from here on."""

    ignores_unknown = True

    type: Literal["tool_reference"]
    tool_name: Text


ResultPart = Annotated[TextBlock | ToolReferenceBlock, Field(discriminator="type")]


class ToolResultBlock(RequestBody):
    """The result of a tool call."""

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
"""The allowed types of blocks by role of the message."""


class Message(RequestBody):
    """A message of a conversation; consecutive messages of the same role are one turn."""

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
"""Functions that tool results may refer to, by name."""


def turns(messages: Iterable[Message], definitions: Definitions) -> Iterator[Json]:
    """Yields ``messages`` in the format of chat templates; consecutive messages of the same role become one."""
    for role, group in groupby(messages, key=lambda message: message.role):
        blocks = [block for message in group for block in message.content]
        yield from [_assistant(blocks)] if role == "assistant" else _non_assistant(role, blocks, definitions)


def _non_assistant(role: str, blocks: Iterable[Block], definitions: Definitions) -> Iterator[Json]:
    """Yields a user or system turn in the format of chat templates; each tool result becomes a message."""
    for _, group in groupby(blocks, key=type):
        same = list(group)
        results = [_result(block, definitions) for block in same if isinstance(block, ToolResultBlock)]
        yield from results or [{"role": role, "content": text_of(same)}]


def _result(block: ToolResultBlock, definitions: Definitions) -> Json:
    """Returns a tool message; "Error: " marks a failure, because chat templates have no field for it."""
    start = "Error: " if block.is_error else ""
    content = start + "\n".join(_result_text(part, definitions) for part in block.content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _result_text(part: TextBlock | ToolReferenceBlock, definitions: Definitions) -> str:
    """Returns the text of a part; a found tool is described here, so that the prompt's cached start stays valid."""
    if isinstance(part, TextBlock):
        return part.text
    if definition := definitions.get(part.tool_name):
        return f"Tool that can be called from now on: {json.dumps(definition, ensure_ascii=False)}"
    return f"There is no tool {part.tool_name}"


def referenced(messages: Iterable[Message]) -> set[str]:
    """Returns the names of all tools that tool results refer to."""
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
    """Returns the text blocks of ``blocks``, joined by newlines."""
    return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))
