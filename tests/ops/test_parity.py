"""transformers = reference = torch = native on tiny random models, for any chunks of prompts and any batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY, Floats, Ints, Schedule, prompt, take_steps, tiny
from weights import BEST_LEVEL

from freedive.model.batch import Runner
from freedive.model.spec import DeltaRule, Experts
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner
from freedive.ops.torch import TorchRunner

PROMPTS = (prompt(70), prompt(41, seed=1))
TABLES = ((5, 1, 3), (0, 4))
"""The pages of both prompts, interleaved and out of order."""

MIXTURES = [name for name, (_, settings) in TINY.items() if any("experts" in key for key in settings)]

LONG = prompt(530, seed=2)
LONG_TABLE = tuple(np.random.default_rng(3).permutation(17).tolist())
"""A page table longer than two splits of attention (256 positions), with scattered pages."""

SCHEDULES: dict[str, Schedule] = {
    "whole": [[(0, 70)], [(1, 41)]],
    "two uneven chunks": [[(0, 33)], [(0, 37)], [(1, 40)], [(1, 1)]],
    "ragged batch": [[(0, 20), (1, 7)], [(1, 1), (0, 33)], [(0, 1), (1, 32)], [(0, 16)], [(1, 1)]],
    "token by token": [[(1, 1), (0, 1)]] * 41 + [[(0, 29)]],
}


def native(name: str, **options: Any) -> NativeRunner:
    model = tiny(name)
    return NativeRunner(
        model.spec, model.packed, num_threads=1, max_rows=len(LONG), num_pages=len(LONG_TABLE), **options
    )


def in_torch(name: str) -> TorchRunner:
    model = tiny(name)
    return TorchRunner(model.spec, {key: torch.from_numpy(values) for key, values in model.weights.items()})


@cache
def maker_logits(name: str, tokens: tuple[int, ...]) -> Floats:
    return tiny(name).maker_logits(tokens)


@cache
def maker_choices(name: str) -> list[Ints]:
    return tiny(name).maker_choices(PROMPTS[0])


Record = Callable[[str, object], None]


@pytest.fixture
def note(name: str, record_property: Record) -> Record:
    """Writes the results of the family ``name`` for docs/families.md."""

    def leave(kind: str, distance: object) -> None:
        for key, value in (("family", name), ("kind", kind), ("distance", distance)):
            record_property(key, value)

    return leave


def distance(runner: Runner, name: str, schedule: Schedule, given: list[int] | None = None) -> float:
    """Returns the largest difference of a logit from transformers'."""
    results = take_steps(runner, PROMPTS, schedule, TABLES, given)
    expected = [maker_logits(name, tuple(tokens)) for tokens in PROMPTS]
    return max(float(np.abs(a - b).max()) for a, b in zip(results, expected, strict=True))


def assert_equal(
    kind: str, note: Record, runner: Runner, name: str, schedule: str, given: list[int] | None = None
) -> None:
    found = distance(runner, name, SCHEDULES[schedule], given)
    note(kind, found)
    assert found < tolerance(name)


def tolerance(name: str) -> float:
    """transformers computes the delta rule by chunks of 64 tokens, and rounds otherwise than token by token."""
    return 5e-4 if any(isinstance(layer.mixer, DeltaRule) for layer in tiny(name).spec.layers) else 1e-4


@pytest.mark.parametrize("name", TINY)
def test_the_logits_are_worth_comparing(name: str) -> None:
    logits = maker_logits(name, tuple(PROMPTS[0]))
    assert 0.5 < logits.std() < 20
    assert len(set(logits.argmax(-1).tolist())) > 15


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TINY)
def test_reference_equals_transformers(name: str, schedule: str, note: Record) -> None:
    model = tiny(name)
    assert_equal("reference", note, ReferenceRunner(model.spec, model.weights), name, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TINY)
def test_torch_equals_transformers(name: str, schedule: str, note: Record) -> None:
    assert_equal("torch", note, in_torch(name), name, schedule)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TINY)
def test_native_equals_transformers(name: str, schedule: str, level: str, note: Record) -> None:
    assert_equal("native", note, native(name, cache_format="f32", isa=level), name, schedule)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("name", TINY)
def test_generated_tokens_equal_transformers(name: str, level: str, note: Record) -> None:
    """Latent attention computes generated tokens in another way than given ones."""
    assert_equal("native", note, native(name, cache_format="f32", isa=level), name, "ragged batch", given=[25, 1])


@pytest.mark.parametrize("name", MIXTURES)
def test_the_same_experts_are_chosen(name: str) -> None:
    model, runner = tiny(name), native(name, cache_format="f32")
    reference = ReferenceRunner(model.spec, model.weights)
    for one in (runner, reference):
        take_steps(one, PROMPTS[:1], [[(0, 70)]], TABLES[:1])
    expected = maker_choices(name)
    assert len(expected) == sum(isinstance(layer.ffn, Experts) for layer in model.spec.layers)
    for native_routes, routes, experts in zip(runner.routes(), reference.routes, expected, strict=True):
        np.testing.assert_array_equal(np.sort(routes.experts, -1), experts)
        np.testing.assert_array_equal(np.sort(native_routes.experts, -1), experts)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("name", TINY)
def test_a_half_float_cache_costs_little(name: str, level: str) -> None:
    """The bound is for the median row: rounding may route a token to another expert, which changes its row."""
    results = take_steps(native(name, isa=level), PROMPTS, SCHEDULES["ragged batch"], TABLES)
    for got, tokens in zip(results, PROMPTS, strict=True):
        expected = maker_logits(name, tuple(tokens))
        assert 0 < np.median((got - expected).std(-1)) < 3e-3 * expected.std()


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("name", TINY)
def test_long_prompts_equal_transformers(name: str, level: str) -> None:
    runner = native(name, cache_format="f32", isa=level)
    for schedule in ([[(0, 530)]], [[(0, 255)], [(0, 1)], [(0, 1)], [(0, 254)], [(0, 1)], [(0, 1)], [(0, 17)]]):
        (logits,) = take_steps(runner, [LONG], schedule, [LONG_TABLE])
        assert_close_but_for_ties(logits, maker_logits(name, tuple(LONG)), tolerance(name))


@pytest.mark.parametrize("name", TINY)
def test_long_prompts_on_the_reference_equal_transformers(name: str) -> None:
    model = tiny(name)
    (logits,) = take_steps(ReferenceRunner(model.spec, model.weights), [LONG], [[(0, 300)], [(0, 230)]], [LONG_TABLE])
    assert_close_but_for_ties(logits, maker_logits(name, tuple(LONG)), tolerance(name))


def assert_close_but_for_ties(got: Floats, expected: Floats, tolerance: float) -> None:
    """Over 530 positions rounding errors grow, and one of 530 choices of experts may be a tie."""
    distances = np.abs(got - expected).max(-1)
    assert (distances > tolerance).sum() <= 1, np.sort(distances)[-3:]
