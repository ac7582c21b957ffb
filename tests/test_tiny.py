"""The basics, in seconds: a model is opened, answers, is served, reuses a prefix, and learns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest
from echo_model import serving

import freedive
from freedive.checkpoint.open import open_checkpoint
from freedive.families import describe, describe_config
from freedive.hub.sources import resolve
from freedive.text.request import ChatInput
from freedive.train.data.tasks import tasks
from freedive.train.run import config

QUESTION = [{"role": "user", "content": "How much is 12 + 30?"}]
MICRO = config.preset("micro", ["model.num_layers=2", "model.num_experts=8"]).model


@pytest.fixture(scope="module")
def nano() -> Iterator[freedive.LanguageModel]:
    with freedive.load("nano", cache_tokens=2048) as model:
        yield model


def greedy(model: freedive.LanguageModel, question: str) -> str:
    return "".join(model.chat([{"role": "user", "content": question}], temperature=0)).strip()


def test_greedy_answers_are_mostly_right(nano: freedive.LanguageModel) -> None:
    asked = list(islice(tasks(11, held_out=True), 6))
    assert sum(greedy(nano, task.question) == task.answer for task in asked) >= 3


def test_chat_request_is_answered_over_http_as_in_process(nano: freedive.LanguageModel) -> None:
    body = {"model": nano.name, "messages": QUESTION, "temperature": 0}
    with serving(nano) as url:
        (choice,) = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()["choices"]
    assert choice["message"]["content"].strip() == greedy(nano, QUESTION[0]["content"]) != ""
    assert choice["finish_reason"] == "stop"


def test_prefix_hit_changes_no_token(nano: freedive.LanguageModel) -> None:
    question = {"role": "user", "content": "Tell me a story about a lost ball. " * 8}
    tokens = nano.prepare(ChatInput((question,))).tokens
    answers, found = [], []
    for _ in range(2):
        generation = nano.engine.submit(tokens, nano.sampling(max_tokens=8, temperature=0, ignore_eos=True))
        answers.append([token for output in generation for token in output.token_ids])
        found.append(generation.num_cached_tokens)
    assert found[0] == 0
    assert found[1] >= 32
    assert len(answers[0]) == 8
    assert answers[0] == answers[1]


def test_gguf_file_is_opened_and_described() -> None:
    checkpoint = open_checkpoint(resolve("nano"))
    described, _ = describe(checkpoint)
    assert described.vocab_size == checkpoint.tensors["token_embd.weight"].shape[0]


def test_training_step_lowers_the_loss_and_its_safetensors_are_opened(tmp_path: Path) -> None:
    from freedive.train.data.chat_tokenizer import train_tokenizer
    from freedive.train.data.sequences import Sequences
    from freedive.train.model.export import export_folder
    from freedive.train.model.net import initial, losses, stacked_params
    from freedive.train.model.ops import TrainOps
    from freedive.train.model.optim import Optimizer
    from freedive.train.run.trainer import update

    model = describe_config(MICRO.hub_config(1, 0))
    weights = {name: value.requires_grad_() for name, value in initial(model, seed=1).items()}
    tokens = np.random.default_rng(2).integers(0, MICRO.vocab_size, 33)
    batch = Sequences.of([(tokens, np.full(33, 1 / 32, np.float32))])
    optimizer = Optimizer(weights, stacked_params(model), 0.1)
    seen = []
    for _ in range(2):
        loss = losses(model, weights, batch, TrainOps(batch))
        loss.backward()
        update(weights, optimizer, 1e-2, 1.0)
        seen.append(float(loss.detach()))
    assert seen[1] < seen[0] - 0.1

    train_tokenizer(["some text"], 512, tmp_path / "tokenizer")
    export_folder(model, MICRO.hub_config(1, 0), weights, tmp_path / "tokenizer", tmp_path / "model")
    assert describe(open_checkpoint(tmp_path / "model"))[0] == model
