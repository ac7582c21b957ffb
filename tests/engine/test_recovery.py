"""An error on the engine thread ends only the requests concerned; the engine and all other requests continue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_runner import VOCAB, FakeRunner, FakeTokenizer, alone
from patience import wait_until

from freedive.config import EngineConfig
from freedive.engine import page_store, watchdog
from freedive.engine.engine import Engine
from freedive.engine.generation import EngineError, Generation
from freedive.engine.page_store import PageStore
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job, Scope
from freedive.errors import Overloaded, Unavailable, UserError
from freedive.model.batch import Batch, ChangedWeights, UnreadableWeights
from freedive.text.prompt import Prompt

SHORT = Sampling(max_tokens=5, temperature=0, ignore_eos=True)
TEXT = [index * 7 % 89 for index in range(300)]


class NativePanic(BaseException):
    """Like a panic of Rust, which is no Exception."""


def start(runner: FakeRunner, store: PageStore | None = None, **config: Any) -> Engine:
    return Engine(runner, FakeTokenizer(), EngineConfig(**config), store)


def tokens_of(generation: Generation) -> list[int]:
    return [token for output in generation for token in output.token_ids]


def outcome(generation: Generation) -> list[int] | str:
    try:
        return tokens_of(generation)
    except EngineError as error:
        return str(error)


def failing_once(monkeypatch: pytest.MonkeyPatch, target: str, error: BaseException, after: int = 0) -> None:
    """Makes one call of ``target`` raise ``error``, after ``after`` successful ones."""
    owner, _, name = target.rpartition(".")
    calls = []

    def wrapped(self: Any, *args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == after + 1:
            raise error
        return original(self, *args, **named)

    module, _, kind = owner.rpartition(".")
    original = getattr(getattr(__import__(module, fromlist=[kind]), kind), name)
    monkeypatch.setattr(target, wrapped)


PLACES = [
    "freedive.engine.engine.Engine._wait",
    "freedive.engine.engine.Engine._take_in",
    "freedive.engine.scheduler.Scheduler.plan",
    "freedive.engine.scheduler.Scheduler.add",
    "freedive.engine.scheduler.Scheduler.remove",
    "freedive.engine.prefix.PrefixCache.publish",
    "freedive.engine.prefix.PrefixCache.attach",
    "freedive.engine.prefix.PrefixCache.num_shared",
    "freedive.engine.prefix.PrefixCache.restore",
    "freedive.engine.kvcache.PageTables.reserve",
    "freedive.engine.kvcache.PageTables.release",
    "freedive.engine.executor.StepExecutor._draft",
    "freedive.engine.executor.StepExecutor._verify",
    "freedive.engine.speculation.DraftBudget.choose",
    "freedive.engine.speculation.PromptLookup.guess",
    "freedive.engine.queue.FairQueue.take",
    "freedive.engine.queue.FairQueue.charge",
    "freedive.engine.chunk_sizer.ChunkSizer.record",
    "fake_runner.FakeRunner.step",
    "fake_runner.FakeDecoder.push",
]


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("error", [MemoryError("no memory"), NativePanic("panic")], ids=["memory", "panic"])
def test_engine_survives_an_error_anywhere(
    monkeypatch: pytest.MonkeyPatch, target: str, error: BaseException, after: int
) -> None:
    failing_once(monkeypatch, target, error, after)
    with start(FakeRunner(40, drafts=True), max_batch=3) as engine:
        prompts = [[*TEXT[:40], index] for index in range(8)]
        outcomes = [outcome(each) for each in [engine.submit(prompt, SHORT) for prompt in prompts]]
        for prompt, answer in zip(prompts, outcomes, strict=True):
            assert answer == alone(prompt, SHORT) or str(error) in answer
        assert sum(isinstance(answer, str) for answer in outcomes) <= 4
        assert engine.failure == ""
        assert tokens_of(engine.submit([5], SHORT)) == alone([5], SHORT)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.num_pages)
        assert stats.num_requests == 9


def test_engine_that_cannot_recover_is_closed_and_ends_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Engine, *args: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(Engine, "_recover", fail)
    runner = FakeRunner()
    runner.errors.append(RuntimeError("out of tea"))
    with start(runner) as engine:
        assert "no memory" in outcome(engine.submit([1], SHORT))
        assert engine.failure == "MemoryError: no memory"


def test_requests_outside_a_failed_step_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(60)
    runner.gate.clear()
    with start(runner, max_batch=4, prefill_chunk=40) as engine:
        victim = engine.submit(TEXT[:200], SHORT)
        assert runner.entered.wait(60)
        runner.errors.append(RuntimeError("out of tea"))
        others = [engine.submit([index, *TEXT[:50]], SHORT) for index in range(7)]
        runner.gate.set()
        with pytest.raises(EngineError, match="out of tea"):
            list(victim)
        for index, generation in enumerate(others):
            assert tokens_of(generation) == alone([index, *TEXT[:50]], SHORT)


def test_strings_that_have_no_utf8_form_are_salts_and_users_like_others() -> None:
    with start(FakeRunner()) as engine:
        for _ in range(2):
            generation = engine.submit(TEXT[:70], SHORT, scope=Scope(user="\udfff", cache_salt="\ud800"))
            assert tokens_of(generation) == alone(TEXT[:70], SHORT)
        assert generation.num_cached_tokens == 64


def test_readers_that_cannot_be_notified_disturb_no_request() -> None:
    def notify() -> None:
        raise ValueError("asleep")

    with start(FakeRunner(max_context=1000)) as engine:
        deaf = engine.submit([1], SHORT)
        deaf._notify = notify
        assert tokens_of(engine.submit([2], SHORT)) == alone([2], SHORT)
        assert tokens_of(deaf) == alone([1], SHORT)


def test_pages_from_before_a_failure_are_not_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure comes while the store's work is queued; afterwards the pages have other content."""
    begin = threading.Event()
    monkeypatch.setattr(PageStore, "_write", waiting(PageStore._write, begin))
    runner = FakeRunner(4, 128)
    with start(runner, PageStore(tmp_path / "pages", runner.pages, 10**6)) as engine:
        tokens_of(engine.submit(TEXT[:100], SHORT))
        runner.errors.append(RuntimeError("out of tea"))
        outcome(engine.submit([1], SHORT))
        begin.set()
    assert list(tmp_path.glob("pages/*.page")) == []


