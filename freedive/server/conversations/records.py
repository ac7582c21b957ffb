"""What is stored: conversations, messages and files, and drafts of them that have no ids yet.

All times are milliseconds since 1970.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from freedive.errors import NotFound
from freedive.json_object import Json
from freedive.server.request_body import JsonObject, Text

Role = Literal["user", "assistant"]
Status = Literal["complete", "running", "asking", "stopped", "interrupted", "failed"]
"""``asking``: the user is asked about a call. ``stopped`` by the user; ``interrupted`` by the end of the server;
``failed`` with an ``error``."""

MAX_TITLE = 300
"""Characters of a title, of a folder's name, and of a file's name."""
MAX_TEXT = 16 << 20
"""Characters of one message or of one file."""
MAX_DOCUMENTS = 1 << 20
"""The most messages and files of one conversation together."""

Title = Annotated[Text, Field(max_length=MAX_TITLE)]
LongText = Annotated[Text, Field(max_length=MAX_TEXT)]
Label = Annotated[Text, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Time = Count
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def now() -> int:
    """Returns the time in milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation without its messages. ``named``: the user chose the title; ``deleted``: when, if it was.

    ``leaf`` is the message at which the current path ends. ``settings`` holds what its answers are asked with.
    ``allowed`` are tools that the user need not be asked about: only an answer to such a question adds one.
    """

    id: str
    title: str
    named: bool
    folder: str
    pinned: bool
    created: int
    updated: int
    deleted: int | None
    settings: Json
    leaf: str | None
    allowed: list[str]


class ToolCall(TypedDict):
    """A call of a tool in an answer: in its round, counted from 0, after so many characters of text and of thoughts.

    ``result`` is what the model is told; while ``state`` is ``asked``, nothing was run and there is none.
    """

    id: Label
    name: Label
    arguments: LongText
    state: Literal["asked", "done", "refused"]
    result: LongText
    round: Count
    text_end: Count
    thoughts_end: Count


REFUSED = "The user refused this call. Go on without it."
"""What the model is told instead of a result."""


def refused(calls: list[ToolCall]) -> list[ToolCall]:
    """Returns ``calls`` with those refused about which the user would still be asked."""
    return [{**call, "state": "refused", "result": REFUSED} if call["state"] == "asked" else call for call in calls]


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message of a tree: ``parent`` is the one before it. Messages with the same parent are alternatives.

    ``files`` are ids of files of the conversation. ``finish`` is why the model ended an answer: stop, length,
    repetition or tool_calls; "" if it did not end it. ``calls`` are the calls of tools in an answer, in order.
    """

    id: str
    parent: str | None
    role: Role
    content: str
    reasoning: str
    files: list[str]
    model: str
    status: Status
    error: str
    finish: str
    usage: Json
    timings: Json
    created: int
    calls: list[ToolCall]


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a conversation, without its text. ``num_tokens`` is None until it was counted."""

    id: str
    name: str
    media_type: str
    num_bytes: int
    num_tokens: int | None
    created: int


@dataclass(frozen=True)
class Tree:
    """A conversation with all its messages and files, oldest first."""

    conversation: Conversation
    messages: list[Message]
    files: list[File]

    def path(self, last: str | None = None) -> list[Message]:
        """Returns the messages from the first one to ``last``, by default the current leaf. Raises NotFound."""
        by_id = {message.id: message for message in self.messages}
        path, at = [], self.conversation.leaf if last is None else last
        if at is not None and at not in by_id:
            raise NotFound(f"The conversation has no message {at!r}", "Read the conversation again", param="message")
        while at is not None:
            path.append(by_id[at])
            at = by_id[at].parent
        return path[::-1]


@dataclass(kw_only=True)
class FileDraft:
    """A file to store."""

    name: Title
    text: LongText
    media_type: Label = "text/plain"
    num_tokens: Count | None = None
    created: Time = field(default_factory=now)


@dataclass(kw_only=True)
class MessageDraft:
    """A message to store. In a :class:`ConversationDraft`, ``parent`` and ``files`` are positions in its lists."""

    role: Role
    content: LongText
    parent: int | None = None
    reasoning: LongText = ""
    files: Annotated[list[int], Field(max_length=1000)] = field(default_factory=list)
    model: Label = ""
    status: Status = "complete"
    error: Annotated[Text, Field(max_length=10_000)] = ""
    finish: Label = ""
    usage: Annotated[dict[Label, Count], Field(max_length=100)] = field(default_factory=dict)
    timings: Annotated[dict[Label, Duration], Field(max_length=100)] = field(default_factory=dict)
    created: Time = field(default_factory=now)
    calls: Annotated[list[ToolCall], Field(max_length=1000)] = field(default_factory=list)


@dataclass(kw_only=True)
class ConversationDraft:
    """A whole conversation to store. A message stands after its parent; ``leaf`` is a position in ``messages``."""

    title: Title = ""
    named: bool = False
    folder: Title = ""
    pinned: bool = False
    created: Time = field(default_factory=now)
    updated: Time = field(default_factory=now)
    settings: JsonObject = field(default_factory=dict)
    messages: Annotated[list[MessageDraft], Field(max_length=MAX_DOCUMENTS >> 1)] = field(default_factory=list)
    leaf: int | None = None
    files: Annotated[list[FileDraft], Field(max_length=MAX_DOCUMENTS >> 2)] = field(default_factory=list)


def searched(content: str, calls: list[ToolCall]) -> str:
    """Returns the text by which a message is found: its own, then its calls with their results."""
    return "\n".join([content, *(f"{call['name']} {call['arguments']} {call['result']}" for call in calls)])


def title_of(content: str) -> str:
    """Returns the title of a conversation that begins with ``content``: its first line, shortened."""
    line = next((line.strip() for line in content[:1000].splitlines() if line.strip()), "")
    return line if len(line) <= 60 else line[:60].rstrip() + "…"
