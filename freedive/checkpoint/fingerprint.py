"""Fingerprints of files and code, so that what was made from them is not used after they change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PACKAGE = Path(__file__).parents[1]


def stamp(path: Path) -> list[int]:
    """The file's size, and when its content and its inode last changed, in ns: no program can set the latter."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def split_files(path: Path) -> list[Path]:
    """All files of the GGUF checkpoint of which ``path`` is one (``name-00001-of-00003.gguf``), perhaps the only."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count = match.groups()
    return [path.with_name(f"{stem}-{index:05}-of-{count}.gguf") for index in range(1, int(count) + 1)]


def checkpoint_fingerprint(path: Path) -> str:
    """Differs when any file differs that the weights of the checkpoint at ``path`` are read from."""
    if path.is_dir():
        files = sorted(path.iterdir())
    elif path.suffix == ".safetensors":
        files = [path, path.with_name("config.json")]
    else:
        files = split_files(path)
    return repr([(file.name, stamp(file)) for file in files if file.exists()])


DESCRIBING = ("files.py", "checkpoint/**/*.py", "families/**/*.py", "model/**/*.py")
"""The code that reads and describes checkpoints."""

COMPUTING = (*DESCRIBING, "engine/*.py", "ops/*.py", "native/_native.*")
"""The code, too, that computes with them."""


def code_fingerprint(patterns: Sequence[str]) -> str:
    """Differs when the code differs that matches ``patterns``: what it made before may be wrong."""
    modules = [module for pattern in patterns for module in _PACKAGE.glob(pattern)]
    return repr(sorted((module.name, stamp(module)) for module in modules))


def code_digest(patterns: Sequence[str]) -> str:
    """Differs when the text differs of the code that matches ``patterns``; installing it again changes nothing."""
    digest = sha256()
    for module in sorted(module for pattern in patterns for module in _PACKAGE.glob(pattern)):
        text = module.read_bytes()
        digest.update(f"{module.relative_to(_PACKAGE)} {len(text)}\n".encode() + text)
    return digest.hexdigest()
