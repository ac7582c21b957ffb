"""Where text comes from: files of the user's, or stories that are made up."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from freedive.errors import UserError
from freedive.train import conversations, stories, tasks
from freedive.train.config import Data
from freedive.train.tuning import Texts

Record = dict[str, Any]
"""{"text": ...} or {"messages": [{"role": ..., "content": ...}, ...]}."""

SUFFIXES = (".jsonl", ".parquet", ".txt", ".md")
_PARTS = 10_000


def documents(data: Data) -> Iterator[Record]:
    """What pretraining reads: the files' texts; where they hold none, stories and solutions."""
    made_up = chain(stories.documents(data.num_stories, data.seed), tasks.solutions(data.num_solutions, data.seed))
    return _or_else((record for record in read(data.text) if "text" in record), made_up)


def chats(data: Data) -> Iterator[Record]:
    """What fine-tuning reads: the files' messages; where they hold none, chats about stories, tasks and all of it."""
    made_up = chain(
        stories.chats(data.num_chats, data.seed),
        tasks.chats(data.num_tasks, data.seed),
        conversations.chats(data.num_conversations, data.seed),
    )
    return _or_else((record for record in read(data.text) if "messages" in record), made_up)


def _or_else(found: Iterator[Record], made_up: Iterator[Record]) -> Iterator[Record]:
    first = next(found, None)
    return made_up if first is None else chain([first], found)


def is_held_out(record: Record, data: Data | Texts) -> bool:
    """Whether a record is for evaluation: by its content, so that equal ones stay together."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode()) % _PARTS < data.held_out * _PARTS


def characters(record: Record) -> str:
    """All text of a record."""
    return record["text"] if "text" in record else "".join(message["content"] for message in record["messages"])


def read(paths: Sequence[str]) -> Iterator[Record]:
    """The records of files and folders: lines of JSONL, rows of Parquet, whole files of plain text.

    Raises UserError for what is not there or is no record.
    """
    return (_record(value, place) for value, place in values(paths, "data.text"))


def values(paths: Sequence[str], setting: str) -> Iterator[tuple[Any, str]]:
    """What is in the files and folders that ``setting`` names, of any form, and where each value stands."""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist", f"Name files or folders with {setting}")
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no {', '.join(SUFFIXES)}", f"Name another folder with {setting}")
        for file in files:
            yield from _read_file(file)


def _read_file(path: Path) -> Iterator[tuple[Any, str]]:
    match path.suffix:
        case ".jsonl":
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _parsed(line, path, number), f"{path}, line {number}"
        case ".parquet":
            yield from ((row, f"{path}, row {number}") for number, row in enumerate(_rows(path)))
        case _:
            yield {"text": path.read_text("utf-8")}, str(path)


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON: {error}", "Mend or remove the line") from None


def _rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow", "Install it: pip install pyarrow") from None
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _record(value: Any, place: str) -> Record:
    match value:
        case {"text": str()}:
            return {"text": value["text"]}
        case {"messages": [_, *_]} if all(_is_message(message) for message in value["messages"]):
            return {"messages": [{key: message[key] for key in ("role", "content")} for message in value["messages"]]}
    raise UserError(f"{place} is no record", 'Write {"text": ...} or {"messages": [{"role": ..., "content": ...}]}')


def _is_message(value: Any) -> bool:
    roles = ("system", "user", "assistant")
    return isinstance(value, dict) and value.get("role") in roles and isinstance(value.get("content"), str)
