"""The decoder in training: loss and gradients as in transformers, and the balance of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from freedive.families import describe_config
from freedive.train.data.chat_tokenizer import train_tokenizer
from freedive.train.data.sequences import Sequences
from freedive.train.model import kernels
from freedive.train.model.export import export_folder
from freedive.train.model.net import Weights, initial, losses, mixtures, stacked, stacked_params, unstacked
from freedive.train.model.ops import TrainOps
from freedive.train.run import config

SETTINGS = ["model.hidden_dim=64", "model.num_layers=3", "model.dense_dim=96", "model.vocab_size=512"]
SHAPE = config.preset("nano", SETTINGS).model
MODEL = describe_config(SHAPE.hub_config(1, 0))


def weights() -> Weights:
    made = initial(MODEL, seed=3)
    source = torch.Generator().manual_seed(4)
    for name, value in made.items():
        if name.endswith(("norm", "choice_bias")):
            value += 0.1 * torch.randn(value.shape, generator=source)
    return {name: value.requires_grad_() for name, value in made.items()}


def batch(num: int = 3, length: int = 40) -> Sequences:
    tokens = np.random.default_rng(5).integers(0, SHAPE.vocab_size, (num, length + 1))
    shares = np.random.default_rng(6).random((num, length + 1), np.float32)
    return Sequences.of(list(zip(tokens, shares, strict=True)))


def test_loss_and_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    held, given = weights(), batch()
    train_tokenizer(["some text"], 512, tmp_path / "tokenizer")
    export_folder(MODEL, SHAPE.hub_config(1, 0), held, tmp_path / "tokenizer", tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    logits = theirs(torch.from_numpy(given.tokens).view(len(given.lengths), -1)).logits.flatten(0, 1)
    shares = torch.from_numpy(given.weights)
    every = torch.nn.functional.cross_entropy(logits, torch.from_numpy(given.targets), reduction="none")
    (every * shares).sum().backward()
    ours = losses(MODEL, held, given, TrainOps(given))
    ours.backward()
    torch.testing.assert_close(ours, (every * shares).sum(), rtol=1e-5, atol=1e-4)
    parameters = dict(theirs.named_parameters())
    pairs = {
        "embed": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "layers.1.attn.q_a": "model.layers.1.self_attn.q_a_proj.weight",
        "layers.2.ffn.router": "model.layers.2.mlp.gate.weight",
        "layers.2.ffn.shared.up": "model.layers.2.mlp.shared_experts.up_proj.weight",
        "layers.1.ffn.experts.down": "model.layers.1.mlp.experts.down_proj",
    }
    for name, their_name in pairs.items():
        torch.testing.assert_close(held[name].grad, parameters[their_name].grad, rtol=1e-3, atol=1e-5)


def test_the_gradient_does_not_depend_on_micro_batches() -> None:
    held, given = weights(), batch()
    gradients = []
    for num_tokens in (120, 40):
        for value in held.values():
            value.grad = None
        for part in given.split(num_tokens):
            losses(MODEL, held, part, TrainOps(part)).backward()
        gradients.append({name: value.grad for name, value in held.items() if value.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_replayed_routes_are_used() -> None:
    held, given = weights(), batch()
    first = TrainOps(given)
    expected = losses(MODEL, held, given, first)
    with torch.no_grad():
        held["layers.1.ffn.choice_bias"] += torch.randn(SHAPE.num_experts)
    again = TrainOps(given, replay=first.chosen)
    assert torch.equal(losses(MODEL, held, given, again), expected)
    assert not torch.equal(losses(MODEL, held, given, TrainOps(given)), expected)


def test_the_balance_loss_is_least_where_experts_share_evenly() -> None:
    held, given = weights(), batch()
    ops = TrainOps(given)
    losses(MODEL, held, given, ops)
    assert len(ops.balance) == len(mixtures(MODEL)) == 2
    with torch.no_grad():
        held["layers.1.ffn.router"].zero_()  # equal scores: all tokens choose the same experts
        held["layers.2.ffn.router"].zero_()
    even = TrainOps(given)
    losses(MODEL, held, given, even)
    assert [value.item() for value in even.balance] == pytest.approx([1.0, 1.0])


def test_every_canonical_weight_is_there_once() -> None:
    from freedive.model.params import params

    names = [name for name, _ in unstacked(initial(MODEL, 0))]
    assert sorted(names) == sorted(params(MODEL))
    assert stacked_params(MODEL)["layers.1.ffn.experts.up"].shape == (16, 128, 64)


@pytest.mark.parametrize("name", ["mimo_v2_flash", "step3p7"])
def test_values_of_another_width_and_late_clamps_have_transformers_loss(name: str) -> None:
    from tiny_models import tiny

    made = tiny(name)
    tokens = np.random.default_rng(1).integers(0, made.spec.vocab_size, 40)
    given = Sequences.of([(tokens, np.ones(40, np.float32))])
    held = stacked({key: torch.from_numpy(value) for key, value in made.weights.items()})
    with torch.no_grad():
        ours = losses(made.spec, held, given, TrainOps(given))
    logits = torch.from_numpy(made.maker_logits(tokens[:-1].tolist()))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[1:]), reduction="sum")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_the_mtp_loss_is_that_of_the_paper() -> None:
    """Compares with section 2.2 of DeepSeek-V3's report, computed with transformers' layers (tests/tiny_mtp.py)."""
    from tiny_mtp import with_mtp

    made = with_mtp("deepseek_v3")
    tokens = np.random.default_rng(1).integers(0, made.spec.vocab_size, 20)
    given = Sequences.of([(tokens, np.ones(20, np.float32))])
    held = stacked({name: torch.from_numpy(value) for name, value in made.weights.items()})
    with torch.no_grad():
        ops = TrainOps(given)
        both = losses(made.spec, held, given, ops, mtp_share=0.5)
        plain = losses(made.spec, held, given, TrainOps(given))
    logits = made.expected(tokens[:-2].tolist(), tokens[1:-1].tolist())
    further = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(tokens[2:]), reduction="sum")
    assert len(ops.chosen) == len(mixtures(made.spec))
    torch.testing.assert_close(both - plain, 0.5 * further, rtol=1e-4, atol=1e-4)


def test_factors_of_bfloat16_hardly_change_gradients() -> None:
    def made(precision: str) -> tuple[float, list[torch.Tensor], dict[str, torch.Tensor]]:
        held, given = weights(), batch()
        ops = TrainOps(given, precision=precision)
        loss = losses(MODEL, held, given, ops)
        loss.backward()
        return loss.item(), ops.chosen, {name: weight.grad for name, weight in held.items() if weight.grad is not None}

    (exact, chosen, expected), (rounded, others, got) = made(kernels.FLOAT32), made(kernels.BFLOAT16)
    assert 0 < abs(rounded / exact - 1) < 1e-3
    assert all(
        (one.sort().values == other.sort().values).float().mean() > 0.9
        for one, other in zip(chosen, others, strict=True)
    )
    for name, gradient in expected.items():
        assert torch.cosine_similarity(gradient.flatten(), got[name].flatten(), dim=0) > 0.99, name


def test_routers_are_exact_whatever_the_precision() -> None:
    x, weight = torch.randn(5, 64), torch.randn(16, 64)
    exact = (x.double() @ weight.double().T).float()
    ops = TrainOps(batch(), precision=kernels.BFLOAT16)
    torch.testing.assert_close(ops.router_logits(x, weight, None), exact)
    assert not torch.allclose(ops.linear(x, weight, None), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nano", "nano-dense", "micro", "small"])
def test_presets_are_models(name: str) -> None:
    shape = config.preset(name).model
    model = describe_config(shape.hub_config(1, 0))
    assert len(model.layers) == shape.num_layers
    assert len(mixtures(model)) == (shape.num_layers - 1 if shape.num_experts else 0)
