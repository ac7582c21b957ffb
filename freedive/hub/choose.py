"""Chooses the files of a repository that make a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from freedive.checkpoint.model_folder import DESCRIPTION
from freedive.errors import NotFound, UserError
from freedive.hub.cache import MANIFEST, safe

if TYPE_CHECKING:  # at run time the HTTP client behind it would slow every warm start
    from freedive.hub.download import RemoteFile

WEIGHTS = "model*.safetensors"

BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "merges.txt", "LICENSE*")
"""Configuration, tokenizer, chat template and terms: top-level files that go with the weights."""

FORMATS = (
    *("Q4_K_M", "Q4_0", "Q4_K_S", "Q4_1", "MXFP4", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K"),
    *("Q8_0", "BF16", "F16", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
"""GGUF formats, the best trade of size for quality first."""

OURS = (MANIFEST, DESCRIPTION)
"""Names that mean something to freedive itself in a model's folder, so that files of strangers do not have them."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")


@dataclass(frozen=True)
class Choice:
    """The chosen ``files``. ``checkpoint`` is the one to open, "." for all of them; ``reason`` explains the choice."""

    files: tuple[RemoteFile, ...]
    checkpoint: str
    reason: str


def choose(repository: str, files: Iterable[RemoteFile], wanted: str | None) -> Choice:
    """The files to fetch: the one that was asked for, else safetensors with what belongs to them, else one GGUF."""
    offered = {file.path: file for file in files if safe(file.path) and file.path.rpartition("/")[2] not in OURS}
    if wanted:
        if wanted not in offered:
            raise NotFound(f"{repository} has no file {wanted}", _offer(repository, offered))
        return Choice(_parts(wanted, offered), wanted, wanted)
    weights = [path for path in offered if fnmatch(path, WEIGHTS)]
    if weights:
        beside = [path for path in offered if "/" not in path and any(fnmatch(path, kind) for kind in BESIDE_WEIGHTS)]
        return Choice(tuple(offered[path] for path in weights + beside), ".", "safetensors")
    best = _best_gguf([path for path in offered if is_model(path)])
    if best is None:
        raise UserError(f"{repository} holds no weights that freedive can choose from", _offer(repository, offered))
    return Choice(_parts(best, offered), best, f"{best} (for another file write {repository}/FILE)")


def _best_gguf(paths: list[str]) -> str | None:
    for kind in FORMATS:
        named = re.compile(rf"(?<![A-Z0-9]){kind}(?![A-Z0-9_])")
        for path in sorted(paths):
            if named.search(path.upper()):
                return path
    return paths[0] if len(paths) == 1 else None


def is_model(path: str) -> bool:
    """A GGUF of a language model, or the first part of one; not a vision projector."""
    part = _PART.search(path)
    return (
        path.endswith(".gguf") and not path.rpartition("/")[2].startswith("mmproj") and (not part or int(part[1]) == 1)
    )


def _parts(path: str, offered: dict[str, RemoteFile]) -> tuple[RemoteFile, ...]:
    """The file, or all parts of a GGUF that was cut."""
    if not _PART.search(path):
        return (offered[path],)
    whole = _PART.sub("", path)
    return tuple(file for name, file in offered.items() if _PART.search(name) and _PART.sub("", name) == whole)


def _offer(repository: str, offered: dict[str, RemoteFile]) -> str:
    models = sorted(path for path in offered if is_model(path))
    if not models:
        return "It must have model*.safetensors with a config.json, or a GGUF file"
    return f"Write {repository}/FILE with one of: {', '.join(models[:12])}"
