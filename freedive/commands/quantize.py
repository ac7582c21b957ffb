"""``freedive quantize MODEL FOLDER``: a model in freedive's own formats, ready to run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from freedive import machine
from freedive.checkpoint.model_folder import write_model_folder
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import store_bytes
from freedive.checkpoint.quantize import Target
from freedive.checkpoint.quantize import quantize as quantized
from freedive.checkpoint.rules import canonical_tensors
from freedive.commands.flags import Reference
from freedive.commands.formatting import size_text
from freedive.errors import Unavailable, UserError
from freedive.families import describe
from freedive.hub.cache import MANIFEST
from freedive.hub.choose import COMPANION_FILES
from freedive.hub.sources import Bar, resolve
from freedive.model.params import params
from freedive.progress import byte_bar

FORMATS = "Format of the matrices: 4-bit integers in groups of 64 or 128 inputs, 8-bit ones, or bfloat16."


def quantize(
    model: Reference,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; it must not exist, or be empty.")],
    format: Annotated[Target, typer.Option(help=FORMATS)] = "i4g64",
) -> None:
    source = resolve(model)
    total = write_quantized(source, folder, format, check=lambda size: _make_empty(folder))
    print(f"{folder}: {size_text(total)}; run it with: freedive run {folder}")


def write_quantized(
    source: Path, folder: Path, format: Target, *, bar: Bar = byte_bar, check: Callable[[int], None] = lambda size: None
) -> int:
    """Writes the checkpoint at ``source`` into the empty ``folder`` in ``format``, and returns the number of bytes.

    ``check`` is called with this number before anything is written. Raises UserError for a model that cannot be read.
    """
    checkpoint = open_checkpoint(source)
    description, rules = describe(checkpoint)
    tensors = quantized(
        canonical_tensors(checkpoint, description, rules),
        params(description),
        format,
        num_threads=(threads := machine.physical_cores()),
    )
    check(total := store_bytes(tensors))
    if checkpoint.kind == "safetensors":
        _copy_text(source if source.is_dir() else source.parent, folder)
    with bar(f"writing {format}", total) as advance:
        write_model_folder(folder, description, checkpoint, tensors, num_threads=threads, advance=advance)
    return total


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made: {error.strerror}", "Name another folder") from None
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", "Name a new folder")


def _copy_text(source: Path, folder: Path) -> None:
    """Copies the tokenizer, chat template, recommended sampling and licence."""
    for pattern in COMPANION_FILES:
        for path in source.glob(pattern):
            if not path.name.endswith((".index.json", MANIFEST)):
                shutil.copyfile(path, folder / path.name)
