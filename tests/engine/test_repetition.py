"""Answers that repeat themselves endlessly are ended, and no others."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, FakeTokenizer

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.repetition import MIN_REPEATED, RepetitionDetector
from freedive.engine.sampling import Sampling


def found_at(tokens: list[int]) -> int | None:
    detector = RepetitionDetector()
    return next((count for count, token in enumerate(tokens, 1) if detector.add(token)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 40, 300])
def test_loop_is_found_soon_whatever_its_length_and_what_came_before(period: int) -> None:
    rng = random.Random(period)
    before = [rng.randrange(50) for _ in range(500)]
    part = [rng.randrange(50) for _ in range(period)]
    end = found_at(before + part * 3000)
    assert end
    assert end - len(before) <= max(MIN_REPEATED, 3 * period) + period + 20


def test_text_that_repeats_parts_is_no_loop() -> None:
    rng = random.Random(0)
    lines = [[1, 2, 3, 4, 5, 6, 7, 8, 9, rng.randrange(100), 10] for _ in range(500)]
    assert found_at([token for line in lines for token in line]) is None
    assert found_at(list(range(100)) * 3 + list(range(500))) is None
    assert found_at([rng.randrange(3) for _ in range(5000)]) is None


def circling(history: np.ndarray) -> np.ndarray:
    logits = np.zeros(VOCAB, np.float32)
    logits[(history[-1] + 1) % 5] = 50
    return logits


@pytest.mark.parametrize("speculation", ["auto", "off"])
def test_loop_ends_the_answer_with_a_reason_of_its_own_where_that_is_asked_for(speculation: str) -> None:
    config = EngineConfig(speculation=speculation)
    with Engine(FakeRunner(max_context=1024, logits_of=circling), FakeTokenizer(), config) as engine:
        cut = list(engine.submit([1], Sampling(temperature=0, repetition_detection=True)))
        free = list(engine.submit([1], Sampling(temperature=0, max_tokens=600)))
    assert cut[-1].finish_reason == "repetition"
    assert MIN_REPEATED < len(cut) < MIN_REPEATED + 20
    assert (len(free), free[-1].finish_reason) == (600, "length")
    assert [output.token_ids for output in free[: len(cut)]] == [output.token_ids for output in cut]
