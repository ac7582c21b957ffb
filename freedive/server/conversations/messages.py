"""Messages: added whole, or growing while an answer arrives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.conversations.records import (
    Conversation,
    Message,
    MessageDraft,
    Status,
    ToolCall,
    now,
    refused,
    searched,
    title_of,
)
from freedive.server.conversations.room import Room
from freedive.server.conversations.rows import MESSAGE_COLUMNS, grow, message_in, new_id, next_document, owned
from freedive.server.conversations.search import add_document, remove_document
from freedive.server.storage.database import Database

End = Literal["complete", "asking", "stopped", "interrupted", "failed"]


CUT = frozenset({"length", "repetition"})
"""Why a complete answer can be continued: the model had not ended it."""


class Messages:
    """The messages of all conversations of a database. Every method raises NotFound for those of another owner."""

    def __init__(self, database: Database, room: Room) -> None:
        self._database, self._room = database, room

    def add(
        self, owner: str, conversation: str, draft: MessageDraft, *, parent: str | None, files: Sequence[str] = ()
    ) -> Message:
        """Stores a message after ``parent`` (None: as a first one), and makes it the conversation's current leaf.

        An edited message or another answer is one more message with the same parent. With the status ``running``, the
        message is an answer that :meth:`append` extends and :meth:`finish` ends. Raises UserError if roles would not
        alternate or there is no room, and NotFound for a parent or file that is not in the conversation.
        """
        with self._database.writing() as sql:
            number, before = owned(sql, owner, conversation)
            _check_roles(draft.role, message_in(sql, number, parent).role if parent is not None else None)
            for file in files:
                if not sql.execute("SELECT 1 FROM file WHERE id = ? AND conversation = ?", (file, number)).fetchone():
                    raise NotFound(f"The conversation has no file {file!r}", "Upload it first", param="files")
            message = insert_message(sql, number, draft, parent, list(files))
            sql.execute("UPDATE conversation SET leaf = ?, updated = ? WHERE number = ?", (message.id, now(), number))
            if draft.role == "user" and parent is None and not (before.named or before.title):
                _entitle(sql, number, before, title_of(draft.content))
            self._room.check(sql, owner, [number])
        return message

    def append(self, owner: str, conversation: str, id: str, *, content: str = "", reasoning: str = "") -> None:
        """Adds text at the end of a running message. Takes time in proportion to the text alone.

        What was added is stored when the call returns, and survives the end of the process at any moment. Raises
        NotFound if the message does not run (any more).
        """
        with self._database.writing() as sql:
            _running(sql, owner, conversation, id)
            row = (id, content, reasoning)
            sql.execute("INSERT INTO piece (message, content, reasoning) VALUES (?, ?, ?)", row)

    def resume(self, owner: str, conversation: str, id: str) -> Message:
        """Makes an answer that ended early run again, with the text that it has. Raises UserError for any other one."""
        with self._database.writing() as sql:
            number, _ = owned(sql, owner, conversation)
            message = message_in(sql, number, id)
            if message.role != "assistant" or message.status in ("running", "asking"):
                raise UserError("Only an answer that has ended can be continued", "Wait for its end", param="continue")
            if message.status == "complete" and message.finish not in CUT:
                raise UserError("The answer is complete", "Ask for another one", param="continue")
            _change(sql, number, message, "running", refused(message.calls))
            return message_in(sql, number, id)

    def add_calls(self, owner: str, conversation: str, id: str, calls: list[ToolCall]) -> None:
        """Stores further calls of a running message. Raises NotFound if it does not run (any more)."""
        with self._database.writing() as sql:
            number = _running(sql, owner, conversation, id)
            all = [*message_in(sql, number, id).calls, *calls]
            grow(sql, number, len(json.dumps(calls)))
            sql.execute("UPDATE message SET calls = ? WHERE id = ?", (json.dumps(all), id))

    def decide(
        self, owner: str, conversation: str, id: str, calls: list[ToolCall], status: Status, *, allow: str = ""
    ) -> Message:
        """Stores what became of calls about which the user was asked, and how the answer goes on.

        ``allow`` is a tool about which the user is not asked any more. Raises UserError if one of the calls that are
        decided in ``calls`` was decided before, or if the message does not ask.
        """
        with self._database.writing() as sql:
            number, before = owned(sql, owner, conversation)
            message = message_in(sql, number, id)
            undecided = {call["id"] for call in message.calls if call["state"] == "asked"}
            unasked = {call["id"] for call in calls if call["state"] == "asked"}
            if message.status != "asking" or not unasked < undecided:
                raise answered()
            _change(sql, number, message, status, calls)
            if allow:
                allowed = json.dumps(sorted({*before.allowed, allow}))
                sql.execute("UPDATE conversation SET allowed = ? WHERE number = ?", (allowed, number))
            return message_in(sql, number, id)

    def finish(
        self,
        owner: str,
        conversation: str,
        id: str,
        status: End,
        *,
        error: str = "",
        finish: str = "",
        usage: Json | None = None,
        timings: Json | None = None,
    ) -> Message:
        """Ends a running message and makes it searchable. Raises NotFound if it does not run."""
        with self._database.writing() as sql:
            number = _running(sql, owner, conversation, id)
            message = end_message(sql, id, status)
            more = {"error": error, "usage": usage or {}, "timings": timings or {}}
            row = (error, finish, json.dumps(more["usage"]), json.dumps(more["timings"]), id)
            sql.execute("UPDATE message SET error = ?, finish = ?, usage = ?, timings = ? WHERE id = ?", row)
            sql.execute("UPDATE conversation SET updated = ? WHERE number = ?", (now(), number))
        return replace(message, error=error, finish=finish, usage=usage or {}, timings=timings or {})


def insert_message(
    sql: sqlite3.Connection, number: int, draft: MessageDraft, parent: str | None, files: list[str]
) -> Message:
    """Stores a message of the conversation with this number, and makes it searchable if it does not run."""
    message = Message(
        id=new_id("msg"),
        parent=parent,
        role=draft.role,
        content=draft.content,
        reasoning=draft.reasoning,
        files=files,
        model=draft.model,
        status=draft.status,
        error=draft.error,
        finish=draft.finish,
        usage=draft.usage,
        timings=draft.timings,
        created=draft.created,
        calls=draft.calls,
    )
    values = [getattr(message, name) for name in MESSAGE_COLUMNS.split(", ")]
    row = [json.dumps(value) if isinstance(value, dict | list) else value for value in values]
    document = next_document(sql, number, sum(len(str(value).encode()) for value in row))
    query = f"INSERT INTO message (conversation, document, {MESSAGE_COLUMNS}) VALUES (?, ?{', ?' * len(row)})"
    sql.execute(query, (number, document, *row))
    if message.status != "running":
        add_document(sql, number, document, searched(message.content, message.calls))
    return message


def answered() -> UserError:
    """Returns the error for a question that is not asked, or not any more."""
    return UserError("This question has been answered already", "Read the conversation again", param="call")


def _change(sql: sqlite3.Connection, number: int, message: Message, status: Status, calls: list[ToolCall]) -> None:
    """Gives a message that does not run another status and other calls; it can be searched unless it runs now."""
    (document,) = sql.execute("SELECT document FROM message WHERE id = ?", (message.id,)).fetchone()
    remove_document(sql, number, document, searched(message.content, message.calls))
    query = "UPDATE message SET status = ?, calls = ?, error = '', finish = '' WHERE id = ?"
    sql.execute(query, (status, json.dumps(calls), message.id))
    grow(sql, number, len(json.dumps(calls)) - len(json.dumps(message.calls)))
    if status != "running":
        add_document(sql, number, document, searched(message.content, calls))


def pieces(sql: sqlite3.Connection, message: Message) -> Message:
    """Returns a message with what was appended to it while it runs."""
    if message.status != "running":
        return message
    query = "SELECT content, reasoning FROM piece WHERE message = ? ORDER BY number"
    rows = sql.execute(query, (message.id,)).fetchall()
    content, reasoning = ("".join(texts) for texts in zip(*rows, strict=True)) if rows else ("", "")
    return replace(message, content=message.content + content, reasoning=message.reasoning + reasoning)


def end_message(sql: sqlite3.Connection, id: str, status: End) -> Message:
    """Gives a running message the text that was appended to it and its last status, and makes it searchable."""
    query = "SELECT conversation, document FROM message WHERE id = ?"
    number, document = sql.execute(query, (id,)).fetchone()
    before = message_in(sql, number, id)
    message = replace(pieces(sql, before), status=status)
    grow(sql, number, _num_bytes(message) - _num_bytes(before))
    row = (message.content, message.reasoning, status, id)
    sql.execute("UPDATE message SET content = ?, reasoning = ?, status = ? WHERE id = ?", row)
    sql.execute("DELETE FROM piece WHERE message = ?", (id,))
    add_document(sql, number, document, searched(message.content, message.calls))
    return message


def _num_bytes(message: Message) -> int:
    return len(message.content.encode()) + len(message.reasoning.encode())


def interrupt_running(sql: sqlite3.Connection) -> None:
    """Ends all running messages as interrupted, with what had arrived."""
    for (id,) in sql.execute("SELECT id FROM message WHERE status = 'running'").fetchall():
        end_message(sql, id, "interrupted")


def _running(sql: sqlite3.Connection, owner: str, conversation: str, id: str) -> int:
    """Returns the number of the conversation, which may be deleted, of a running message. Raises NotFound."""
    query = """
        SELECT number FROM message JOIN conversation ON number = conversation
        WHERE message.id = ? AND conversation.id = ? AND owner = ? AND status = 'running'
    """
    row = sql.execute(query, (id, conversation, owner)).fetchone()
    if not row:
        raise NotFound(f"The conversation has no running message {id!r}", "Read the conversation again")
    return int(row[0])


def _check_roles(role: str, before: str | None) -> None:
    if (role == "assistant") != (before == "user"):
        place = f"follow the message of the {before}" if before else "be the first message"
        what = f"A message of the {role} cannot {place}"
        raise UserError(what, "Send the parent whose next message it is", param="parent")


def _entitle(sql: sqlite3.Connection, number: int, before: Conversation, title: str) -> None:
    """Gives a conversation a title that the user did not choose."""
    remove_document(sql, number, 0, before.title)
    add_document(sql, number, 0, title)
    sql.execute("UPDATE conversation SET title = ? WHERE number = ?", (title, number))
