"""Reads files that may be damaged: mapped bytes and bounded JSON."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from freedive.errors import NotFound, UserError
from freedive.json_object import Json

JSON_LIMIT = 100_000_000
"""The most bytes of a JSON text: the safetensors format's limit for its header."""

MAX_VALUES = 1 << 23
"""The most values of a JSON text or of a GGUF header's arrays: three times those of the largest vocabularies."""


class DamagedFile(UserError):
    """A model file whose content contradicts itself or its size."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged or incomplete: {what}", "Fetch the file again")


def quote(value: object) -> str:
    """Returns ``value`` from a file as ASCII text of at most 100 characters."""
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."


def map_file(path: Path) -> mmap.mmap:
    """Maps a file read-only. Raises NotFound, DamagedFile for an empty file, and UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", "Check the path; a model in several files needs all of them") from None
    except ValueError:  # mmap refuses an empty file
        raise DamagedFile(path, "it is empty") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "Check that it is a file you may read") from None


def read_json(path: Path, *, duplicates: bool = False) -> Json:
    """Returns the JSON object in a file. Raises DamagedFile for a repeated key, unless ``duplicates`` is true."""
    with map_file(path) as mapped:
        return parse_json(path, mapped[: JSON_LIMIT + 1], duplicates=duplicates)


def parse_json(path: Path, text: bytes, *, duplicates: bool = False) -> Json:
    """Parses ``text`` from the file ``path`` as a JSON object. Raises DamagedFile."""
    if len(text) > JSON_LIMIT:
        raise DamagedFile(path, f"its JSON is longer than {JSON_LIMIT} bytes")
    num_values = sum(map(text.count, (b",", b"[", b"{")))  # an upper bound; objects take far more memory than text
    if num_values > MAX_VALUES:
        raise DamagedFile(path, f"its JSON holds more than {MAX_VALUES} values")
    try:
        value = json.loads(text, object_pairs_hook=None if duplicates else _without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"its JSON cannot be parsed ({quote(str(error))})") from None
    if not isinstance(value, dict):
        raise DamagedFile(path, "its JSON is not an object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
