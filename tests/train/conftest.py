"""Fixtures of the training tests: a run that takes about a second per stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from others import SENTENCES
from tiny_run import TINY

from freedive.train.data.chat_tokenizer import train_tokenizer
from freedive.train.run.stages import perform

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    perform("speedrun", "nano", TINY, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(SENTENCES, 300, folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Any:
    """Returns a function that makes the folder of a tiny model with a tokenizer, once per model."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_models.maker_model(name, vocab_size=300).save_pretrained(made[name])
            for file in tokenizer_folder.iterdir():
                shutil.copy(file, made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"Say {n}: {said}"}, {"role": "assistant", "content": said}]}
        for n in range(6)
        for said in SENTENCES
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
