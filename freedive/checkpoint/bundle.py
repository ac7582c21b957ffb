"""A model that freedive has written, in a folder of its own.

``model.fdv`` is the packed store; ``decoder.json``, written last, the decoder, and a GGUF file's metadata if the model
comes from one. Else the tokenizer's files lie beside, as the model's maker wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from freedive.checkpoint.file import Damaged, read_json
from freedive.checkpoint.packed import DamagedStore, Packed, open_store, write_store
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.model import spec
from freedive.progress import Advance

STORE = "model.fdv"
DESCRIPTION = "decoder.json"

_KINDS: dict[str, Any] = {name: kind for name, kind in vars(spec).items() if is_dataclass(kind)}


def is_bundle(path: Path) -> bool:
    """Whether ``path`` is a folder that :func:`write_bundle` has written to its end."""
    return (path / DESCRIPTION).is_file()


def write_bundle(
    folder: Path,
    model: spec.Model,
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
    config = checkpoint.config if checkpoint.kind == "gguf" else {}
    text = json.dumps({"model": _as_json(model), "kind": checkpoint.kind, "config": config})
    (folder / DESCRIPTION).write_text(text, "utf-8")


def read_bundle(folder: Path) -> tuple[spec.Model, Checkpoint, dict[str, Packed]]:
    """The model, a checkpoint without tensors that tells where its text comes from, and the weights.

    Raises UserError for a damaged folder, or one that another version has written.
    """
    description = read_json(folder / DESCRIPTION)
    try:
        model = _from_json({**description["model"], "class": "Model"})
        checkpoint = Checkpoint(description["kind"], description["config"], {})
    except (KeyError, TypeError):
        raise Damaged(folder / DESCRIPTION, "it does not describe a model that this version knows") from None
    try:
        return model, checkpoint, open_store(folder / STORE)
    except (DamagedStore, FileNotFoundError) as error:
        raise UserError(f"{folder / STORE} cannot be used: {error}", "Make it again with: freedive quantize") from None


def _as_json(value: Any) -> Any:
    """A description as JSON: dataclasses are objects that name their class, tuples lists."""
    if is_dataclass(value):
        return {"class": type(value).__name__} | {f.name: _as_json(getattr(value, f.name)) for f in fields(value)}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        kind = _KINDS[value["class"]]
        return kind(**{key: _from_json(item) for key, item in value.items() if key != "class"})
    return tuple(_from_json(item) for item in value) if isinstance(value, list) else value
