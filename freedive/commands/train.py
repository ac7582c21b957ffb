"""``freedive train STAGE PRESET``: from raw text to a model that freedive serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from freedive.errors import UserError

Stage = Literal[
    "tokenizer", "data", "pretrain", "sft", "rl", "control", "distill", "eval", "export", "report", "speedrun"
]
STAGES = ", ".join(get_args(Stage))


def train(
    stage: Annotated[
        Stage,
        typer.Argument(metavar="STAGE", help=f"One of {STAGES}; the last does all of them."),
    ],
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="nano, nano-dense, micro or small.")] = "nano",
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[PART.NAME=VALUE]...", help="Changes to the preset.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/PRESET.")] = None,
) -> None:
    try:
        from freedive.train.stages import perform
    except ImportError as error:
        raise UserError(f"Training needs {error.name}", "Install it: pip install 'freedive[train]'") from None
    perform(stage, preset, settings or [], run)
