"""The states of a step equal transformers' last_hidden_state for any step and batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import Floats, prompt, tiny, to_batch
from tiny_mtp import with_mtp
from weights import LEVELS

from freedive.model.batch import Runner
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

PROMPTS = [prompt(70), prompt(41, seed=1)]
GIVEN = [len(tokens) for tokens in PROMPTS]
TABLES = [[5, 1, 3], [0, 4]]
NAMES = ["qwen3_moe", "deepseek_v3", "gpt_oss", "llama"]
WHOLE = [[(0, 70), (1, 41)]]
PIECES = [[(0, 33)], [(1, 7), (0, 30)], [(0, 7), (1, 34)]]


def embedded(runner: Runner, schedule: list[list[tuple[int, int]]]) -> list[Floats]:
    """Returns the states [T, hidden] of all tokens of each prompt."""
    done = [0, 0]
    states: list[list[Floats]] = [[], []]
    for step in schedule:
        batch = to_batch(PROMPTS, step, done, TABLES, GIVEN)
        runner.step(batch)
        rows = runner.embed(np.arange(len(batch.tokens), dtype=np.int32))
        for request, n in step:
            states[request].append(rows[:n])
            rows, done[request] = rows[n:], done[request] + n
    return [np.concatenate(parts) for parts in states]


@pytest.mark.parametrize("name", NAMES)
def test_states_equal_those_of_the_maker(name: str) -> None:
    model = tiny(name)
    with torch.no_grad():
        base = model.maker.model
        expected = [base(torch.tensor([tokens])).last_hidden_state[0].numpy() for tokens in PROMPTS]
    native = NativeRunner(model.spec, model.packed, num_threads=1, max_rows=200, num_pages=6, cache_format="f32")
    for runner, tolerance in ((ReferenceRunner(model.spec, model.weights), 1e-4), (native, 1e-2)):
        for got, want in zip(embedded(runner, WHOLE), expected, strict=True):
            np.testing.assert_allclose(got, want.astype(float), atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_however_prompts_are_cut(name: str, isa: str) -> None:
    model = tiny(name)
    runners = [
        NativeRunner(model.spec, model.packed, num_threads=n, max_rows=200, num_pages=6, isa=isa) for n in (1, 2)
    ]
    for whole, pieces in zip(embedded(runners[0], WHOLE), embedded(runners[1], PIECES), strict=True):
        np.testing.assert_array_equal(whole, pieces)


def test_states_are_available_after_a_draft() -> None:
    model = with_mtp("deepseek_v3")
    runner = NativeRunner(model.spec, model.packed, num_threads=1, max_rows=200, num_pages=6)
    batch = to_batch(PROMPTS, WHOLE[0], [0, 0], TABLES, GIVEN)
    rows = np.arange(len(batch.tokens), dtype=np.int32)
    runner.step(batch)
    before = runner.embed(rows)
    runner.draft(batch.tokens, rows)
    np.testing.assert_array_equal(runner.embed(rows), before)