def waiting(work: Callable[[Any], None], begin: threading.Event) -> Callable[[Any], None]:
    def wrapped(self: Any) -> None:
        assert begin.wait(60)
        work(self)

    return wrapped


def test_engine_that_makes_no_progress_says_so_and_closes_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = FakeRunner()
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(watchdog, "time", clock)
    engine = start(runner, watchdog=1)
    assert engine.stalled_s == 0
    runner.gate.clear()
    engine.submit([1], SHORT)
    assert runner.entered.wait(60)
    assert engine.stalled_s == 0
    clock.perf_counter = lambda: 1.1
    assert engine.stalled_s == 1.1
    assert engine.stalled_s == 1.1
    engine.close()
    assert [record.getMessage() for record in caplog.records] == ["the engine has made no progress for 1 s"]
    runner.gate.set()
    engine._thread.join(60)


# --- batches ----------------------------------------------------------------------------------------------------------


def batch(count: int, **options: Any) -> list[Job]:
    return [Job(Prompt([index % VOCAB, 1 + index // VOCAB]), SHORT, **options) for index in range(count)]


def test_a_batch_is_one_entry_of_the_queue_however_large() -> None:
    with start(FakeRunner(), max_batch=2, max_queue=0) as engine:
        generations = engine.submit_all(batch(500))
        assert [tokens_of(each) for each in generations] == [
            alone(list(job.prompt.tokens), SHORT) for job in batch(500)
        ]
        assert engine.stats().num_requests == 500
        assert not engine._submissions


def test_entries_beyond_the_queue_are_rejected() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=1, max_queue=1) as engine:
        first, second = engine.submit_all(batch(10)), engine.submit_all(batch(10))
        with pytest.raises(Overloaded):
            engine.submit([1], SHORT)
        runner.gate.set()
        for generation in (*first, *second):
            assert tokens_of(generation)
        assert tokens_of(engine.submit([1], SHORT))


def test_a_request_after_a_batch_waits_for_one_request_of_it() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=2) as engine:
        generations = engine.submit_all(batch(100))
        assert runner.entered.wait(60)
        late = engine.submit([1, 2, 3], SHORT)
        runner.gate.set()
        tokens_of(late)
        for each in generations:
            tokens_of(each)
        ends = [each.timings.finished_at for each in (late, *generations)]
        assert sum(ends[0] > end for end in ends[1:] if ends[0] and end) < 10
        for generation in generations:
            tokens_of(generation)


def test_a_batch_with_one_impossible_request_is_refused_whole() -> None:
    runner = FakeRunner()
    with start(runner) as engine:
        with pytest.raises(UserError, match="does not exist"):
            engine.submit_all([*batch(5), Job(Prompt([VOCAB]), SHORT)])
        assert engine.stats().num_requests == 0
    assert runner.batches == []


def test_a_batch_that_is_cancelled_ends_at_once() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=2) as engine:
        generations = engine.submit_all(batch(1000))
        assert runner.entered.wait(60)
        for generation in generations:
            generation.cancel()
        runner.gate.set()
        assert {list(each)[-1].finish_reason for each in generations} == {"cancelled"}
        assert tokens_of(engine.submit([1], SHORT)) == alone([1], SHORT)
        assert not engine._submissions
    assert len(runner.batches) < 10


def test_a_request_of_a_batch_that_cannot_be_made_fails_alone() -> None:
    def make_constraint() -> None:
        raise NativePanic("no such form")

    with start(FakeRunner(), max_batch=2) as engine:
        jobs = batch(6)
        jobs[3] = Job(Prompt([1], make_constraint=make_constraint), SHORT)
        outcomes = [outcome(each) for each in engine.submit_all(jobs)]
        assert [isinstance(each, str) for each in outcomes] == [False, False, False, True, False, False]
        assert "no such form" in outcomes[3]


def test_requests_of_a_batch_survive_a_failed_step() -> None:
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=2) as engine:
        runner.errors.append(RuntimeError("out of tea"))
        generations = engine.submit_all(batch(20))
        runner.gate.set()
        outcomes = [outcome(each) for each in generations]
        assert sum(isinstance(each, str) for each in outcomes) <= 2
        assert outcomes[5:] == [alone(list(job.prompt.tokens), SHORT) for job in batch(20)[5:]]


