"""Cancelling, refusing, failing and closing: no leak, no hanging reader, and other requests continue."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import numpy as np
import pytest
from fake_runner import NAN, VOCAB, FakeDecoder, FakeRunner, FakeTokenizer, alone

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import EngineError, Generation
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Scope
from freedive.errors import Overloaded, Unavailable, UserError

ENDLESS = Sampling(ignore_eos=True)


def start(runner: FakeRunner, **config: int) -> Engine:
    return Engine(runner, FakeTokenizer(), EngineConfig(**config))


def tokens_of(generation: Generation) -> list[int]:
    return [token for output in generation for token in output.token_ids]


def is_idle(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.num_pages)


def test_cancelling_frees_the_pages_and_ends_the_reader() -> None:
    with start(FakeRunner(max_context=2000)) as engine:
        generation = engine.submit([1] * 100, ENDLESS)
        reader = iter(generation)
        next(reader)
        assert engine.stats().free_pages < 64
        generation.cancel()
        generation.cancel()
        *_, last = reader
        assert last.finish_reason == "cancelled"
        assert last.token_ids == ()
        assert last.timings is generation.timings
        assert is_idle(engine)
        generation.cancel()
        assert list(generation) == []


def test_leaving_the_loop_cancels() -> None:
    async def leave(generation: Generation) -> None:
        async for _ in generation:
            break

    with start(FakeRunner(max_context=2000)) as engine:
        first, second = engine.submit([1], ENDLESS), engine.submit([2], ENDLESS)
        for _ in first:
            break
        asyncio.run(leave(second))
        tokens_of(engine.submit([3], Sampling(max_tokens=1)))  # one step later
        assert is_idle(engine)
        assert first.timings.num_generated < 1999


def test_a_waiting_request_can_be_cancelled() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=1) as engine:
        running, waiting = engine.submit([1], Sampling(max_tokens=2)), engine.submit([2], ENDLESS)
        waiting.cancel()
        runner.gate.set()
        (output,) = list(waiting)
        assert output.finish_reason == "cancelled"
        assert tokens_of(running)
    assert not any(2 in batch.tokens for batch in runner.batches if batch.starts[0] == 0)


@pytest.mark.parametrize("num_pages", [10, 80])
def test_two_hundred_requests_with_random_cancels_leave_nothing_behind(num_pages: int) -> None:
    rng = random.Random(num_pages)
    with start(FakeRunner(num_pages, max_context=300), max_batch=6, prefill_chunk=30) as engine:
        answers = []
        for _ in range(200):
            prompt = [rng.randrange(VOCAB - 2) for _ in range(rng.randint(1, 120))]
            sampling = Sampling(max_tokens=rng.randint(1, 60), seed=rng.randrange(99))
            generation = engine.submit(prompt, sampling)
            answers.append((prompt, sampling, generation))
            if rng.random() < 0.5:
                rng.choice(answers)[2].cancel()
        for prompt, sampling, generation in answers:
            outputs = list(generation)
            tokens = [token for output in outputs for token in output.token_ids]
            expected = alone(prompt, sampling)
            assert tokens == (expected[: len(tokens)] if outputs[-1].finish_reason == "cancelled" else expected)
        assert is_idle(engine)
        assert engine.stats().num_requests == 200


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    runner.gate.clear()
    runner.errors.append(RuntimeError("out of tea"))
    sampling = Sampling(max_tokens=3, seed=1)
    with start(runner, max_batch=1) as engine:
        victim, waiting = engine.submit([2], ENDLESS), engine.submit([1], sampling)
        runner.gate.set()
        with pytest.raises(EngineError, match="out of tea"):
            list(victim)
        assert list(victim) == []
        assert tokens_of(waiting) == alone([1], sampling)
        assert is_idle(engine)
    assert "out of tea" in caplog.text


def test_logits_that_are_not_numbers_fail_only_their_request() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner) as engine:
        good, bad = engine.submit([1], Sampling(max_tokens=9, seed=1)), engine.submit([NAN], ENDLESS)
        runner.gate.set()
        with pytest.raises(EngineError, match="not finite"):
            list(bad)
        assert tokens_of(good) == alone([1], Sampling(max_tokens=9, seed=1))
        assert is_idle(engine)


def test_a_decoder_that_fails_fails_only_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def push(self: FakeDecoder, token_id: int) -> str:
        if token_id == 9:
            raise ValueError("no such character")
        return "x"

    monkeypatch.setattr(FakeDecoder, "push", push)
    with start(FakeRunner()) as engine:
        bad = engine.submit([1], Sampling(logit_bias={9: 100}))
        good = engine.submit([1], Sampling(logit_bias={8: 100}, max_tokens=4))
        with pytest.raises(EngineError, match="no such character"):
            list(bad)
        assert tokens_of(good) == [8] * 4


def test_async_readers_see_the_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def read(generation: Generation) -> None:
        async for _ in generation:
            pass

    runner = FakeRunner()
    runner.errors.append(RuntimeError("out of tea"))
    with start(runner) as engine, pytest.raises(EngineError, match="out of tea"):
        asyncio.run(read(engine.submit([1], ENDLESS)))
    assert "out of tea" in caplog.text


def test_a_reader_whose_event_loop_has_gone_does_not_disturb_the_engine() -> None:
    loop = asyncio.new_event_loop()
    with start(FakeRunner(max_context=1000)) as engine:
        reader = aiter(engine.submit([1], ENDLESS))
        loop.run_until_complete(anext(reader))
        loop.close()
        assert len(tokens_of(engine.submit([2], Sampling(max_tokens=50, ignore_eos=True)))) == 50


@pytest.mark.parametrize(
    ("prompt", "settings", "param", "words"),
    [
        ([], {}, "prompt", ["empty"]),
        ([1] * 100, {}, "prompt", ["100 tokens", "length is 96", "Shorten", "cache_tokens", "512"]),
        ([1, VOCAB], {}, "prompt", [str(VOCAB), f"0 to {VOCAB - 1}"]),
        ([1, -1], {}, "prompt", ["-1"]),
        ([1], {"logit_bias": {500: 1.0}}, "logit_bias", ["500"]),
        ([1], {"stop_token_ids": frozenset({-3})}, "stop_token_ids", ["-3"]),
    ],
)
def test_impossible_requests_are_refused_at_once(
    prompt: list[int], settings: dict[str, object], param: str, words: list[str]
) -> None:
    with start(FakeRunner(num_pages=3, max_context=512)) as engine:
        with pytest.raises(UserError) as caught:
            engine.submit(prompt, Sampling(**settings))
        assert caught.value.param == param
        assert all(word in str(caught.value) for word in words)
        assert is_idle(engine)


def test_the_longest_possible_request_gets_the_whole_cache() -> None:
    with start(FakeRunner(num_pages=3), max_batch=4) as engine:
        sampling = Sampling(max_tokens=46, ignore_eos=True, seed=3)
        generations = [engine.submit([index] * 50, sampling) for index in range(6)]
        for index, generation in enumerate(generations):
            assert tokens_of(generation) == alone([index] * 50, sampling)


def test_the_remedy_names_the_setting_that_limits() -> None:
    with (
        start(FakeRunner(max_context=512), max_context=40) as engine,
        pytest.raises(UserError, match="raise max_context"),
    ):
        engine.submit([1] * 40, Sampling())
    with start(FakeRunner(max_context=40)) as engine, pytest.raises(UserError, match=r"Shorten the prompt$"):
        engine.submit([1] * 40, Sampling())
    with pytest.raises(UserError, match="reads at most 40"):
        start(FakeRunner(max_context=40), max_context=41)


def test_a_tenant_that_fills_the_queue_leaves_others_their_share() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=2, max_queue=4) as engine:
        for index in range(6):
            engine.submit([1], Sampling(max_tokens=2), scope=Scope("many", str(index)))
        for tenant, places in (("many", 0), ("ann", 3), ("bob", 2)):
            for _ in range(places):
                engine.submit([1], Sampling(max_tokens=2), scope=Scope(tenant))
            with pytest.raises(Overloaded):
                engine.submit([1], Sampling(max_tokens=2), scope=Scope(tenant))
        runner.gate.set()


def test_requests_beyond_the_queue_are_rejected_and_later_ones_accepted() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=2, max_queue=3) as engine:
        generations = [engine.submit([1], Sampling(max_tokens=2)) for _ in range(5)]
        with pytest.raises(Overloaded):
            engine.submit([1], Sampling())
        runner.gate.set()
        for generation in generations:
            list(generation)
        assert tokens_of(engine.submit([1], Sampling(max_tokens=2)))


def test_closing_cancels_running_requests_and_refuses_new_ones() -> None:
    engine = start(FakeRunner(max_context=2000))
    generations = [engine.submit([index], ENDLESS) for index in range(20)]
    engine.close()
    engine.close()
    assert {list(generation)[-1].finish_reason for generation in generations} == {"cancelled"}
    assert is_idle(engine)
    with pytest.raises(Unavailable):
        engine.submit([1], Sampling())


def test_draining_finishes_running_requests() -> None:
    engine = start(FakeRunner(max_context=2000), max_batch=2)
    generations = [engine.submit([index], Sampling(max_tokens=30, ignore_eos=True)) for index in range(7)]
    engine.close(drain=True)
    assert [len(tokens_of(generation)) for generation in generations] == [30] * 7


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crash(self: object) -> None:
        raise AssertionError("bug")

    with start(FakeRunner()) as engine:
        monkeypatch.setattr("freedive.engine.scheduler.Scheduler.plan", crash)
        for _ in range(3):
            with pytest.raises(EngineError, match="bug"):
                list(engine.submit([1], ENDLESS))
        with pytest.raises(Unavailable, match="has failed: AssertionError: bug"):
            engine.submit([1], ENDLESS)
        assert engine.failure == "AssertionError: bug"
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    assert "bug" in caplog.text


def test_an_idle_engine_uses_no_processor_time() -> None:
    with start(FakeRunner()) as engine:
        list(engine.submit([1], Sampling(max_tokens=2)))
        clock = time.pthread_getcpuclockid(engine._thread.ident or 0)
        before = time.clock_gettime(clock)  # of this thread alone, since earlier tests may have left others
        threading.Event().wait(0.3)
        assert time.clock_gettime(clock) - before < 0.05


def test_the_fake_runner_notices_shared_and_stale_pages() -> None:
    """Without this the other tests could miss such mistakes."""
    from freedive.model.batch import Batch

    def step(runner: FakeRunner, starts: list[int], pages: list[list[int]]) -> None:
        count = len(starts)
        ones = np.ones(count, np.int32)
        arrays = (np.array(starts, np.int32), np.array(pages, np.int32), np.arange(count, dtype=np.int32))
        runner.step(Batch(ones, ones, *arrays, prompts=ones))

    with pytest.raises(AssertionError, match="two owners"):
        step(FakeRunner(), [0, 0], [[1], [1]])
    with pytest.raises(AssertionError, match="stale"):
        step(FakeRunner(), [5], [[1]])
    with pytest.raises(AssertionError, match="too short"):
        step(FakeRunner(), [0], [[-1]])
