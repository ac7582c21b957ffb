"""The settings of fine-tuning: the preset ``tune``, changed by dotted settings such as ``tune.rank=16``."""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from freedive.errors import UserError
from freedive.train.run.config import TUNE, Stage, preset_values
from freedive.train.run.settings import build


@dataclass(frozen=True)
class FinetuneStage(Stage):
    """How an existing model is fine-tuned.

    ``rank`` is the rank of LoRA's matrices, which are scaled by ``alpha`` / ``rank``; 0 trains the weights themselves.
    ``targets`` are names of train.finetune.targets.TARGETS, separate or joined by commas. Documents longer than
    ``context`` tokens are cut into independent chunks. ``merge`` writes the whole model at the end.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "ffn", "experts")
    context: int = 512
    merge: bool = True

    @property
    def target_names(self) -> list[str]:
        """The names of the targets, one per item."""
        return [part.strip() for text in self.targets for part in text.split(",")]


@dataclass(frozen=True)
class Texts:
    """The user's texts: ``text`` names files or folders of JSONL, Parquet or plain text; ``held_out`` is a share of
    them."""

    text: tuple[str, ...] = ()
    held_out: float = 0.05


@dataclass(frozen=True)
class FinetuneRun:
    """All settings of a fine-tuning run; ``model`` is a name, address or path that freedive loads.

    ``precision`` is as in train.run.config.Run.
    """

    model: str
    tune: FinetuneStage
    data: Texts = field(default_factory=Texts)
    precision: str = "auto"


def finetune_run(model: str, settings: Sequence[str] = ()) -> FinetuneRun:
    """Returns the preset for ``model`` with dotted ``settings``.

    Raises UserError for an unknown one or one of a wrong type.
    """
    values = preset_values(TUNE, settings)
    if "model" in values:
        raise UserError(f"The model is {model}, and no setting", "Set parts of tune and data")
    return typing.cast(FinetuneRun, build(FinetuneRun, {"model": model, **values}, ""))


def read_run(path: Path) -> FinetuneRun:
    """Reads a file that config.write_run has written."""
    return typing.cast(FinetuneRun, build(FinetuneRun, json.loads(path.read_text("utf-8")), ""))
