"""Full-text search over titles, messages and names of files, with snippets."""

from __future__ import annotations

import itertools
import json
import math
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freedive.server.conversations.records import Conversation, now, searched
from freedive.server.conversations.rows import COLUMNS, conversation_of
from freedive.server.conversations.schema import DOCUMENT_BITS
from freedive.server.conversations.words import Term, indexed, terms, without_accents

AROUND = 60
"""Characters before the first match of a snippet; after it there may be twice as many."""
CANDIDATES = 8
"""The newest documents of a conversation among which the snippet is chosen."""
SHOWN = 1 << 16
"""Characters of a message that are searched for the snippet."""
DAY_MS = 86_400_000
FRESH_DAYS = 14
TITLE_POINTS, FRESH_POINTS = 4.0, 3.0
"""What a search term in the title, and a conversation of today, are worth beside the logarithm of the matches."""

_MASK = (1 << DOCUMENT_BITS) - 1
_IN_CONVERSATIONS = f"""
SELECT rowid >> {DOCUMENT_BITS} AS conversation, count(*), min(rowid) & {_MASK} FROM word
WHERE word MATCH ? GROUP BY conversation
"""
_IN_ONE = "SELECT rowid FROM word WHERE word MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC LIMIT ?"
_CONTENT = f"""
SELECT id, NULL, substr(content, 1, {SHOWN}), calls FROM message WHERE conversation = ?1 AND document = ?2
UNION ALL SELECT NULL, id, name, '[]' FROM file WHERE conversation = ?1 AND document = ?2
"""


@dataclass(frozen=True)
class Snippet:
    """A part of a title (neither id), of a message or of a file's name.

    ``marks`` are the matches as (start, end) in ``text``, in UTF-16 units as JavaScript counts them.
    """

    message: str | None
    file: str | None
    text: str
    marks: list[tuple[int, int]]


@dataclass(frozen=True)
class Hit:
    """A conversation that has all terms of a search, with the place that has the most of them."""

    conversation: Conversation
    snippet: Snippet


def add_document(sql: sqlite3.Connection, conversation: int, document: int, text: str) -> None:
    """Adds a text to the index."""
    row = (conversation << DOCUMENT_BITS | document, indexed(text))
    sql.execute("INSERT INTO word (rowid, text) VALUES (?, ?)", row)


def remove_document(sql: sqlite3.Connection, conversation: int, document: int, text: str) -> None:
    """Removes a text, which must be the one that was added, from the index."""
    row = (conversation << DOCUMENT_BITS | document, indexed(text))
    sql.execute("INSERT INTO word (word, rowid, text) VALUES ('delete', ?, ?)", row)


def search(sql: sqlite3.Connection, owner: str, query: str, limit: int) -> list[Hit]:
    """Returns the conversations of ``owner`` that have all words of ``query``, best first, at most ``limit``.

    The words may stand in different messages. A hit in the title counts most, then how often the rarest word occurs,
    and how lately the conversation was continued.
    """
    wanted = terms(query)
    if not wanted:
        return []
    found = [_matches(sql, term) for term in wanted]
    in_all = set.intersection(*map(set, found))
    rows = _owned(sql, owner, in_all)
    today = now()

    def score(row: tuple[int, int]) -> tuple[float, int]:
        number, updated = row
        in_title = sum(first == 0 for _, first in (each[number] for each in found)) / len(found)
        count = min(each[number][0] for each in found)
        fresh = FRESH_POINTS / (1 + max(0, today - updated) / (FRESH_DAYS * DAY_MS))
        return TITLE_POINTS * in_title + math.log2(1 + count) + fresh, updated

    best = sorted(rows, key=score, reverse=True)[:limit]
    return [_hit(sql, number, wanted) for number, _ in best]


def _matches(sql: sqlite3.Connection, term: Term) -> dict[int, tuple[int, int]]:
    """Returns (number of matching documents, the first of them) by conversation, of all owners."""
    return {number: (count, first) for number, count, first in sql.execute(_IN_CONVERSATIONS, (term.match,))}


def _owned(sql: sqlite3.Connection, owner: str, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Returns (number, updated) of those of ``numbers`` that belong to ``owner`` and are not deleted."""
    query = "SELECT number, updated FROM conversation WHERE owner = ? AND deleted IS NULL"
    wanted = set(numbers)
    return [row for row in sql.execute(query, (owner,)) if row[0] in wanted] if wanted else []


def _hit(sql: sqlite3.Connection, number: int, wanted: Sequence[Term]) -> Hit:
    row = sql.execute(f"SELECT {COLUMNS} FROM conversation WHERE number = ?", (number,)).fetchone()
    conversation = conversation_of(row)
    first = number << DOCUMENT_BITS
    any_term = " OR ".join(term.match for term in wanted)
    snippets = []
    for (rowid,) in sql.execute(_IN_ONE, (any_term, first, first | _MASK, CANDIDATES)).fetchall():
        document = rowid & _MASK
        title = (None, None, conversation.title, "[]")
        message, file, text, calls = sql.execute(_CONTENT, (number, document)).fetchone() if document else title
        snippets.append(snippet(message, file, searched(text, json.loads(calls))[:SHOWN], wanted))
        if message and snippets[-1][0] == len(wanted):
            break
    return Hit(conversation, max(snippets, key=lambda each: (each[0], each[1].message is not None))[1])


def snippet(message: str | None, file: str | None, text: str, wanted: Sequence[Term]) -> tuple[int, Snippet]:
    """Returns how many of the terms ``text`` has, and the part of it around the first match."""
    plain = without_accents(text)
    spans = {term: [match.span() for match in _first(term, plain)] for term in wanted}
    starts = sorted(start for found in spans.values() for start, _ in found)
    begin = max(0, (starts[0] if starts else 0) - AROUND)
    end = min(len(text), begin + 3 * AROUND)
    inside = sorted({span for found in spans.values() for span in found if begin <= span[0] and span[1] <= end})
    shown = text[begin:end]
    marks = [(_utf16(shown, start - begin), _utf16(shown, stop - begin)) for start, stop in _disjoint(inside)]
    return sum(map(bool, spans.values())), Snippet(message, file, shown, marks)


def _first(term: Term, text: str) -> list[re.Match[str]]:
    pattern = Term(tuple(map(without_accents, term.parts)), term.is_prefix).pattern
    return list(itertools.islice(pattern.finditer(text), 20))


def _disjoint(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns sorted spans with those joined that overlap or touch."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _utf16(text: str, index: int) -> int:
    """Returns the number of UTF-16 units before the character ``index``."""
    return index + sum(character > "\uffff" for character in text[:index])
