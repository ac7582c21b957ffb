"""Fingerprints of files and code, which show whether data derived from them is still valid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PACKAGE = Path(__file__).parents[1]


def stamp(path: Path) -> list[int]:
    """Returns the size of the file in bytes and the times of the last content and inode change in nanoseconds.

    Programs cannot set the time of the last inode change.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def split_files(path: Path) -> list[Path]:
    """Returns all files of the GGUF checkpoint that contains ``path``, such as ``name-00001-of-00003.gguf``.

    A checkpoint may have only one file.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count = match.groups()
    return [path.with_name(f"{stem}-{index:05}-of-{count}.gguf") for index in range(1, int(count) + 1)]


def checkpoint_fingerprint(path: Path) -> str:
    """Returns a fingerprint that changes when any weight file of the checkpoint at ``path`` changes."""
    if path.is_dir():
        files = sorted(path.iterdir())
    elif path.suffix == ".safetensors":
        files = [path, path.with_name("config.json")]
    else:
        files = split_files(path)
    return repr([(file.name, stamp(file)) for file in files if file.exists()])


DESCRIBING = ("files.py", "checkpoint/**/*.py", "families/**/*.py", "model/**/*.py")
"""Patterns of the code that reads and describes checkpoints."""

COMPUTING = (*DESCRIBING, "engine/*.py", "ops/*.py", "native/_native.*")
"""Patterns of the code that reads and describes checkpoints or computes with them."""


def code_fingerprint(patterns: Sequence[str]) -> str:
    """Returns a fingerprint that changes when a file that matches ``patterns`` is changed or installed again."""
    modules = [module for pattern in patterns for module in _PACKAGE.glob(pattern)]
    return repr(sorted((module.name, stamp(module)) for module in modules))


def code_digest(patterns: Sequence[str]) -> str:
    """Returns a digest of the text of the code that matches ``patterns``; installing it again does not change it."""
    digest = sha256()
    for module in sorted(module for pattern in patterns for module in _PACKAGE.glob(pattern)):
        text = module.read_bytes()
        digest.update(f"{module.relative_to(_PACKAGE)} {len(text)}\n".encode() + text)
    return digest.hexdigest()
