"""A run so small that it takes a second a stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from others import SENTENCES

from freedive.train.data.chat_tokenizer import train_tokenizer
from freedive.train.model import kernels
from freedive.train.run.stages import perform

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with exact products; a run may round them on machines that do so fast."""
    monkeypatch.setattr(kernels, "_precision", kernels.FLOAT32)


TINY = [
    *("model.vocab_size=600", "model.hidden_dim=64", "model.num_layers=3", "model.num_heads=2", "model.q_rank=32"),
    *("model.kv_rank=32", "model.dense_dim=128", "model.num_experts=8", "model.num_chosen=2", "model.expert_dim=32"),
    *(
        "model.max_context=64",
        "data.num_stories=400",
        "data.num_solutions=100",
        "data.num_chats=200",
        "data.num_conversations=100",
        "data.held_out=0.05",
    ),
    *(
        "pretrain.steps=30",
        "pretrain.lr=1e-2",
        "pretrain.step_tokens=512",
        "pretrain.micro_tokens=256",
        "pretrain.save_every=10",
    ),
    *("sft.steps=10", "sft.step_tokens=512", "sft.micro_tokens=512", "sft.save_every=5"),
    *("data.num_tasks=300", "rl.steps=2", "rl.num_prompts=4", "rl.num_samples=4", "rl.num_eval=4"),
]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    perform("speedrun", "nano", TINY, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(SENTENCES, 300, folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Any:
    """Makes the folder of a tiny model with a tokenizer, once."""
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
