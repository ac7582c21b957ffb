"""Files that hold conversations: JSON or a zip archive, of freedive, ChatGPT, DeepSeek or Open WebUI.

Every format is a list of conversations, and each of these shows by its keys whose it is.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.conversations import archive
from freedive.server.conversations.imports import chatgpt, deepseek, open_webui
from freedive.server.conversations.records import ConversationDraft, title_of

MAX_BYTES = 128 << 20
"""Bytes of JSON in a file, uncompressed."""
MAX_VALUES = 1 << 22
"""The most commas and opening brackets in it, which bounds the memory of what is parsed."""
MAX_CONVERSATIONS = 50_000

_MEMBER = re.compile(r"(?:^|/)conversations[-_\d]*\.json$")
_BLANK = re.compile(r"[ \t\r\n]*")
_REMEDY = "Choose the export file of freedive, ChatGPT, DeepSeek or Open WebUI: conversations.json, or the zip with it"


def read_import(data: bytes) -> list[ConversationDraft]:
    """Returns all conversations of a file. Raises UserError that says what is wrong with it."""
    texts = _unzipped(data) if data.startswith(b"PK\x03\x04") else [data]
    drafts: list[ConversationDraft] = []
    for text in texts:
        for index, value in enumerate(_elements(_checked(text))):
            if len(drafts) >= MAX_CONVERSATIONS:
                raise UserError(f"The file has more than {MAX_CONVERSATIONS} conversations", "Split it")
            try:
                drafts.append(_draft(value))
            except UserError as error:
                raise UserError(f"Conversation {index + 1}: {error.what}", error.remedy) from error
    if not drafts:
        raise UserError("The file has no conversations", _REMEDY)
    return drafts


def _draft(value: Any) -> ConversationDraft:
    if not isinstance(value, dict):
        raise UserError("It is not an object", _REMEDY)
    read: Callable[[Json], ConversationDraft]
    if archive.MARK in value:
        read = archive.from_json
    elif isinstance(value.get("mapping"), dict):
        read = deepseek.read if deepseek.recognises(value) else chatgpt.read
    elif isinstance(value.get("chat"), dict):
        read = open_webui.read
    else:
        raise UserError("It has none of the keys 'freedive', 'mapping' and 'chat'", _REMEDY)
    draft = read(value)
    if not draft.title and draft.messages and archive.MARK not in value:
        draft.title, draft.named = title_of(draft.messages[0].content), False
    return draft


def _unzipped(data: bytes) -> list[bytes]:
    """Returns the members of a zip archive that hold conversations."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            names = sorted(name for name in file.namelist() if _MEMBER.search(name))
            texts, left = [], MAX_BYTES
            for name in dict.fromkeys(names):
                with file.open(name) as member:
                    texts.append(member.read(left + 1))  # the size in the archive may be wrong
                left -= len(texts[-1])
                if left < 0:
                    raise _too_large()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"The zip archive cannot be read ({ascii(str(error))[:100]})", "Fetch it again") from None
    except Exception as error:  # struct.error, lzma.LZMAError, KeyError: what else its parts raise for damaged bytes
        if isinstance(error, UserError):
            raise
        raise UserError(f"The zip archive is damaged ({type(error).__name__})", "Fetch it again") from None
    if not texts:
        raise UserError("The zip archive has no conversations.json", _REMEDY)
    return texts


def _too_large() -> UserError:
    return UserError(f"The file has more than {MAX_BYTES >> 20} MiB of JSON", "Split it")


def _checked(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _too_large()
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise UserError(f"The file has more than {MAX_VALUES} values", "Split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The file is not UTF-8 at byte {error.start}", _REMEDY) from None


def _elements(text: str) -> Iterator[Any]:
    """Yields the elements of a JSON list, each parsed when it is taken; of any other value, itself.

    So the whole list is never in memory, and other threads run between two elements.
    """
    start = _skip(text, 0)
    if not text.startswith("[", start):
        value, end = _parsed(text, start)
        yield value
    else:
        end = _skip(text, start + 1)
        more = not text.startswith("]", end)
        while more:
            value, end = _parsed(text, end)
            yield value
            more = text.startswith(",", end)
            if more:
                end = _skip(text, end + 1)
        if not text.startswith("]", end):
            raise _no_json(end)
        end = _skip(text, end + 1)
    if end != len(text):
        raise _no_json(end)


def _parsed(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _no_json(error.pos) from None
    except RecursionError:
        raise UserError("The file is nested too deeply", _REMEDY) from None
    except ValueError as error:
        raise UserError(f"The file has a number that cannot be read ({error})", _REMEDY) from None
    return value, _skip(text, end)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _skip(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _no_json(position: int) -> UserError:
    return UserError(f"The file is not JSON at character {position}", _REMEDY)
