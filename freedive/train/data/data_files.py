"""Reads files of training data: finds them in folders, decodes them, and yields their records.

The suffix of a file names its format, in upper or lower case, also before ``.gz``. A file with another suffix is
refused, never read as plain text.
"""

from __future__ import annotations

import csv
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
"""A value of a file, and its location for error messages, such as "FILE, line 3"."""

NOT_DATA = frozenset(
    {
        *("readme", "license", "licence", "copying", "manifest", "metadata"),
        *("dataset_dict", "dataset_info", "dataset_infos"),
    }
)
"""Names, without suffixes, of files that accompany data in folders and hold none."""

OTHER_DATA = frozenset(
    {
        *(".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".xml", ".yaml", ".yml", ".html"),
        *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".gz"),
    }
)
"""Suffixes of formats that are not supported: a folder that holds such a file is refused."""

GZIP = ".gz"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP_START = b"\x1f\x8b"
_BOM = "\ufeff"


def values(paths: Sequence[str], setting: str) -> Iterator[Value]:
    """Yields each value in the files and folders ``paths`` with its location; errors name ``setting``."""
    for file in data_files(paths, setting):
        yield from READERS[_kind(file)](file)


def data_files(paths: Sequence[str], setting: str) -> Iterator[Path]:
    """Yields the files in ``paths``, those of a folder sorted. Raises UserError for a missing or unsupported file."""
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
    """Returns size, modification time and SHA-256 of each existing file, by path.

    A file whose size and time equal those in ``known`` is not hashed again.
    """
    found = {}
    for path in chain.from_iterable(data_files([path], "") for path in paths if Path(path).exists()):
        about = path.stat()
        seen = [about.st_size, about.st_mtime_ns]
        recorded = (known or {}).get(str(path))
        if not recorded or recorded[:2] != seen:
            with path.open("rb") as file:
                recorded = [*seen, hashlib.file_digest(file, "sha256").hexdigest()]
        found[str(path)] = recorded
    return found


def _of_folder(folder: Path) -> Iterator[Path]:
    """Yields the data files under ``folder``, without hidden files and those named in NOT_DATA."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        about = path.name.partition(".")[0].lower() in NOT_DATA
        if path.is_file() and not hidden and not about and (_kind(path) in READERS or _kind(path) in OTHER_DATA):
            yield path


def _kind(path: Path) -> str:
    """Returns the suffix that names the format; of a compressed file, which must be text, the one before ``.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [GZIP]:
        inside = suffixes[-2] if len(suffixes) > 1 else ""
        return GZIP if inside in ("", PARQUET) else inside
    return suffixes[-1] if suffixes else ""


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Opens a text file, compressed or not, as UTF-8, or as UTF-16 if it begins with a byte order mark of UTF-16."""
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
        why = _first_wrong_line(path) or error
        raise UserError(f"{path} is not text in UTF-8 or UTF-16 ({why})", remedy) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error})", "Check that it is a whole file that you may read") from None


def _first_wrong_line(path: Path) -> str:
    """Returns which line of a file is not UTF-8; "" if the file is compressed or all of it is."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.startswith((_GZIP_START, *_UTF16)):
                break
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}"
    return ""


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yields the lines that are not empty with their numbers, without byte order marks, which joined
    files have inside."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if text := line.lstrip(_BOM).strip():
                yield text, number


def _json_lines(path: Path) -> Iterator[Value]:
    for line, number in _lines(path):
        yield _parsed(line, path, number), f"{path}, line {number}"


def _json(path: Path) -> Iterator[Value]:
    """Yields the items of one JSON array, or one JSON object, or the lines of a file that is JSONL."""
    lines = list(_lines(path))
    try:
        whole = json.loads("\n".join(line for line, _ in lines))
    except (ValueError, RecursionError):
        yield from ((_parsed(line, path, number), f"{path}, line {number}") for line, number in lines)
        return
    items = whole if isinstance(whole, list) else [whole]
    yield from ((value, f"{path}, item {number}") for number, value in enumerate(items, 1))


def _table(path: Path) -> Iterator[Value]:
    """Yields the rows of a table as records. Its first line names the columns, and shows what separates them."""
    with _opened(path) as file:
        lines = (line.lstrip(_BOM) for line in file)
        first = next(lines, "")
        rows = csv.reader(chain([first], lines), delimiter=max(SEPARATORS, key=first.count), strict=True)
        columns: list[str] | None = None
        begin = 1
        try:
            for row in rows:
                place, begin = f"{path}, line {begin}", rows.line_num + 1
                if not any(map(str.strip, row)):
                    continue
                if columns is None:
                    columns = _columns(row, place)
                elif len(row) != len(columns):
                    what = f"{place} has {len(row)} cells, and there are {len(columns)} columns"
                    raise UserError(what, 'Write cells that hold a separator or a quote as "a, ""b"""')
                else:
                    yield dict(zip(columns, row, strict=True)), place
        except csv.Error as error:
            what = f"{path}, line {begin} is not a row of a table: {error}"
            raise UserError(what, "Check where its quotes begin and end") from None


def _columns(row: Sequence[str], place: str) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    if twice := next((name for name in columns if name and columns.count(name) > 1), ""):
        raise UserError(f"{place} names two columns {twice!r}", "Give each column a name of its own")
    return columns


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not JSON: {error}", "Correct or remove the line") from None


def _plain(path: Path) -> Iterator[Value]:
    """Yields the whole file as one record."""
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
SEPARATORS = ",;\t"
"""What may separate the cells of a table; of equally frequent ones, the first."""
READERS: Mapping[str, Callable[[Path], Iterator[Value]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    PARQUET: _parquet,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _plain,
    ".md": _plain,
}
"""The function that reads a file, by suffix."""
