"""``freedive train STAGE PRESET``: from raw text to a model that freedive serves."""

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
FINETUNING = ("tune", "merge")
"""Earlier names of the commands ``freedive finetune`` and ``freedive merge``."""
STAGES = ", ".join(stage for stage in get_args(Stage) if stage not in FINETUNING)
Settings = Annotated[list[str] | None, typer.Argument(metavar="[PART.NAME=VALUE]...", help="Changes to the preset.")]


def train(
    stage: Annotated[Stage, typer.Argument(metavar="STAGE", help=f"One of {STAGES}, which does all of them.")],
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="nano, nano-dense, micro or small.")] = "nano",
    settings: Settings = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/PRESET.")] = None,
) -> None:
    perform(stage, preset, settings or [], run)


def perform(stage: str, name: str, settings: list[str], run: Path | None) -> None:
    """Runs a stage of training or fine-tuning. Raises UserError if torch is missing."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's waiting threads leave the cores to the kernels
    try:
        if stage in FINETUNING:
            from freedive.train.finetune.run import perform
        else:
            from freedive.train.run.stages import perform
    except ImportError as error:
        raise UserError(f"Training needs {error.name}", "Install it: pip install 'freedive[train]'") from None
    perform(stage, name, settings, run)
