"""Conversations as JSON and as Markdown.

The JSON of freedive is a list of objects, each a whole conversation: ``{"freedive": 1}`` with the fields of
:class:`ConversationDraft`. ``messages`` and ``files`` are lists; a message names its ``parent`` (null for a first one)
and its ``files``, and a conversation its ``leaf``, by their positions in these lists. A parent stands before its
children. Times are milliseconds since 1970. Only ids are not part of it, so reading and writing it again gives the
same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from textwrap import indent

from pydantic import TypeAdapter, ValidationError

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.api_errors import explain
from freedive.server.conversations.fields import Settings
from freedive.server.conversations.records import ConversationDraft, MessageDraft, ToolCall

MARK = "freedive"
VERSION = 1


def to_json(draft: ConversationDraft) -> str:
    """Returns a conversation as one JSON object."""
    return json.dumps({MARK: VERSION, **vars(draft)}, default=vars, ensure_ascii=False)


def from_json(value: Json) -> ConversationDraft:
    """Returns the conversation of an object that :func:`to_json` wrote. Raises UserError if it is damaged."""
    if value[MARK] != VERSION:
        raise UserError(f"It has another version of the format than {VERSION}", "Update freedive")
    fields = {name: each for name, each in value.items() if name != MARK}
    with _explained(fields):
        draft = _adapter().validate_python(fields)
    with _explained(draft.settings):
        Settings.model_validate(draft.settings)
    for index, message in enumerate(draft.messages):
        _check(message.parent is None or 0 <= message.parent < index, f"the parent of message {index}")
        _check(all(0 <= file < len(draft.files) for file in message.files), f"a file of message {index}")
        asks = message.role == "assistant" and any(call["state"] == "asked" for call in message.calls)
        if message.status == "running" or (message.status == "asking" and not asks):
            message.status = "interrupted"
    _check(draft.leaf is None or 0 <= draft.leaf < len(draft.messages), "the leaf")
    return draft


@contextmanager
def _explained(value: Json) -> Iterator[None]:
    """Reports what is wrong with the fields of ``value`` as UserError."""
    try:
        yield
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise UserError(f"The conversation is damaged: {explain(errors, value)[0]}", "Export it again") from None


@cache
def _adapter() -> TypeAdapter[ConversationDraft]:
    return TypeAdapter(ConversationDraft)


def _check(is_valid: bool, thing: str) -> None:
    if not is_valid:
        raise UserError(f"The conversation is damaged: {thing} does not exist", "Export it again")


NAMES = {"user": "User", "assistant": "Assistant"}


def to_markdown(draft: ConversationDraft) -> str:
    """Returns the current path of a conversation as Markdown, thoughts as quotations, files by their names."""
    title = " ".join(draft.title.split()) or "Conversation"
    return "\n\n".join([f"# {title}", *(_section(each, draft) for each in current_path(draft))]) + "\n"


def current_path(draft: ConversationDraft) -> list[MessageDraft]:
    """Returns the messages from the first one to the leaf."""
    path, at = [], draft.leaf
    while at is not None:
        path.append(draft.messages[at])
        at = draft.messages[at].parent
    return path[::-1]


def _section(message: MessageDraft, draft: ConversationDraft) -> str:
    heading = f"## {NAMES[message.role]}" + (f" ({' '.join(message.model.split())})" if message.model else "")
    files = ", ".join(" ".join(draft.files[index].name.split()) for index in message.files)
    thoughts = "\n".join(f"> {line}".rstrip() for line in message.reasoning.splitlines())
    error = f"({message.status}{': ' * bool(message.error)}{message.error})" if message.status != "complete" else ""
    parts = [heading, files and f"Files: {files}", thoughts, *map(_call, message.calls), message.content, error]
    return "\n\n".join(filter(None, parts))


def _call(call: ToolCall) -> str:
    """Returns a call and its result as an indented block, in which nothing is Markdown."""
    name = " ".join(call["name"].split())
    return indent(f"{name} {call['arguments']} ({call['state']})\n{call['result']}".rstrip(), "    ", lambda line: True)
