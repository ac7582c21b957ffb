"""Files of training data: which of a folder are meant, how they are encoded, and the values that they hold.

A file's suffix says what it holds, in any case and also before ``.gz``. What is none of them is refused, and never read
as plain text.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from freedive.errors import UserError

Value = tuple[Any, str]
"""What was read, and where it stands."""

NOT_DATA = frozenset(
    {
        *("readme", "license", "licence", "copying", "manifest", "metadata"),
        *("dataset_dict", "dataset_info", "dataset_infos"),
    }
)
"""Names of files that lie in folders beside the data, without their suffixes."""

OTHER_DATA = frozenset(
    {
        *(".csv", ".tsv", ".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".xml", ".yaml", ".yml", ".html"),
        *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".gz"),
    }
)
"""Suffixes that somebody's data may well have, and that are not read: in a folder they are refused, too."""

GZIP = ".gz"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP_START = b"\x1f\x8b"
_BOM = "\ufeff"


def values(paths: Sequence[str], setting: str) -> Iterator[Value]:
    """What is in the files and folders that ``setting`` names, of any form, and where each value stands."""
    for file in data_files(paths, setting):
        yield from READERS[_kind(file)](file)


def data_files(paths: Sequence[str], setting: str) -> Iterator[Path]:
    """The files that ``setting`` names, those of folders in order. UserError for what is not there or is not read."""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist", f"Name files or folders with {setting}")
        files = sorted(_of_folder(path)) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} holds no {', '.join(READERS)}", f"Name another folder with {setting}")
        for file in files:
            if _kind(file) not in READERS:
                known = f"Name files of {', '.join(READERS)} with {setting}; all but Parquet may be compressed ({GZIP})"
                raise UserError(f"{file} is of a kind that is not read", known)
            yield file


def fingerprint(paths: Sequence[str], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """By path the size, time and hash of each file that is there; one that looks as in ``known`` is not read again."""
    found = {}
    for path in chain.from_iterable(data_files([path], "") for path in paths if Path(path).exists()):
        about = path.stat()
        seen = [about.st_size, about.st_mtime_ns]
        before = (known or {}).get(str(path))
        if not before or before[:2] != seen:
            with path.open("rb") as file:
                before = [*seen, hashlib.file_digest(file, "sha256").hexdigest()]
        found[str(path)] = before
    return found


def _of_folder(folder: Path) -> Iterator[Path]:
    """The files of data under ``folder``: none that is hidden, and none that only tells about the others."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        about = path.name.partition(".")[0].lower() in NOT_DATA
        if path.is_file() and not hidden and not about and (_kind(path) in READERS or _kind(path) in OTHER_DATA):
            yield path


def _kind(path: Path) -> str:
    """The suffix that says what a file holds; only text is read compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [GZIP]:
        inside = suffixes[-2] if len(suffixes) > 1 else ""
        return GZIP if inside in ("", PARQUET) else inside
    return suffixes[-1] if suffixes else ""


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a file, which may be compressed; UTF-8, or UTF-16 where it begins with that mark."""
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == _GZIP_START or path.suffix.lower() == GZIP
        opened: Callable[..., Any] = gzip.open if is_compressed else open
        with opened(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in _UTF16 else "utf-8"
        with opened(path, "rt", encoding=encoding) as file:
            yield file
    except UnicodeError as error:
        remedy = "Convert it, such as with: iconv -f LATIN1 -t UTF-8"
        raise UserError(f"{path} is not text in UTF-8 or UTF-16 ({error})", remedy) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error})", "Check that it is a whole file that you may read") from None


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """The lines that hold something, with their numbers; files that were joined may have marks in their middle."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if text := line.lstrip(_BOM).strip():
                yield text, number


def _json_lines(path: Path) -> Iterator[Value]:
    for line, number in _lines(path):
        yield _parsed(line, path, number), f"{path}, line {number}"


def _json(path: Path) -> Iterator[Value]:
    """One array of records, one record, or lines."""
    lines = list(_lines(path))
    try:
        whole = json.loads("\n".join(line for line, _ in lines))
    except (ValueError, RecursionError):
        yield from ((_parsed(line, path, number), f"{path}, line {number}") for line, number in lines)
        return
    items = whole if isinstance(whole, list) else [whole]
    yield from ((value, f"{path}, item {number}") for number, value in enumerate(items, 1))


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not JSON: {error}", "Mend or remove the line") from None


def _plain(path: Path) -> Iterator[Value]:
    """The whole file, as it stands."""
    with _opened(path) as file:
        yield {"text": file.read().removeprefix(_BOM)}, str(path)


def _parquet(path: Path) -> Iterator[Value]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow", "Install it: pip install pyarrow") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield row, f"{path}, row {number}"
                number += 1
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})", "Check that it is a whole Parquet file") from None


PARQUET = ".parquet"
READERS: Mapping[str, Callable[[Path], Iterator[Value]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    PARQUET: _parquet,
    ".txt": _plain,
    ".md": _plain,
}
"""Suffix -> what reads such a file."""
