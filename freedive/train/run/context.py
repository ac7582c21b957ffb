"""What the stages of a training run share: its settings, its folder, its tokenizer, model and trained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.json_object import Json
from freedive.model import spec
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.chat_tokenizer import ChatTokenizer
from freedive.train.data.shards import Shards
from freedive.train.model.net import Weights
from freedive.train.rl.rollouts import sample_text
from freedive.train.run import checkpoints
from freedive.train.run.config import Run, Stage
from freedive.train.run.folder import RunFolder
from freedive.train.run.progress import run_steps
from freedive.train.run.trainer import Trainer, start

PRETRAIN, SFT, RL, CONTROL, DISTILL = "pretrain", "sft", "rl", "control", "distill"


NEWEST_FIRST = (DISTILL, RL, SFT, PRETRAIN)
"""Stages whose weights other stages continue from, the latest first."""


ASKED = "Tell me a story about a lost ball."
"""The prompt of the samples during fine-tuning."""


@dataclass(frozen=True)
class RunContext:
    """A training run: its settings, its folder, and the function that prints messages."""

    run: Run
    folder: RunFolder
    say: Callable[[str], None] = print

    def chat_tokenizer(self) -> ChatTokenizer:
        if not self.folder.vocabulary.exists():
            raise UserError("There is no tokenizer yet", "Learn it first: freedive train tokenizer")
        return ChatTokenizer(Tokenizer.from_folder(self.folder.tokenizer))

    def hub_config(self) -> Json:
        chat_tokenizer = self.chat_tokenizer()
        return self.run.model.hub_config(chat_tokenizer.end, chat_tokenizer.bos)

    def model(self) -> spec.ModelSpec:
        model = describe_config(self.hub_config())
        return replace(model, mtp=model.layers[-1]) if self.run.model.mtp else model

    def shards(self, stage: str, held_out: bool = False) -> Shards:
        return Shards(self.folder.data(stage, held_out), self.folder.vocabulary)

    def has(self, stage: str) -> bool:
        """Returns whether ``stage`` has a checkpoint."""
        return checkpoints.newest(self.folder.checkpoints(stage)) is not None

    def supervised(self, name: str, stage: Stage, given: dict[str, Tensor] | None) -> None:
        """Trains on the shards of the stage ``name``, from the weights ``given`` or from random ones."""
        model, folder = self.model(), self.folder
        chat_tokenizer, weights = self.chat_tokenizer(), start(model, stage.seed, given)
        prompt = chat_tokenizer.opening() if name == PRETRAIN else chat_tokenizer.user_prompt(ASKED)

        def speak(weights: Weights) -> str:
            return chat_tokenizer.tokenizer.decode(sample_text(model, weights, prompt, chat_tokenizer.end, stage.seed))

        trainer = Trainer(
            model, stage, self.shards(name), folder.checkpoints(name), weights, speak, precision=self.run.precision
        )
        trainer.resume()
        run_steps(trainer, name, folder.metrics(name))

    def trained(self, *stages: str) -> dict[str, Tensor]:
        """Returns the weights of the first of ``stages`` that has a checkpoint. Raises UserError if none has."""
        for stage in stages:
            if path := checkpoints.newest(self.folder.checkpoints(stage)):
                return dict(checkpoints.load(path).weights)
        raise UserError("There are no trained weights yet", f"Train them first: freedive train {stages[-1]}")
