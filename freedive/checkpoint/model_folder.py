"""Model folders: a packed store and a description of its model, which run without the original files.

A model folder has ``model.fdv``, the store, and ``decoder.json``, the description, which is written after the store.
The description contains the model specification, the metadata of the GGUF file if the model comes from one, and the
stamp of the store. If the model does not come from a GGUF file, the folder also has the files of its tokenizer.
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
"""The model, a checkpoint without tensors but with the metadata of the tokenizer, and the weights."""


def is_model_folder(path: Path) -> bool:
    """Returns whether ``path`` is a folder that :func:`write_model_folder` has completely written."""
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
    """Packs the canonical ``tensors`` of ``model`` into the existing ``folder``.

    ``checkpoint`` is the source of the tensors. Raises Unavailable if the folder cannot be written.
    """
    name_another = "name a folder on another disk"
    write_store(folder / STORE, tensors, num_threads=num_threads, advance=advance, otherwise=name_another)
    write_description(folder / DESCRIPTION, folder / STORE, model, checkpoint, otherwise=name_another)


def read_model_folder(folder: Path) -> OpenedStore:
    """Opens the model in ``folder``. Raises UserError if the folder is damaged or written by another version."""
    try:
        return open_described(folder / DESCRIPTION, folder / STORE)
    except (DamagedStore, FileNotFoundError) as error:
        raise UserError(f"{folder / STORE} cannot be used: {error}", "Make it again with: freedive quantize") from None


def write_description(
    path: Path, store: Path, model: spec.ModelSpec, checkpoint: Checkpoint, *, otherwise: str = OTHER_DISK, by: str = ""
) -> None:
    """Writes the description of ``store`` to ``path``; the store must have just been written or verified.

    ``by`` is the fingerprint of the code that made the store. Raises Unavailable if the file cannot be written.
    """
    config = checkpoint.config if checkpoint.kind == "gguf" else {}
    about = {"model": to_json(model), "kind": checkpoint.kind, "config": config, "store": stamp(store), "by": by}
    text = json.dumps(about, ensure_ascii=False).encode()
    with new_file(path, "The model's description", len(text), otherwise) as file:
        file.write(text)


def open_described(path: Path, store: Path, *, by: str | None = None) -> OpenedStore:
    """Opens ``store`` with the description at ``path``; verifies checksums if the store changed since the description.

    Raises UserError if this version cannot read the description, and DamagedStore if the store does not match it. With
    ``by``, it also raises UserError if other code made the description or if the store changed since.
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
