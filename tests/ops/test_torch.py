"""torch = reference on every synthetic description; its gradients equal finite differences and
transformers' gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from descriptions import DESCRIPTIONS, EXPERTS, VOCAB, Floats, weights
from tiny_models import TINY, Schedule, maker_model, prompt, take_steps, tiny

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.families import describe
from freedive.model import spec
from freedive.model.batch import Batch
from freedive.model.decoder import forward
from freedive.model.params import params
from freedive.ops.reference import ReferenceOps, ReferenceRunner
from freedive.ops.reference_states import SlotStates
from freedive.ops.torch import TorchOps, TorchRunner

Tensors = dict[str, torch.Tensor]

PROMPTS = [prompt(50, vocab=VOCAB), prompt(33, seed=1, vocab=VOCAB), prompt(33, seed=2, vocab=VOCAB)]
TABLES = [[5, 0], [1, 2], [4, 3]]
WHOLE: Schedule = [[(0, 50), (1, 33), (2, 33)]]
SCHEDULES: dict[str, Schedule] = {
    "whole": WHOLE,
    "uneven chunks": [[(0, 31)], [(1, 20), (2, 33)], [(0, 1), (1, 13)], [(0, 18)]],
    "token by token": [[(0, 38), (1, 21), (2, 21)], *[[(0, 1), (1, 1), (2, 1)]] * 12],
}
LATENT = [name for name in DESCRIPTIONS if "latent" in name or name == "groups by their best two"]


def tensors(described: spec.ModelSpec, dtype: torch.dtype = torch.float32) -> Tensors:
    return {name: torch.tensor(value, dtype=dtype) for name, value in weights(described).items()}


def loss(logits: torch.Tensor, tokens: npt.ArrayLike) -> torch.Tensor:
    """Returns the mean loss over all rows of predicting each row's own token."""
    return torch.nn.functional.cross_entropy(logits, torch.tensor(tokens).long())


