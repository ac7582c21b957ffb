"""Model folders: a packed store with a description of its model, which runs without the original files.

The description is JSON, written after the store: the decoder, a GGUF file's metadata if the model comes from one, and
the stamp of the store. A model folder has both, ``model.fdv`` and ``decoder.json``. A model that does not come from a
GGUF file also has its tokenizer's files in this folder, unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from freedive.checkpoint.fingerprint import stamp
from freedive.checkpoint.fit import check_fit
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.checkpoint.weight_store import DamagedStore, WeightStore, open_store, write_store
from freedive.checkpoint.write import OTHER_DISK, new_file
from freedive.errors import UserError
from freedive.files import DamagedFile, read_json
from freedive.model import spec
from freedive.model.description import from_json, to_json
from freedive.progress import Advance

STORE = "model.fdv"
DESCRIPTION = "decoder.json"

OpenedStore = tuple[spec.ModelSpec, Checkpoint, WeightStore]
"""The model, a checkpoint without tensors that has the tokenizer's metadata, and the weights."""


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that :func:`write_model_folder` has written to its end."""
    return (path / DESCRIPTION).is_file()


def write_model_folder(
    folder: Path,
    model: spec.ModelSpec,
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    *,
    num_threads: int = 1,
    advance: Advance = lambda count: None,
) -> None:
    """Pack ``tensors``, canonical and of the model ``model``, into ``folder``, which exists.

    ``checkpoint`` is what they come from. Raises Unavailable where the folder cannot be written.
    """
    name_another = "name a folder on another disk"
    write_store(folder / STORE, tensors, num_threads=num_threads, advance=advance, otherwise=name_another)
    write_description(folder / DESCRIPTION, folder / STORE, model, checkpoint, otherwise=name_another)


def read_model_folder(folder: Path) -> OpenedStore:
    """The model in ``folder``. Raises UserError for a damaged folder, or one that another version has written."""
    try:
        return open_described(folder / DESCRIPTION, folder / STORE)
    except (DamagedStore, FileNotFoundError) as error:
        raise UserError(f"{folder / STORE} cannot be used: {error}", "Make it again with: freedive quantize") from None


def write_description(
    path: Path, store: Path, model: spec.ModelSpec, checkpoint: Checkpoint, *, otherwise: str = OTHER_DISK, by: str = ""
) -> None:
    """Describe at ``path`` what ``store`` holds, which has just been written or verified. ``by``: with which code.

    Raises Unavailable, as :func:`write_store` does.
    """
    config = checkpoint.config if checkpoint.kind == "gguf" else {}
    about = {"model": to_json(model), "kind": checkpoint.kind, "config": config, "store": stamp(store), "by": by}
    text = json.dumps(about, ensure_ascii=False).encode()
    with new_file(path, "The model's description", len(text), otherwise) as file:
        file.write(text)


def open_described(path: Path, store: Path, *, by: str | None = None) -> OpenedStore:
    """What ``store`` holds, by the description at ``path``. It is verified unless it is as it was when described.

    Raises UserError where there is no description that this version knows, and DamagedStore where the store is not what
    is described. With ``by``, the description must have been made by that code, and the store be as it was then.
    """
    about = read_json(path)
    kind, config = about.get("kind"), about.get("config")
    if kind not in ("gguf", "safetensors") or not isinstance(config, dict):
        raise DamagedFile(path, "it does not describe a model that this version knows")
    proven = about.get("store") == stamp(store)
    if by is not None and not (proven and about.get("by") == by):
        raise DamagedFile(path, "the store or the code has changed since")
    model, weights = from_json(about.get("model")), open_store(store, proven=proven)
    check_fit(model, weights)
    return model, Checkpoint(kind, config, {}), weights