def test_requests_of_a_batch_cost_memory_only_when_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = Engine._sequence
    monkeypatch.setattr(Engine, "_sequence", lambda self, *args: made.append(1) or make(self, *args))
    runner = FakeRunner()
    runner.gate.clear()
    with start(runner, max_batch=4) as engine:
        engine.submit_all(batch(1000))
        assert runner.entered.wait(60)
        assert len(made) == 5
        runner.gate.set()


# --- disks that hang --------------------------------------------------------------------------------------------------


def kept(folder: Path, prompt: list[int]) -> None:
    """Stores the prompt's pages on disk."""
    runner = FakeRunner()
    with start(runner, PageStore(folder, runner.pages, 10**7)) as engine:
        tokens_of(engine.submit(prompt, SHORT))


def test_a_hanging_disk_delays_one_request_by_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path / "pages", TEXT)
    monkeypatch.setattr(page_store, "READ_TIMEOUT_S", 2)
    hanging = threading.Event()
    load = PageStore.load
    monkeypatch.setattr(PageStore, "load", lambda self, key: hanging.wait(100) and load(self, key))
    runner = FakeRunner()
    with start(runner, PageStore(tmp_path / "pages", runner.pages, 10**7)) as engine:
        begun = time.monotonic()
        late = engine.submit(TEXT, SHORT)
        assert tokens_of(engine.submit([1, 2], SHORT)) == alone([1, 2], SHORT)
        assert late.timings.first_token_at is None
        assert tokens_of(late) == alone(TEXT, SHORT)
        assert 2 < time.monotonic() - begun < 60  # the disk hangs longer
        assert late.num_cached_tokens == 0
        again = [9, *TEXT]
        assert tokens_of(engine.submit(again, SHORT)) == alone(again, SHORT)
        assert [record.getMessage() for record in caplog.records] == [
            f"prefixes in {tmp_path / 'pages'} are not read for a while: the disk does not answer"
        ]
        before = runner.pages.copy()
        hanging.set()
        engine._store._reader.join(0.2)
        assert (runner.pages == before).all()  # late data is written nowhere
    assert time.monotonic() - begun < 90


