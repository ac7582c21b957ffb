"""Sources of training records: the user's files, or synthetic stories and tasks."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from freedive.errors import UserError
from freedive.train.data import conversations, stories, tasks
from freedive.train.data.data_files import values
from freedive.train.data.pairs import chat_of
from freedive.train.data.stories import Message, Record
from freedive.train.finetune.config import Texts
from freedive.train.run.config import Data

ROLES = ("system", "user", "assistant")
KNOWN = frozenset(
    ("role", "content", "weight", "id", "message_id", "uuid", "timestamp", "created_at", "lang", "language", "model")
)
"""Keys of a message that are read, or that only describe its origin."""

NOTHING: tuple[object, ...] = (None, "", [], {})
BESIDE: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("system", "tools", "functions", "documents", "images", "audio", "videos"), NOTHING),
    "chat_template_kwargs": NOTHING,
    "weight": (None, 1),
}
"""Keys of a record that would change what is to be learned, with the values that change nothing.

All other keys are ignored as columns of a table.
"""

_PARTS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")


def documents(data: Data) -> Iterator[Record]:
    """Yields the records of pretraining: texts of the user's files; if there are none, synthetic ones.

    Conversations come first, here and in :func:`chats`, because the tokenizer is trained on the first records.
    """
    made_up = chain(
        conversations.chats(data.num_conversations, data.seed + 1),
        stories.documents(data.num_stories, data.seed),
        tasks.solutions(data.num_solutions, data.seed),
    )
    return _or_else((record for record in read(data.text) if "text" in record), made_up)


def chats(data: Data) -> Iterator[Record]:
    """Yields the records of fine-tuning: messages of the user's files; if there are none, synthetic ones."""
    made_up = chain(
        conversations.chats(data.num_conversations, data.seed),
        stories.chats(data.num_chats, data.seed),
        tasks.chats(data.num_tasks, data.seed),
    )
    return _or_else((record for record in read(data.text) if "messages" in record), made_up)


def _or_else(found: Iterator[Record], made_up: Iterator[Record]) -> Iterator[Record]:
    first = next(found, None)
    return made_up if first is None else chain([first], found)


def is_held_out(record: Record, data: Data | Texts) -> bool:
    """Returns whether a record is for evaluation.

    A hash of its content decides, so that equal records stay together.
    """
    return zlib.crc32(json.dumps(record, sort_keys=True).encode()) % _PARTS < data.held_out * _PARTS


def parted(records: Iterable[Record], data: Data | Texts) -> dict[bool, list[Record]]:
    """Splits records into those for training (False) and for evaluation (True); if none is for training, all are."""
    parts: dict[bool, list[Record]] = {False: [], True: []}
    for record in records:
        parts[is_held_out(record, data)].append(record)
    return parts if parts[False] else {False: parts[True], True: []}


def characters(record: Record) -> str:
    """Returns all text of a record."""
    return record["text"] if "text" in record else "".join(message["content"] for message in record["messages"])


def read(paths: Sequence[str]) -> Iterator[Record]:
    """Yields the records of files and folders (JSON lines, Parquet rows, whole text files), without empty ones.

    Raises UserError for a missing file, for a value that is no record, and if there is no record at all.
    """
    found = not paths
    for value, place in values(paths, "data.text"):
        record = _record(value, place)
        text = characters(record)
        if not text.isascii() and _SURROGATE.search(text):
            raise UserError(f"{place} holds half of a surrogate pair", "Correct or remove it: it is no character")
        if text.strip():
            found = True
            yield record
    if not found:
        raise UserError(f"{', '.join(paths)} holds no text", "Name other files with data.text")


def _record(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise _no_record(place)
    for key, harmless in BESIDE.items():
        if value.get(key) not in harmless:
            raise _unknown(place, key)
    match value:
        case {"text": str(), "messages": [_, *_]}:
            raise UserError(f"{place} has both a text and messages", "Leave out what is not to be learned")
        case {"text": str()}:
            return {"text": value["text"]}
        case {"messages": [_, *_]}:
            return {"messages": [_message(message, place) for message in value["messages"]]}
    if "text" not in value and "messages" not in value and (chat := chat_of(value, place)):
        return {"messages": chat}
    raise _no_record(place)


def _message(value: Any, place: str) -> Message:
    """Returns role and content of a message, and its weight if that is 0."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or value.get("role") not in ROLES:
        raise _no_record(place)
    if unknown := [key for key in value if value[key] not in NOTHING and key not in KNOWN]:
        raise _unknown(place, f"messages.{unknown[0]}")
    message = {"role": value["role"], "content": value["content"]}
    weight = value.get("weight", 1)
    if weight not in (0, 1, None):
        raise UserError(f"{place} has a message of the weight {weight!r}", "Write 0, or 1 for what is to be learned")
    return {**message, "weight": 0} if weight == 0 and weight is not None else message


def _no_record(place: str) -> UserError:
    form = 'Write {"text": ...}, {"prompt": ..., "completion": ...} or {"messages": [{"role": ..., "content": ...}]}'
    return UserError(f"{place} is no record", f"{form}, with text as content, of {', '.join(ROLES)}")


def _unknown(place: str, key: str) -> UserError:
    remedy = "Leave it out; thoughts and calls are learned as part of the content, as the model is to write them"
    return UserError(f"{place} has {key}, which training does not know", remedy)
