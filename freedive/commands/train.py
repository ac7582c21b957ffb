"""``freedive train STAGE PRESET``: from raw text to a model that freedive serves; or what others trained, tuned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from freedive.errors import UserError

Stage = Literal[
    "tokenizer",
    "data",
    "pretrain",
    "sft",
    "rl",
    "control",
    "distill",
    "eval",
    "export",
    "report",
    "speedrun",
    "tune",
    "merge",
]
OF_OTHERS = ("tune", "merge")
OWN = ", ".join(stage for stage in get_args(Stage) if stage not in OF_OTHERS)


def train(
    stage: Annotated[
        Stage,
        typer.Argument(
            metavar="STAGE",
            help=f"One of {OWN}, which does all of them. Or tune a MODEL, and merge what was tuned into it.",
        ),
    ],
    preset: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|MODEL", help="nano, nano-dense, micro or small; to tune: a name, an address or a path."
        ),
    ] = "nano",
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[PART.NAME=VALUE]...", help="Changes to the preset.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: runs/PRESET or runs/tune-MODEL.")
    ] = None,
) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads make room for the kernels' own
    try:
        if stage in OF_OTHERS:
            from freedive.train.finetune.run import perform
        else:
            from freedive.train.run.stages import perform
    except ImportError as error:
        raise UserError(f"Training needs {error.name}", "Install it: pip install 'freedive[train]'") from None
    perform(stage, preset, settings or [], run)
