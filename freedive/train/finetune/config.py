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

    ``rank`` is that of LoRA's matrices, which count ``alpha`` / ``rank`` times; 0 trains the weights themselves.
    ``targets`` are names of train.finetune.targets.TARGETS, also with commas between them. Documents longer than
    ``context`` are cut into independent pieces. With ``merge`` the whole model is written at the end.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "ffn", "experts")
    context: int = 512
    merge: bool = True

    @property
    def target_names(self) -> list[str]:
        """The targets one by one."""
        return [part.strip() for text in self.targets for part in text.split(",")]


@dataclass(frozen=True)
class Texts:
    """``text``: files or folders of JSONL, Parquet or plain text. ``held_out`` of the documents are for evaluation."""

    text: tuple[str, ...] = ()
    held_out: float = 0.05


@dataclass(frozen=True)
class FinetuneRun:
    """Everything that fine-tuning depends on; ``model`` is what freedive loads by that name.

    ``precision`` as in train.run.config.Run.
    """

    model: str
    tune: FinetuneStage
    data: Texts = field(default_factory=Texts)
    precision: str = "auto"


def finetune_run(model: str, settings: Sequence[str] = ()) -> FinetuneRun:
    """The preset for ``model`` with dotted ``settings``. UserError names what is unknown or of a wrong kind."""
    values = preset_values(TUNE, settings)
    if "model" in values:
        raise UserError(f"The model is {model}, and no setting", "Set parts of tune and data")
    return typing.cast(FinetuneRun, build(FinetuneRun, {"model": model, **values}, ""))


def read_run(path: Path) -> FinetuneRun:
    """What config.save has written."""
    return typing.cast(FinetuneRun, build(FinetuneRun, json.loads(path.read_text("utf-8")), ""))