def test_a_disk_that_answers_again_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path / "pages", TEXT)
    monkeypatch.setattr(page_store, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(page_store, "BACKOFF_S", 2)
    load, answers = PageStore.load, threading.Event()
    monkeypatch.setattr(PageStore, "load", lambda self, key: answers.wait(100) and load(self, key))
    runner = FakeRunner()
    with start(runner, PageStore(tmp_path / "pages", runner.pages, 10**7), max_batch=1) as engine:
        assert tokens_of(engine.submit(TEXT, SHORT, scope=Scope(cache_salt="other"))) == alone(TEXT, SHORT)
        assert tokens_of(engine.submit(TEXT, SHORT)) == alone(TEXT, SHORT)
        assert engine.stats().num_restored == 0
        answers.set()
        monkeypatch.setattr(page_store, "READ_TIMEOUT_S", 60)
        time.sleep(2.1)  # until it is tried again
        for page in range(0, 64):  # evicts all pages from memory
            tokens_of(engine.submit([page, *TEXT[:250]], SHORT))
        assert tokens_of(engine.submit(TEXT, SHORT)) == alone(TEXT, SHORT)
        assert engine.stats().num_restored == 288


def test_pages_that_no_request_waits_for_take_no_memory(tmp_path: Path) -> None:
    pages = np.zeros((4, 100), np.uint8)
    with closing(PageStore(tmp_path / "pages", pages, 10**6)) as store:
        for row in range(4):
            store.write(bytes([row]) * 16, row, lambda: True)
    with closing(PageStore(tmp_path / "pages", pages, 10**6)) as store:
        keys = [bytes([row]) * 16 for row in range(4)]
        wait_until(lambda: len(store.fetch(keys)) == 4)
        assert store.fetch(keys[1:3]).keys() == {keys[1], keys[2]}
        assert store.fetch([]) == {}
        assert not store._arrived


def test_the_engine_works_without_a_store_whose_thread_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    kept(tmp_path / "pages", TEXT)
    runner = FakeRunner()
    with start(runner, PageStore(tmp_path / "pages", runner.pages, 10**7)) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(page_store, "READ_TIMEOUT_S", 0.1)
            patch.setattr(threading.Thread, "start", refuse)
            assert tokens_of(engine.submit(TEXT, SHORT)) == alone(TEXT, SHORT)
        assert engine.failure == ""


def test_a_failed_engine_refuses_requests_with_the_reason() -> None:
    runner = FakeRunner()
    runner.errors += [RuntimeError("out of tea")] * 3
    with start(runner) as engine:
        for _ in range(3):
            assert "out of tea" in outcome(engine.submit([1], SHORT))
        assert engine.failure == "RuntimeError: out of tea"
        with pytest.raises(Unavailable, match="out of tea"):
            engine.submit([1], SHORT)


def test_weights_that_cannot_be_read_end_requests_but_never_the_engine() -> None:
    """Another engine could not read them either, and this one can when the disk answers again."""
    runner = FakeRunner()
    runner.errors += [Unavailable("The weights of an expert cannot be read", "Check the disk")] * 7
    with start(runner) as engine:
        for _ in range(7):
            with pytest.raises(Unavailable, match=r"The weights of an expert cannot be read\. Check the disk"):
                list(engine.submit([1], SHORT))
        assert engine.failure == ""
        assert tokens_of(engine.submit([5], SHORT)) == alone([5], SHORT)


def test_weights_that_cannot_be_read_end_only_the_requests_that_need_them() -> None:
    """The second request of the step needs none of them: it is computed again and gives the answer that it gives
    alone."""
    runner: Any = FakeRunner()
    runner.gate.clear()
    with start(runner) as engine:
        first = engine.submit([3], SHORT)
        assert runner.entered.wait(60)
        others = [engine.submit([5, 6, 7], SHORT), engine.submit([8, 9], SHORT)]
        step = runner.step

        def fails(batch: Batch) -> np.ndarray:
            if len(batch.lengths) == 1:
                return step(batch)
            runner.step = step
            ends = batch.lengths.cumsum()
            rows = [int(ends[index]) - 1 for index, tokens in enumerate(batch.lengths) if tokens == 3]
            assert len(rows) == 1
            raise UnreadableWeights("The weights of an expert cannot be read", "Check the disk", rows=rows)

        runner.step = fails
        runner.gate.set()
        with pytest.raises(Unavailable, match=r"The weights of an expert cannot be read\. Check the disk"):
            list(others[0])
        assert tokens_of(others[1]) == alone([8, 9], SHORT)
        assert tokens_of(first) == alone([3], SHORT)
        assert engine.stats().free_pages == engine.stats().num_pages


def test_engine_whose_weights_have_changed_is_given_up_to_be_loaded_again() -> None:
    """Requests that need no changed weights may succeed between those that do."""
    runner = FakeRunner()
    with start(runner) as engine:
        for _ in range(3):
            assert not engine.failure
            assert tokens_of(engine.submit([5], SHORT)) == alone([5], SHORT)
            runner.errors.append(ChangedWeights("The weights of an expert cannot be read", "Check the disk"))
            with pytest.raises(Unavailable, match="The weights of an expert cannot be read"):
                list(engine.submit([1], SHORT))
        assert engine.failure.startswith("ChangedWeights")
