"""A path -> an opened checkpoint, whatever its container."""

from __future__ import annotations

import os
from pathlib import Path

from freedive.checkpoint.companions import combine
from freedive.checkpoint.file import read_json
from freedive.checkpoint.gguf import open_gguf
from freedive.checkpoint.safetensors import read_file, read_sharded
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError

INDEX = "model.safetensors.index.json"


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, a .safetensors file beside its config.json, or a folder with either; nothing is copied.

    Raises UserError when the file is missing, damaged or of a kind or format that freedive does not read.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, false for a path that no file can have
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return combine(Checkpoint("safetensors", read_json(path.with_name("config.json")), read_file(path)))
    return open_gguf(path)


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / INDEX).exists():
        return combine(Checkpoint("safetensors", read_json(folder / "config.json"), read_sharded(folder / INDEX)))
    candidates = [
        *folder.glob("*.safetensors"),
        *(path for path in folder.glob("*.gguf") if "-of-" not in path.name or "-00001-of-" in path.name),
    ]
    if folder / "model.safetensors" in candidates:
        return open_checkpoint(folder / "model.safetensors")
    match sorted(candidates):
        case [path]:
            return open_checkpoint(path)
        case []:
            raise UserError(f"{folder} holds no model", "It needs a .gguf file, or config.json and .safetensors files")
        case paths:
            names = ", ".join(path.name for path in paths)
            raise UserError(f"{folder} holds several models: {names}", "Name one of these files")
