"""``freedive finetune MODEL`` and ``freedive merge MODEL``: train adapters or weights of a model, and merge them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freedive.commands.train import Settings, perform

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name, an address or a path.")]
Run = Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/tune-MODEL.")]


def finetune(model: Model, settings: Settings = None, run: Run = None) -> None:
    perform("tune", model, settings or [], run)


def merge(model: Model, settings: Settings = None, run: Run = None) -> None:
    perform("merge", model, settings or [], run)
