"""Fine-tuning what others trained: as transformers computes it, with an adapter that PEFT would apply the same way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from tiny_configs import TINY
from tiny_models import maker_class

import freedive
from freedive.checkpoint.rules import maker_tensors
from freedive.engine.batch import Batch
from freedive.errors import UserError
from freedive.model.params import params
from freedive.ops.torch import TorchRunner
from freedive.train import config, tune
from freedive.train.base import Base, open_base
from freedive.train.export import canonical
from freedive.train.lora import TuneOps, Tuned, adapters
from freedive.train.net import Sequences, Weights, losses, stacked_params, unstacked
from freedive.train.parts import PARTS, chosen, counts
from freedive.train.words import train_tokenizer

FAMILIES = (
    *("llama", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "gemma2", "gemma3"),
    *("granitemoeshared", "granite_swa", "ernie4_5", "ernie4_5_moe", "llama4", "mixtral"),
)
"""All kinds of attention, experts and heads."""

SENTENCES = ("The boat is red.", "A diver sees a fish.", "Fish are quick and boats are slow.", "Red is a colour.")
SETTINGS = [
    *("tune.steps=6", "tune.step_tokens=128", "tune.micro_tokens=64", "tune.context=32", "tune.lr=3e-2"),
    *("tune.save_every=2", "tune.rank=4", "data.held_out=0.2"),
]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer for the tiny vocabularies... of 300 tokens."""
    folder = tmp_path_factory.mktemp("words")
    train_tokenizer(SENTENCES, 300, folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Any:
    """Makes the folder of a tiny model with a tokenizer, once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny_models.maker_model(name, vocab_size=300).save_pretrained(made[name])
            for file in words.iterdir():
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


def theirs(folder: Path, name: str) -> Any:
    model = maker_class(name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def batch(num: int = 2, length: int = 24) -> Sequences:
    source = np.random.default_rng(5)
    tokens, shares = source.integers(3, 300, (num, length + 1)), source.random((num, length), np.float32)
    return Sequences(tokens[:, :-1].copy(), tokens[:, 1:].copy(), shares)


def their_loss(model: Any, given: Sequences) -> torch.Tensor:
    logits = model(torch.from_numpy(given.tokens)).logits.flatten(0, 1)
    targets, shares = torch.from_numpy(given.targets).flatten(), torch.from_numpy(given.weights).flatten()
    return (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * shares).sum()


def our_loss(base: Base, weights: Mapping[str, Any], given: Sequences) -> torch.Tensor:
    return losses(base.model, weights, given, TuneOps(given.tokens))


def names_of_theirs(base: Base, weights: Weights) -> dict[str, torch.Tensor]:
    """Gradients, or weights, under the names of the folder."""
    named = maker_tensors(canonical(weights), base.hub_rules)
    return {
        name: torch.from_numpy(tensor.data.view(np.float32).reshape(tensor.shape).copy())
        for name, tensor in named.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(name: str, folders: Any, tmp_path: Path) -> None:
    base, maker, given = open_base(str(folders(name))), theirs(folders(name), name), batch()
    weights = base.weights()
    for name_, weight in weights.items():
        weight.requires_grad_(not name_.endswith("choice_bias"))
    ours, expected = our_loss(base, weights, given), their_loss(maker, given)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
    ours.backward()
    expected.backward()
    moved = maker_step(maker)
    maker.save_pretrained(tmp_path)  # so that gradients go by the names of the folder, however modules hold weights
    after = open_base_weights(tmp_path, folders(name))
    for each, weight in weights.items():
        if weight.grad is None:
            continue
        found = (weight.detach() - after[each]) / moved
        torch.testing.assert_close(found, weight.grad, rtol=2e-2, atol=2e-3 * float(weight.grad.abs().max() + 1e-3))


def maker_step(maker: Any) -> float:
    """One step down their gradients; its length."""
    with torch.no_grad():
        for parameter in maker.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    return 1.0


def open_base_weights(folder: Path, text: Path) -> Weights:
    for path in text.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return open_base(str(folder)).weights()


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_change_nothing_at_first_and_merge_to_what_they_compute(name: str, folders: Any) -> None:
    base, given = open_base(str(folders(name))), batch()
    weights, table = base.weights(), stacked_params(base.model)
    targets = [part for part in PARTS if part != "norms" and not (part == "head" and base.model.tied)]
    present = {count.part for count in counts(base.model, {})}
    wanted = chosen(base.model, [part for part in targets if part in present], low_rank=True)
    trained = adapters(wanted, 4, seed=0)
    tuned = Tuned(table, weights, trained, 2.0)
    plain = our_loss(base, weights, given)
    assert torch.equal(our_loss(base, tuned, given), plain)
    for value in trained.values():
        value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        value.requires_grad_()
    changed = our_loss(base, tuned, given)
    changed.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained.values())
    torch.testing.assert_close(our_loss(base, tuned.merge(), given), changed, rtol=1e-3, atol=1e-2)
    assert not torch.equal(plain, changed)
