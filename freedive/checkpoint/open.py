"""Opens the checkpoint at a path: GGUF or safetensors, one file or several."""

from __future__ import annotations

import os
import re
from pathlib import Path

from freedive.checkpoint.gguf import open_gguf
from freedive.checkpoint.model_folder import is_model_folder
from freedive.checkpoint.quantized.discover import combine
from freedive.checkpoint.safetensors import read_file, read_sharded, read_shards
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.files import quote, read_json

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

PROJECTOR = "mmproj"
"""Prefix of the names of GGUF files with image or audio encoders, which are not part of the language model."""

_PART = re.compile(r"-\d{5}-of-(?=\d{5}\.)")


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a .gguf file, a .safetensors file with a config.json, or a folder with either, without copying data.

    Raises UserError if the file is missing or damaged, or if freedive does not read its kind or format.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, it returns False for an invalid path
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return combine(Checkpoint("safetensors", read_json(path.with_name("config.json")), read_file(path)))
    return open_gguf(path)


def _open_folder(folder: Path) -> Checkpoint:
    if (folder / INDEX).exists():
        return combine(Checkpoint("safetensors", read_json(folder / "config.json"), read_sharded(folder / INDEX)))
    if not (folder / "config.json").exists() and (folder / ADAPTER).exists():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        raise UserError(
            f"{folder} has an adapter of {quote(base)}, which is not a whole model",
            "Merge it into that model first (merge_and_unload of PEFT), and name the folder that this writes",
        )
    if is_model_folder(folder):
        raise UserError(
            f"{folder} was written by freedive quantize, and has no tensors of the maker",
            "Name the model that it was made from",
        )
    models = _models(folder)
    if "model.safetensors" in models:
        return open_checkpoint(folder / "model.safetensors")
    match sorted(models.items()):
        case [(_, [path])] if path.suffix == ".gguf" or not _PART.search(path.name):
            return open_checkpoint(path)
        case [(name, paths)]:
            return combine(Checkpoint("safetensors", read_json(folder / "config.json"), read_shards(name, paths)))
        case []:
            raise UserError(
                f"{folder} contains no model", "It needs a .gguf file, or config.json and .safetensors files"
            )
        case several:
            raise UserError(f"{folder} contains several models: {', '.join(dict(several))}", "Name one of these files")


def _models(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each model in ``folder`` by the name of the first file; for GGUF, only the first file."""
    models: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        models.setdefault(_PART.sub("-00001-of-", path.name), []).append(path)
    for path in folder.glob("*.gguf"):
        if not path.name.startswith(PROJECTOR) and _PART.sub("-00001-of-", path.name) == path.name:
            models[path.name] = [path]
    return models
