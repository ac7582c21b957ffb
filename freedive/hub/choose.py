"""Chooses the files of a repository that are needed to run its model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from freedive.checkpoint.model_folder import DESCRIPTION
from freedive.errors import NotFound, UserError
from freedive.hub.cache import MANIFEST, safe

if TYPE_CHECKING:  # at run time this would import the HTTP client and slow down every warm start
    from freedive.hub.download import RemoteFile

WEIGHTS = "model*.safetensors"

COMPANION_FILES = ("*.json", "*.jinja", "*.model", "merges.txt", "LICENSE*")
"""Patterns of the top-level files needed with safetensors weights: configuration, tokenizer, template and licence."""

FORMATS = (
    *("Q4_K_M", "Q4_0", "Q4_K_S", "Q4_1", "MXFP4", "NVFP4", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1"),
    *("Q6_K", "Q8_0", "BF16", "F16", "F32", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS"),
    *("Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0"),
)
"""GGUF formats in order of preference, the best compromise between size and quality first."""

RESERVED_NAMES = (MANIFEST, DESCRIPTION)
"""File names that freedive itself uses in a model's folder; files of a repository with these names are ignored."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")


@dataclass(frozen=True)
class Choice:
    """The chosen ``files``; ``checkpoint`` is the file to open, or "."; ``reason`` explains the choice to the user."""

    files: tuple[RemoteFile, ...]
    checkpoint: str
    reason: str


def choose(repository: str, files: Iterable[RemoteFile], wanted: str | None) -> Choice:
    """Chooses the ``wanted`` file; without it, the safetensors files and their configuration, else one GGUF file.

    Raises NotFound if the wanted file does not exist, and UserError if there are no weights to choose from.
    """
    offered = {
        file.path: file for file in files if safe(file.path) and file.path.rpartition("/")[2] not in RESERVED_NAMES
    }
    if wanted:
        if wanted not in offered:
            raise NotFound(f"{repository} has no file {wanted}", _offer(repository, offered))
        return Choice(_parts(wanted, offered), wanted, wanted)
    weights = [path for path in offered if fnmatch(path, WEIGHTS)]
    if weights:
        companions = [
            path for path in offered if "/" not in path and any(fnmatch(path, kind) for kind in COMPANION_FILES)
        ]
        return Choice(tuple(offered[path] for path in weights + companions), ".", "safetensors")
    best = _best_gguf([path for path in offered if is_model(path)])
    if best is None:
        raise UserError(f"{repository} has no weights that freedive can choose", _offer(repository, offered))
    return Choice(_parts(best, offered), best, f"{best} (for another file write {repository}/FILE)")


def _best_gguf(paths: list[str]) -> str | None:
    for kind in FORMATS:
        named = re.compile(rf"(?<![A-Z0-9]){kind}(?![A-Z0-9_])")
        for path in sorted(paths):
            if named.search(path.upper()):
                return path
    return paths[0] if len(paths) == 1 else None


def is_model(path: str) -> bool:
    """Returns whether ``path`` is a GGUF file of a language model, or the first part of one.

    A vision projector (mmproj-...) is none, nor are layers that draft tokens for another file (mtp-..., or in MTP/).
    """
    part, name = _PART.search(path), path.rpartition("/")[2]
    companion = name.startswith(("mmproj", "mtp-")) or path.startswith("MTP/")
    return path.endswith(".gguf") and not companion and (not part or int(part[1]) == 1)


def _parts(path: str, offered: dict[str, RemoteFile]) -> tuple[RemoteFile, ...]:
    """Returns the file, or all parts of a split GGUF file."""
    if not _PART.search(path):
        return (offered[path],)
    whole = _PART.sub("", path)
    return tuple(file for name, file in offered.items() if _PART.search(name) and _PART.sub("", name) == whole)


def _offer(repository: str, offered: dict[str, RemoteFile]) -> str:
    models = sorted(path for path in offered if is_model(path))
    if not models:
        return "It must have model*.safetensors with a config.json, or a GGUF file"
    return f"Write {repository}/FILE with one of: {', '.join(models[:12])}"
