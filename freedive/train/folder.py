"""A run: where it keeps what, and what its stages share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from freedive.errors import UserError
from freedive.model import spec
from freedive.model.families import describe_config
from freedive.text.tokenizer import Tokenizer
from freedive.train import checkpoints
from freedive.train.config import Run, Stage
from freedive.train.data_files import fingerprint
from freedive.train.net import Weights
from freedive.train.progress import go_through
from freedive.train.rollouts import say
from freedive.train.settings import Json
from freedive.train.shards import Shards
from freedive.train.trainer import Trainer, start
from freedive.train.words import Words

PRETRAIN, SFT, RL, CONTROL, DISTILL = "pretrain", "sft", "rl", "control", "distill"
NEWEST_FIRST = (DISTILL, RL, SFT, PRETRAIN)
"""Stages whose weights others go on from."""

ASKED = "Tell me a story about a lost ball."
"""What is asked now and then while chats are learned."""


@dataclass(frozen=True)
class Folder:
    """Where a run keeps what."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def vocabulary(self) -> Path:
        return self.tokenizer / "tokenizer.json"

    def data(self, stage: str, held_out: bool = False) -> Path:
        return self.root / "data" / f"{stage}{'-held-out' if held_out else ''}"

    def checkpoints(self, stage: str) -> Path:
        return self.root / "checkpoints" / stage

    @property
    def sources(self) -> Path:
        """What the files looked like that the data was made of."""
        return self.root / "sources.json"

    def remember(self, paths: Sequence[str]) -> None:
        """Keep what the files of data look like, now that they have been read."""
        write_json(self.sources, fingerprint(paths))

    def refuse_changed(self, paths: Sequence[str]) -> None:
        """UserError if files of data have changed since they were read. Those that are gone are not needed anymore."""
        if not self.sources.exists():
            return
        known = json.loads(self.sources.read_text("utf-8"))
        for path, (*_, content) in fingerprint(paths, known).items():
            if path not in known or known[path][-1] != content:
                raise UserError(
                    f"{path} is not what {self.root} has read", "Name a new folder with --run, or put the file back"
                )

    @property
    def answers(self) -> Path:
        """What a teacher has said."""
        return self.root / "answers.jsonl"

    def metrics(self, stage: str) -> Path:
        return self.root / f"{stage}.jsonl"

    @property
    def model(self) -> Path:
        return self.root / "model"


@dataclass(frozen=True)
class Bench:
    """A run at work: its settings, its folder, and a way to tell the user."""

    run: Run
    folder: Folder
    say: Callable[[str], None] = print

    def words(self) -> Words:
        if not self.folder.vocabulary.exists():
            raise UserError("There is no tokenizer yet", "Learn it first: freedive train tokenizer")
        return Words(Tokenizer.from_folder(self.folder.tokenizer))

    def hub_config(self) -> Json:
        words = self.words()
        return self.run.model.hub_config(words.end, words.bos)

    def model(self) -> spec.Model:
        model = describe_config(self.hub_config())
        return replace(model, mtp=model.layers[-1]) if self.run.model.mtp else model

    def shards(self, stage: str, held_out: bool = False) -> Shards:
        return Shards(self.folder.data(stage, held_out), self.folder.vocabulary)

    def has(self, stage: str) -> bool:
        """Whether ``stage`` has left weights."""
        return checkpoints.newest(self.folder.checkpoints(stage)) is not None

    def supervised(self, name: str, stage: Stage, given: dict[str, Tensor] | None) -> None:
        """Train on the shards of the stage ``name``, from the weights ``given`` or from random ones."""
        model, folder = self.model(), self.folder
        words, weights = self.words(), start(model, stage.seed, given)
        prompt = words.opening() if name == PRETRAIN else words.question(ASKED)

        def speak(weights: Weights) -> str:
            return words.tokenizer.decode(say(model, weights, prompt, words.end, stage.seed))

        trainer = Trainer(model, stage, self.shards(name), folder.checkpoints(name), weights, speak)
        trainer.resume()
        go_through(trainer, name, folder.metrics(name))

    def trained(self, *stages: str) -> dict[str, Tensor]:
        """The weights that the first of ``stages`` has left which has any."""
        for stage in stages:
            if path := checkpoints.newest(self.folder.checkpoints(stage)):
                return dict(checkpoints.load(path).weights)
        raise UserError("There are no trained weights yet", f"Train them first: freedive train {stages[-1]}")


def write_json(path: Path, values: Json) -> None:
    """As a person can read it."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
