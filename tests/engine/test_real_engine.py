"""The real engine with the kernels and a tiny model: it survives any requests, and every page is freed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_runner import FakeDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import EngineError, Generation
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job, Scope
from freedive.errors import UserError
from freedive.ops.native import NativeRunner
from freedive.text.prompt import Prompt

VOCAB = 128
NUM_PAGES = 24


class TinyTokenizer:
    stop_ids = frozenset({2})

    def stream(self, *, continues: bool = False, is_visible: Callable[[str], bool] | None = None) -> FakeDecoder:
        return FakeDecoder()


class Panic(BaseException):
    """Like a panic in native code."""


@dataclass
class Failing:
    """A constraint that allows everything until it raises an error."""

    error: type[BaseException]
    rest: int
    complete: bool = False

    def allowed(self) -> np.ndarray:
        if self.rest <= 0:
            raise self.error("no")
        return np.full(VOCAB // 8, 255, np.uint8)

    def take(self, token: int) -> None:
        self.rest -= 1


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = tiny("llama")
    runner = NativeRunner(model.spec, model.packed, num_threads=1, max_rows=48, num_pages=NUM_PAGES)
    with Engine(runner, TinyTokenizer(), EngineConfig(max_batch=4, prefill_chunk=40)) as engine:
        yield engine


odd = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(["", "\ud800", "\0", "a" * 5000])
errors = st.sampled_from([ValueError, MemoryError, Panic, SystemExit, KeyboardInterrupt])
constraints = st.none() | st.builds(Failing, errors, st.integers(0, 6))
samplings = st.builds(
    Sampling,
    max_tokens=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.dictionaries(st.integers(-1, VOCAB), st.floats(-100, 100), max_size=4),
    seed=st.integers(0, 9),
    stop=st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=3), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    ignore_eos=st.booleans(),
)


@dataclass
class Request:
    length: int
    first: int
    sampling: Sampling
    guide: Failing | None
    pooling: Any
    salt: str
    user: str

    @property
    def job(self) -> Job:
        prompt = [3 + (self.first + index) % (VOCAB - 3) for index in range(self.length)]
        constraint = self.guide
        return Job(
            Prompt(prompt, make_constraint=lambda: constraint),
            self.sampling,
            Scope(user=self.user, cache_salt=self.salt),
            self.pooling,
        )


wishes = st.builds(
    Request,
    st.integers(0, 150),
    st.integers(0, 2),
    samplings,
    constraints,
    st.sampled_from([None, None, "mean", "last"]),
    odd,
    odd,
)


def ended(generation: Generation) -> str:
    """Returns how the generation ended; it must end."""
    try:
        *_, last = generation
    except EngineError:
        return "error"
    assert last.finish_reason
    return last.finish_reason


batches_with_cancels = st.lists(
    st.tuples(st.lists(wishes, min_size=1, max_size=5), st.none() | st.integers(0, 39)), min_size=1, max_size=8
)
"""Batches of requests, with the request of all so far (modulo their number) that is cancelled then.

Nothing is drawn later: an example that hypothesis abandons in the middle would leave its requests in the engine.
"""


@settings(max_examples=60, deadline=None)
@given(batches_with_cancels)
def test_engine_survives_any_requests_and_frees_their_pages(
    engine: Engine, batches: list[tuple[list[Request], int | None]]
) -> None:
    generations: list[Generation] = []
    for batch, cancelled in batches:
        try:
            generations += engine.submit_all([wish.job for wish in batch])
        except UserError:
            continue
        if cancelled is not None:
            generations[cancelled % len(generations)].cancel()
    for generation in generations:
        assert ended(generation) in ("stop", "length", "cancelled", "error")
    assert engine.failure == ""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.num_pages)


def test_concurrent_answers_equal_those_of_single_requests(engine: Engine) -> None:
    jobs = [
        Job(Prompt([3 + (index * 7 + place) % 120 for place in range(20 + index)]), Sampling(max_tokens=12, seed=index))
        for index in range(12)
    ]

    def answer(generation: Generation) -> list[int]:
        return [token for output in generation for token in output.token_ids]

    quiet = [answer(engine.submit_all([job])[0]) for job in jobs]
    prompt = Prompt([5] * 40, make_constraint=lambda: Failing(Panic, 3))
    hostile = [Job(prompt, Sampling(max_tokens=9)) for _ in range(12)]
    mixed = [job for pair in zip(jobs, hostile, strict=True) for job in pair]
    assert [answer(each) for each in engine.submit_all(mixed)[::2]] == quiet
