"""Remembers the speed of disks in the cache, so that only the first start of a model on a disk measures it."""

from __future__ import annotations

import json
import math
import os
import random
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from freedive.checkpoint.write import new_file
from freedive.disk_speed import MODE_BYTES, DiskSpeed, best, measure
from freedive.errors import Unavailable
from freedive.hub.cache import home

PROBE_BYTES = 2 * MODE_BYTES
"""Size of the file that is written to measure a disk without models."""


def disk_speed(path: Path, record_bytes: int) -> DiskSpeed:
    """Returns the best way to read records of about ``record_bytes`` from the disk of ``path``, and its speed.

    It is measured once for each disk and power of two. Raises OSError if ``path`` cannot be read.
    """
    return _remembered(path, record_bytes) or _measured(path, record_bytes)


def disk_speed_of_cache(record_bytes: int) -> DiskSpeed:
    """Returns the same for the disk of the cache, which need not contain a model yet.

    If there is no file large enough, it writes one, and deletes it afterwards. Raises OSError if it cannot.
    """
    folder = next(folder for folder in (home(), *home().parents) if folder.exists())
    if known := _remembered(folder, record_bytes):
        return known
    stores = [path for path in home().glob("packed/*/*.fdv") if path.stat().st_size >= PROBE_BYTES]
    if stores:
        return _measured(stores[0], record_bytes)
    with TemporaryDirectory(dir=folder, prefix="probe-") as temporary:
        path = Path(temporary) / "probe"
        with path.open("wb") as file:
            block = random.Random(0).randbytes(1 << 20)  # a disk may compress zeros
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return _measured(path, record_bytes)


def _measured(path: Path, record_bytes: int) -> DiskSpeed:
    speed = best(measure(path, min(_size_class(record_bytes), path.stat().st_size)))
    with suppress(OSError, Unavailable):  # then the next start measures again
        _remember(path, record_bytes, speed)
    return speed


def _remembered(path: Path, record_bytes: int) -> DiskSpeed | None:
    match _table().get(_key(path, record_bytes)):
        case {"direct": bool(direct), "readers": int(readers), "bytes_per_second": float(speed)} if (
            1 <= readers <= 64 and 0 < speed < math.inf
        ):
            return DiskSpeed(direct, readers, speed)
    return None


def _remember(path: Path, record_bytes: int, speed: DiskSpeed) -> None:
    text = json.dumps(_table() | {_key(path, record_bytes): asdict(speed)}, indent=2)
    home().mkdir(parents=True, exist_ok=True)
    with new_file(_file(), "The speed of the disk", len(text), "set FREEDIVE_HOME to another folder") as file:
        file.write(text.encode())


def _table() -> dict[str, Any]:
    """Returns what is remembered; a damaged file counts as empty."""
    try:
        table = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _file() -> Path:
    return home() / "disks.json"


def _key(path: Path, record_bytes: int) -> str:
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)} {_size_class(record_bytes)}"


def _size_class(record_bytes: int) -> int:
    """Returns the smallest power of two that is not less, from 4 KiB to 64 MiB."""
    return 1 << min(max(record_bytes - 1, 1).bit_length(), 26) if record_bytes > 4096 else 4096
