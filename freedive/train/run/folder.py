"""The folder of a training run: the paths of its settings, data, checkpoints and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.train.data.data_files import fingerprint


@dataclass(frozen=True)
class RunFolder:
    """The paths of a training run's files."""

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
        """The file with size, time and hash of each file that the data was made from."""
        return self.root / "sources.json"

    def remember(self, paths: Sequence[str]) -> None:
        """Records size, time and hash of the data files after they were read."""
        write_json(self.sources, fingerprint(paths))

    def refuse_changed(self, paths: Sequence[str]) -> None:
        """Raises UserError if a data file has changed since it was read; a deleted file is accepted."""
        if not self.sources.exists():
            return
        recorded = json.loads(self.sources.read_text("utf-8"))
        for path, (*_, content) in fingerprint(paths, recorded).items():
            if path not in recorded or recorded[path][-1] != content:
                raise UserError(
                    f"{path} is not what {self.root} has read", "Name a new folder with --run, or put the file back"
                )

    @property
    def answers(self) -> Path:
        """The file of the teacher's replies."""
        return self.root / "answers.jsonl"

    def metrics(self, stage: str) -> Path:
        return self.root / f"{stage}.jsonl"

    @property
    def model(self) -> Path:
        return self.root / "model"


def write_json(path: Path, values: Json) -> None:
    """Writes a JSON file with indentation."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
