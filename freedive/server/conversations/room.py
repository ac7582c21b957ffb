"""How much may be stored, and what gives way to what is new."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from freedive.errors import UserError
from freedive.server.conversations.records import searched
from freedive.server.conversations.search import remove_document
from freedive.server.storage.database import num_bytes

MAX_OWNED = 2 << 30
"""Bytes of all conversations of one owner, by default."""
MAX_CONVERSATION = 128 << 20
"""Bytes of one conversation, which is read into memory as a whole."""


@dataclass(frozen=True)
class Room:
    """The limits of a store: ``max_owned`` bytes for each owner, and ``max_bytes`` for the whole if it is not None."""

    max_owned: int
    max_bytes: int | None = None

    def check(self, sql: sqlite3.Connection, owner: str, changed: Collection[int]) -> None:
        """Makes room for the conversations of ``owner`` with the numbers ``changed``, which a transaction has stored.

        Deleted conversations of the owner give way. Beyond ``max_bytes``, so do those of all owners that were continued
        longest ago. Raises UserError if that is not enough; the transaction must then be undone.
        """
        for number in changed:
            (size,) = sql.execute("SELECT num_bytes FROM conversation WHERE number = ?", (number,)).fetchone()
            if size > MAX_CONVERSATION:
                what = f"The conversation would have more than {MAX_CONVERSATION >> 20} MiB"
                raise UserError(what, "Begin a new one")
        self._check_owned(sql, owner, changed)
        self._check_all(sql, changed)

    def _check_owned(self, sql: sqlite3.Connection, owner: str, changed: Collection[int]) -> None:
        def excess() -> int:
            (owned,) = sql.execute("SELECT sum(num_bytes) FROM conversation WHERE owner = ?", (owner,)).fetchone()
            return int(owned or 0) - self.max_owned

        if excess() <= 0:
            return
        query = "SELECT number FROM conversation WHERE owner = ? AND deleted IS NOT NULL ORDER BY deleted"
        for (number,) in sql.execute(query, (owner,)).fetchall():
            if number not in changed:
                remove(sql, number)
            if excess() <= 0:
                return
        what = f"Your conversations would have more than {self.max_owned / (1 << 20):g} MiB, which is the limit"
        raise UserError(what, "Delete some of them")

    def _check_all(self, sql: sqlite3.Connection, changed: Collection[int]) -> None:
        while self.max_bytes is not None and num_bytes(sql) > self.max_bytes:
            rows = sql.execute("SELECT number FROM conversation ORDER BY updated, number").fetchall()
            oldest = [number for (number,) in rows if number not in changed]
            if not oldest:
                raise UserError("Temporary conversations may not be that large", "Use one that is kept")
            for number in oldest[: 1 + len(oldest) // 4]:
                remove(sql, number)
            sql.execute("INSERT INTO word (word) VALUES ('optimize')")  # else the index keeps what was removed for long


def remove(sql: sqlite3.Connection, number: int) -> None:
    """Removes a conversation with all that belongs to it, also from the index."""
    for document, text, calls in _documents(sql, number):
        remove_document(sql, number, document, searched(text, json.loads(calls)))
    sql.execute("DELETE FROM conversation WHERE number = ?", (number,))


def _documents(sql: sqlite3.Connection, number: int) -> Iterator[tuple[int, str, str]]:
    """Yields the number, the text and the calls of each document of a conversation that is in the index."""
    query = """
        SELECT 0, title, '[]' FROM conversation WHERE number = ?1
        UNION ALL SELECT document, content, calls FROM message WHERE conversation = ?1 AND status != 'running'
        UNION ALL SELECT document, name, '[]' FROM file WHERE conversation = ?1
    """
    yield from sql.execute(query, (number,)).fetchall()
