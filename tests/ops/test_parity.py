"""transformers = reference = native on tiny random models, however a prompt is cut and beside whatever it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_models import TINY, Schedule, prompt, take_steps, tiny
from weights import LEVELS

from freedive.engine.batch import Runner
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

PROMPTS = (prompt(70), prompt(41, seed=1))
TABLES = ((5, 1, 3), (0, 4))
"""Pages of both prompts, interleaved and out of order."""

LONG = prompt(530, seed=2)
LONG_TABLE = tuple(np.random.default_rng(3).permutation(17).tolist())
"""Longer than two splits of attention (256 positions), over scattered pages."""

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


def differences(runner: Runner, name: str, schedule: Schedule) -> float:
    """Largest distance of any logit from transformers'."""
    results = take_steps(runner, PROMPTS, schedule, TABLES)
    expected = [tiny(name).maker_logits(tokens) for tokens in PROMPTS]
    return max(float(np.abs(a - b).max()) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_the_logits_are_worth_comparing(name: str) -> None:
    logits = tiny(name).maker_logits(PROMPTS[0])
    assert 0.5 < logits.std() < 10
    assert len(set(logits.argmax(-1).tolist())) > 20


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TINY)
def test_reference_equals_transformers(name: str, schedule: str) -> None:
    model = tiny(name)
    assert differences(ReferenceRunner(model.spec, model.weights), name, SCHEDULES[schedule]) < 1e-4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TINY)
def test_native_equals_transformers(name: str, schedule: str, level: str) -> None:
    assert differences(native(name, cache_format="f32", isa=level), name, SCHEDULES[schedule]) < 1e-4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TINY)
def test_a_half_float_cache_costs_little(name: str, level: str) -> None:
    results = take_steps(native(name, isa=level), PROMPTS, SCHEDULES["ragged batch"], TABLES)
    for got, tokens in zip(results, PROMPTS, strict=True):
        expected = tiny(name).maker_logits(tokens)
        assert 0 < (got - expected).std() < 3e-3 * expected.std()
        np.testing.assert_allclose(got, expected, atol=5e-2)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TINY)
def test_long_prompts_equal_transformers(name: str, level: str) -> None:
    expected = tiny(name).maker_logits(LONG)
    runner = native(name, cache_format="f32", isa=level)
    for schedule in ([[(0, 530)]], [[(0, 255)], [(0, 1)], [(0, 1)], [(0, 254)], [(0, 1)], [(0, 1)], [(0, 17)]]):
        (logits,) = take_steps(runner, [LONG], schedule, [LONG_TABLE])
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_long_prompts_on_the_reference_equal_transformers(name: str) -> None:
    model = tiny(name)
    (logits,) = take_steps(ReferenceRunner(model.spec, model.weights), [LONG], [[(0, 300)], [(0, 230)]], [LONG_TABLE])
    np.testing.assert_allclose(logits, model.maker_logits(LONG), atol=1e-4)
