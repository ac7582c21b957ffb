"""Multi-token prediction: the layer drafts as its makers describe, and changes no answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_models import Floats, prompt, to_batch
from tiny_mtp import QWEN, with_mtp
from weights import LEVELS

from freedive.model import spec
from freedive.model.batch import Runner
from freedive.model.size import size
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

TABLES = [[2, 5, 0], [4, 1, 3]]
PROMPTS = [prompt(70, seed=1), prompt(41, seed=2)]
NAMES = ["deepseek_v3", "glm4_moe", "bailing_moe_v2", "bailing_hybrid", "mimo_v2_flash", "step3p7", *QWEN]


def draft_logits(runner: Runner, schedule: list[list[tuple[int, int]]], given: list[int] | None = None) -> list[Floats]:
    """Returns the draft logits [T, vocab] of ``runner`` after each token but the first of each prompt."""
    done = [0, 0]
    logits: list[list[Floats]] = [[], []]
    given = given or [len(tokens) for tokens in PROMPTS]
    for step in schedule:
        batch = to_batch(PROMPTS, step, done, TABLES, given)
        following = [
            token for request, n in step for token in PROMPTS[request][done[request] + 1 : done[request] + 1 + n]
        ]
        runner.step(batch)
        rows = runner.draft(np.array(following, np.int32), batch.output_rows)
        for request, n in step:
            logits[request].append(rows[:n])
            rows, done[request] = rows[n:], done[request] + n
    return [np.concatenate(parts) for parts in logits]


WHOLE = [[(0, 69), (1, 40)]]
PIECES = [[(0, 33)], [(1, 7), (0, 30)], [(0, 1), (1, 1)], [(1, 32), (0, 4)], [(0, 1)]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", [WHOLE, PIECES], ids=["whole", "pieces"])
def test_the_reference_drafts_as_the_report_describes(name: str, schedule: Any) -> None:
    model = with_mtp(name)
    got = draft_logits(ReferenceRunner(model.spec, model.weights), schedule)
    bound = 6e-4 if name in (*QWEN, "bailing_hybrid") else 2e-4  # transformers computes the delta rule in chunks of 64
    for logits, tokens in zip(got, PROMPTS, strict=True):
        np.testing.assert_allclose(logits, model.expected(tokens[:-1], tokens[1:]), atol=bound, rtol=bound)


def native(name: str, **options: Any) -> NativeRunner:
    model = with_mtp(name)
    return NativeRunner(model.spec, model.packed, **{"num_threads": 1, "max_rows": 200, "num_pages": 6, **options})


@pytest.mark.parametrize("name", NAMES)
def test_kernels_draft_as_the_reference(name: str) -> None:
    model = with_mtp(name)
    expected = draft_logits(ReferenceRunner(model.spec, model.weights), WHOLE)
    for got, wanted in zip(draft_logits(native(name, cache_format="f32"), WHOLE), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_drafts_do_not_depend_on_schedules_or_levels(name: str, level: str) -> None:
    expected = draft_logits(native(name), WHOLE, [50, 41])
    for got, wanted in zip(
        draft_logits(native(name, isa=level, num_threads=2), PIECES, [50, 41]), expected, strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_logits_do_not_depend_on_it(name: str) -> None:
    def logits(described: spec.ModelSpec) -> list[Floats]:
        runner = NativeRunner(described, with_mtp(name).packed, num_threads=1, max_rows=200, num_pages=6)
        assert runner.drafts == (described.mtp is not None)
        done, parts = [0, 0], []
        for step in PIECES:
            batch = to_batch(PROMPTS, step, done, TABLES, [70, 41])
            parts.append(runner.step(batch))
            if runner.drafts:
                runner.draft(batch.tokens, batch.output_rows[:0])
            for request, count in step:
                done[request] += count
        return parts

    described = with_mtp(name).spec
    for a, b in zip(logits(described), logits(replace(described, mtp=None)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_that_predicts_is_not_counted_as_a_parameter() -> None:
    model = with_mtp("deepseek_v3").spec
    assert size(model) == size(replace(model, mtp=None))