def gradient(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


ROUNDING = 3e-4
"""The largest difference of a logit in float32 from float64, which depends on the order of sums in a library."""


@cache
def reference(name: str) -> list[Floats]:
    runner = ReferenceRunner(DESCRIPTIONS[name], weights(DESCRIPTIONS[name]), num_pages=6)
    return take_steps(runner, PROMPTS, WHOLE, TABLES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_torch_equals_reference(name: str, schedule: str) -> None:
    held = tensors(DESCRIPTIONS[name], torch.float64)
    runner = TorchRunner(DESCRIPTIONS[name], held, num_pages=6)
    for got, expected in zip(take_steps(runner, PROMPTS, SCHEDULES[schedule], TABLES), reference(name), strict=True):
        np.testing.assert_allclose(got, expected, atol=ROUNDING)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", LATENT)
def test_absorbed_equals_expanded(name: str, schedule: str) -> None:
    runner = TorchRunner(DESCRIPTIONS[name], tensors(DESCRIPTIONS[name]), num_pages=6, absorbed=True)
    for got, expected in zip(take_steps(runner, PROMPTS, SCHEDULES[schedule], TABLES), reference(name), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_pass_without_a_cache_is_the_same(name: str) -> None:
    logits = forward(
        DESCRIPTIONS[name], tensors(DESCRIPTIONS[name], torch.float64), TorchOps(Batch.whole(PROMPTS, wants_all=True))
    )
    np.testing.assert_allclose(logits, np.concatenate(reference(name)), atol=ROUNDING)


@pytest.mark.parametrize("name", TINY)
def test_torch_equals_transformers(name: str) -> None:
    model = tiny(name)
    held = {key: torch.tensor(value) for key, value in model.weights.items()}
    results = take_steps(TorchRunner(model.spec, held, num_pages=6), PROMPTS, SCHEDULES["uneven chunks"], TABLES)
    for got, tokens in zip(results, PROMPTS, strict=True):
        np.testing.assert_allclose(got, model.maker_logits(tokens), atol=1e-4)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_gradients_are_the_slope(name: str) -> None:
    described, batch = (
        DESCRIPTIONS[name],
        Batch.whole([*(tokens[:20] for tokens in PROMPTS[1:]), PROMPTS[0][:11]], wants_all=True),
    )
    at = tensors(described, torch.float64)
    generator = torch.Generator().manual_seed(0)
    along = {key: torch.randn(value.shape, generator=generator, dtype=value.dtype) for key, value in at.items()}

    def loss_at(distance: torch.Tensor) -> torch.Tensor:
        moved = {key: at[key] + distance * along[key] for key in at}
        return loss(forward(described, moved, TorchOps(batch)), batch.tokens)

    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_at(zero), zero)
    step = torch.tensor(1e-7, dtype=torch.float64)  # too short to change a clipped value or a route
    with torch.no_grad():
        expected = (loss_at(step) - loss_at(-step)) / (2 * step)
    assert abs(slope.item() / expected.item() - 1) < 1e-6


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_weight_but_the_choice_bias_has_a_gradient(name: str) -> None:
    described = DESCRIPTIONS[name]
    held = {key: value.requires_grad_() for key, value in tensors(described).items()}
    logits = forward(described, held, TorchOps(Batch.whole(PROMPTS, wants_all=True)))
    loss(logits, np.concatenate(PROMPTS)).backward()
    still = {key for key, value in held.items() if not gradient(value).any()}
    assert {key for key in still if ".experts." not in key} == {key for key in held if key.endswith("choice_bias")}


def maker_gradients(name: str, prompts: list[list[int]], folder: Path) -> dict[str, Floats]:
    """Returns transformers' gradients of the mean loss over all tokens, by canonical name.

    They replace the weights in the model, and are read back from the file that it is saved in.
    """
    maker = maker_model(name)
    logits = torch.cat([maker(torch.tensor([tokens])).logits[0] for tokens in prompts])
    loss(logits, np.concatenate(prompts)).backward()
    with torch.no_grad():
        for value in maker.state_dict(keep_vars=True).values():
            value.copy_(gradient(value))
    maker.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    tensors = canonical_tensors(checkpoint, *describe(checkpoint))
    return {key: dequantize(tensor).copy() for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    held = {key: torch.tensor(value, requires_grad=True) for key, value in model.weights.items()}
    logits = forward(model.spec, held, TorchOps(Batch.whole(PROMPTS, wants_all=True)))
    loss(logits, np.concatenate(PROMPTS)).backward()
    for key, expected in maker_gradients(name, PROMPTS, tmp_path).items():
        np.testing.assert_allclose(gradient(held[key]), expected, atol=1e-4 * np.abs(expected).max(), err_msg=key)


class Replay(TorchOps):
    """Operations with given routes, layer by layer."""

    def __init__(self, batch: Batch, choices: list[torch.Tensor]) -> None:
        super().__init__(batch)
        self._choices = iter(choices)

    def choose(self, merit: torch.Tensor, router: spec.Router) -> torch.Tensor:
        return next(self._choices)


class Record(TorchOps):
    """Operations that record the routes."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.choices: list[torch.Tensor] = []

    def choose(self, merit: torch.Tensor, router: spec.Router) -> torch.Tensor:
        self.choices.append(super().choose(merit, router))
        return self.choices[-1]


def test_routes_can_be_recorded_and_replayed() -> None:
    described, batch = EXPERTS["experts by softmax"], Batch.whole(PROMPTS, wants_all=True)
    listen = Record(batch)
    logits = forward(described, tensors(described), listen)
    assert [chosen.shape for chosen in listen.choices] == [(116, 2)] * 2
    torch.testing.assert_close(forward(described, tensors(described), Replay(batch, listen.choices)), logits)
    others = [(chosen + 1) % 6 for chosen in listen.choices]
    assert (forward(described, tensors(described), Replay(batch, others)) - logits).abs().max() > 0.1


ROUTERS = {
    name: (model, layer.ffn.router)
    for name, model in EXPERTS.items()
    for layer in model.layers
    if isinstance(layer.ffn, spec.Experts)
}


@pytest.mark.parametrize("name", ROUTERS)
def test_of_equal_experts_the_first_are_chosen(name: str) -> None:
    (model, router), batch = ROUTERS[name], Batch.whole([[0]], wants_all=True)
    logits = np.random.default_rng(0).integers(-1, 2, (200, router.num_experts)).astype(np.float32)
    chosen, shares = TorchOps(batch).route(torch.tensor(logits), router, None, None)
    expected = ReferenceOps(batch, [], SlotStates(model, 1)).route(logits, router, None, None)
    np.testing.assert_array_equal(chosen, expected.experts)
    np.testing.assert_allclose(shares, expected.weights, atol=1e-6)


def mixed(described: spec.ModelSpec) -> Tensors:
    """Returns matrices in bfloat16, and routers, norms and biases in float32."""
    return {
        name: value.bfloat16() if params(described)[name].role in ("linear", "embedding", "heads") else value
        for name, value in tensors(described).items()
    }


@pytest.mark.parametrize("name", ["sinks", "soft caps", "latents", "norms on odd heads", "gelu", "every expert"])
def test_bfloat16_is_near(name: str) -> None:
    logits = forward(DESCRIPTIONS[name], mixed(DESCRIPTIONS[name]), TorchOps(Batch.whole(PROMPTS, wants_all=True)))
    assert logits.dtype == torch.bfloat16
    expected = np.concatenate(reference(name))
    assert (logits.float().numpy() - expected).std() < 0.05 * expected.std()
