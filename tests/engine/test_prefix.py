"""The prefix cache: shared pages change no answer, and every page is freed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runner import VOCAB, FakeDecoder, FakeRunner, FakeTokenizer, alone
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.config import EngineConfig
from freedive.engine import page_store
from freedive.engine.chunk_sizer import ChunkSizer
from freedive.engine.detokenizer import Detokenizer
from freedive.engine.engine import Engine
from freedive.engine.executor import StepExecutor
from freedive.engine.generation import Delivery, Generation, TokenOutput
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import PageStore
from freedive.engine.prefix import PrefixCache
from freedive.engine.sampler import Sampler
from freedive.engine.sampling import Sampling
from freedive.engine.scheduler import Scheduler
from freedive.engine.sequence import Sequence
from freedive.engine.snapshots import Snapshots
from freedive.engine.submission import Scope
from freedive.model.batch import PAGE_TOKENS

TEXT = random.Random(0).choices(range(VOCAB - 2), k=400)
SHORT = Sampling(max_tokens=5, temperature=0, ignore_eos=True)


def start(runner: FakeRunner, store: PageStore | None = None, **config: Any) -> Engine:
    return Engine(runner, FakeTokenizer(), EngineConfig(**config), store)


def ask(engine: Engine, prompt: list[int], sampling: Sampling = SHORT, salt: str = "") -> tuple[int, list[int]]:
    """Returns the number of cached tokens, and the answer."""
    generation = engine.submit(prompt, sampling, scope=Scope(cache_salt=salt))
    answer = [token for output in generation for token in output.token_ids]
    return generation.num_cached_tokens, answer


# --- sharing ------------------------------------------------------------------------------------------------------


def test_a_shared_prefix_is_not_computed_again() -> None:
    runner = FakeRunner()
    with start(runner) as engine:
        assert ask(engine, TEXT[:200]) == (0, alone(TEXT[:200], SHORT))
        prompt = [*TEXT[:170], 1, 2, 3]
        assert ask(engine, prompt) == (160, alone(prompt, SHORT))
        assert runner.batches[-5].starts.tolist() == [160]
        stats = engine.stats()
        assert (stats.num_cached, stats.num_restored) == (160, 0)
        assert stats.num_read == 200 + 173 - 160
        assert stats.free_pages == stats.num_pages
        assert stats.known_pages == 6


with_and_without_states = pytest.mark.parametrize("num_slots", [0, 40], ids=["pages", "pages and states"])
"""A model with per-sequence states finds as many tokens."""


@with_and_without_states
@pytest.mark.parametrize(("length", "found"), [(31, 0), (32, 0), (33, 32), (64, 32), (65, 64)])
def test_the_last_token_is_always_computed(length: int, found: int, num_slots: int) -> None:
    with start(FakeRunner(num_slots=num_slots)) as engine:
        first = ask(engine, TEXT[:length])
        assert ask(engine, TEXT[:length]) == (found, first[1])


@with_and_without_states
def test_an_answer_is_cached_for_the_next_turn(num_slots: int) -> None:
    with start(FakeRunner(num_slots=num_slots)) as engine:
        _, answer = ask(engine, TEXT[:20], Sampling(max_tokens=80, temperature=0, ignore_eos=True))
        prompt = [*TEXT[:20], *answer, 7, 8]
        assert ask(engine, prompt) == (96, alone(prompt, SHORT))


@with_and_without_states
@pytest.mark.parametrize(("boundaries", "found"), [((), 192), ((-32,), 160), ((0,), 192), ((-70, 0), 128)])
def test_pages_are_shared_only_if_boundaries_are_equal(boundaries: tuple[int, ...], found: int, num_slots: int) -> None:
    with start(FakeRunner(boundaries=boundaries, num_slots=num_slots)) as engine:
        for prompt, expected in ((TEXT[:200], 0), (TEXT[:300], found), (TEXT[:300], 288)):
            assert ask(engine, prompt) == (expected, alone(prompt, SHORT, boundaries=boundaries))


def test_a_snapshot_of_a_running_answer_replaces_the_one_before() -> None:
    with start(FakeRunner(num_slots=40)) as engine:
        ask(engine, TEXT[:70], Sampling(max_tokens=150, temperature=0, ignore_eos=True))
        assert engine.stats().snapshots == 2  # at the end of the prompt, and of the answer


def test_without_room_for_snapshots_answers_are_the_same() -> None:
    with start(FakeRunner(num_slots=16)) as engine:
        for _ in range(2):
            assert ask(engine, TEXT[:100]) == (0, alone(TEXT[:100], SHORT))


@with_and_without_states
def test_pages_of_answers_are_not_shared_with_prompts_if_their_bits_differ(num_slots: int) -> None:
    with start(FakeRunner(boundaries=(0,), num_slots=num_slots)) as engine:
        _, answer = ask(engine, TEXT[:40], Sampling(max_tokens=80, temperature=0, ignore_eos=True))
        prompt = [*TEXT[:40], *answer, 7, 8]
        assert ask(engine, prompt) == (32, alone(prompt, SHORT, boundaries=(0,)))


def test_salts_share_nothing() -> None:
    with start(FakeRunner()) as engine:
        found = [ask(engine, TEXT[:100], salt=salt)[0] for salt in ("", "ann", "bob", "ann", "bob", "")]
    assert found == [0, 0, 0, 96, 96, 96]


def test_tenants_share_nothing_whatever_salt_they_choose() -> None:
    callers = [("", ""), ("a", ""), ("b", ""), ("", "a/"), ("b", "a"), ("ab", "")]
    found = []
    with start(FakeRunner()) as engine:
        for tenant, salt in callers * 2:
            list(generation := engine.submit(TEXT[:100], SHORT, scope=Scope(tenant, cache_salt=salt)))
            found.append(generation.num_cached_tokens)
    assert found == [0] * len(callers) + [96] * len(callers)


def test_without_the_cache_everything_is_computed() -> None:
    with start(FakeRunner(), prefix_cache="off") as engine:
        assert [ask(engine, TEXT[:100])[0] for _ in range(2)] == [0, 0]
        assert (engine.stats().num_computed, engine.stats().known_pages) == (208, 0)


def test_concurrent_requests_compute_their_common_prefix_once() -> None:
    runner = FakeRunner(200)
    runner.gate.clear()
    with start(runner, prefill_chunk=64) as engine:
        generations = [engine.submit([*TEXT[:320], index], SHORT) for index in range(8)]
        runner.gate.set()
        for index, generation in enumerate(generations):
            answer = [token for output in generation for token in output.token_ids]
            assert answer == alone([*TEXT[:320], index], SHORT)
        assert engine.stats().num_computed < 320 + 8 * (64 + 5)
        assert sum(generation.num_cached_tokens for generation in generations) == engine.stats().num_cached


def test_a_cancelled_request_leaves_its_pages_to_others() -> None:
    with start(FakeRunner(max_context=2000)) as engine:
        for output in engine.submit(TEXT[:100], Sampling(ignore_eos=True)):
            assert output.token_ids
            break
        assert ask(engine, TEXT[:100]) == (96, alone(TEXT[:100], SHORT))


def test_a_preempted_request_finds_its_own_pages() -> None:
    sampling = Sampling(max_tokens=100, temperature=0, ignore_eos=True)
    computed = {}
    for prefix_cache in ("on", "off"):
        with start(FakeRunner(9, max_context=256), prefix_cache=prefix_cache) as engine:
            generations = [engine.submit([index, *TEXT[:64]], sampling) for index in range(4)]
            for index, generation in enumerate(generations):
                answer = [token for output in generation for token in output.token_ids]
                assert answer == alone([index, *TEXT[:64]], sampling)
            assert sum(generation.timings.num_preemptions for generation in generations) > 0
            assert all(generation.num_cached_tokens == 0 for generation in generations)
            assert engine.stats().free_pages == 9
            computed[prefix_cache] = engine.stats().num_computed
    assert computed["on"] < computed["off"]


# --- page tables --------------------------------------------------------------------------------------------------


def known(pages: PageTables, keys: str) -> str:
    return "".join(key for key in keys if pages.find(key.encode()) is not None)


def fill(pages: PageTables, row: int, keys: str) -> None:
    """Gives ``row`` a registered page for each letter."""
    assert pages.reserve(row, PAGE_TOKENS * len(keys))
    for place, key in enumerate(keys):
        pages.register(row, place, key.encode())


def test_the_least_recently_used_page_is_evicted_first_and_prefixes_last() -> None:
    pages = PageTables(6, 3, 6 * PAGE_TOKENS)
    fill(pages, 0, "abc")
    fill(pages, 1, "xyz")
    pages.release(1)
    pages.release(0)
    assert (pages.num_free, pages.num_registered) == (6, 6)
    gone = []
    for count in range(1, 7):
        pages.reserve(2, count * PAGE_TOKENS)
        gone.append(known(pages, "abcxyz"))
    assert gone == ["abcxy", "abcx", "abc", "ab", "a", ""]
    assert pages.epochs == [2] * 6


def test_a_page_that_is_used_again_stays_longer() -> None:
    pages = PageTables(3, 2, 3 * PAGE_TOKENS)
    for key in "abc":
        fill(pages, 0, key)
        pages.release(0)
    pages.attach(0, 0, pages.find(b"a") or 0)
    assert pages.num_free == 2
    pages.release(0)
    assert pages.reserve(0, 2 * PAGE_TOKENS)
    assert known(pages, "abc") == "a"


def test_a_page_is_freed_with_its_last_reference() -> None:
    pages = PageTables(3, 3, 3 * PAGE_TOKENS)
    fill(pages, 0, "a")
    page = pages.find(b"a")
    assert page is not None
    assert pages.reserve(1, 2 * PAGE_TOKENS)
    pages.attach(1, 0, page)  # instead of its own
    pages.attach(2, 0, page)
    assert (pages.num_free, pages.table[:, 0].tolist()) == (1, [page] * 3)
    for row, free in ((1, 2), (0, 2), (2, 3)):
        pages.release(row)
        assert pages.num_free == free
    assert not pages.is_referenced(page)


class MemoryStore(dict[bytes, bytes]):
    """A page store in memory; keys that are ``damaged`` are found but cannot be read."""

    def __init__(self, memory: np.ndarray, damaged: Callable[[], bool]) -> None:
        self.pages, self.damaged = memory, damaged
        self.page_bytes = memory.shape[1]

    def write(self, key: bytes, page: int, is_same: Callable[[], bool]) -> None:
        assert is_same()
        assert self.setdefault(key, self.pages[page].tobytes()) == self.pages[page].tobytes()

    def fetch(self, keys: list[bytes]) -> dict[bytes, np.ndarray | None]:
        found: dict[bytes, np.ndarray | None] = {}
        for key in keys:
            if self.damaged():
                self.pop(key)
                found[key] = None
            else:
                found[key] = np.frombuffer(self[key], np.uint8)
        return found

    def fill(self, page: int, data: np.ndarray) -> None:
        self.pages[page] = data


class Driver:
    """An engine without a thread: the test triggers each step, and pages are counted after it."""

    def __init__(self, runner: FakeRunner, store: Any, max_context: int, state_store: Any = None) -> None:
        self.runner = runner
        self.tables = PageTables(runner.num_pages, 4, max_context)
        snapshots = None
        if runner.sums.size:
            snapshots = Snapshots(runner.states, 4, runner.page_bytes, runner.boundaries, state_store)
        self.prefixes = PrefixCache(self.tables, runner.boundaries, store, snapshots)
        chunk_sizer = ChunkSizer(48, seconds=1e9)
        self.scheduler = Scheduler(self.tables, 4, chunk_sizer, prefixes=self.prefixes)
        self.executor = StepExecutor(runner, chunk_sizer, None, self.finish)
        self.open: list[Sequence] = []

    def add(self, prompt: list[int], count: int, salt: str) -> None:
        generation = Generation("", len(prompt), 0, lambda generation: None)
        text = Detokenizer(FakeDecoder(), ())
        sampler = Sampler(SHORT, 0, prompt, VOCAB)
        length = len(prompt) + count
        sequence = Sequence(generation, SHORT, sampler, text, list(prompt), length, frozenset(), cache_salt=salt)
        self.open.append(sequence)
        self.scheduler.add(sequence)

    def cancel(self, index: int) -> None:
        if self.open:
            self.scheduler.remove(self.open.pop(index % len(self.open)))

    def step(self) -> None:
        if plan := self.scheduler.plan():
            self.executor.run(plan, self.tables)
        self.check()

    def finish(self, sequence: Sequence, delivery: Delivery) -> None:
        assert isinstance(delivery, TokenOutput)
        self.scheduler.remove(sequence)
        self.open.remove(sequence)
        prompt = sequence.tokens[: sequence.generation.num_prompt_tokens]
        count = Sampling(max_tokens=sequence.max_length - len(prompt), temperature=0, ignore_eos=True)
        expected = alone(prompt, count, boundaries=self.runner.boundaries)
        assert sequence.tokens[len(prompt) :] == expected

    def check(self) -> None:
        table = self.tables.table
        holders = Counter(table[table >= 0].tolist())
        assert [holders[page] for page in range(self.tables.num_pages)] == self.tables._ref_counts
        assert self.tables.num_free == self.tables.num_pages - len(holders)
        places = [*self.tables._free, *self.tables._evictable, *holders]
        assert sorted(places) == list(range(self.tables.num_pages))
        for key, page in self.tables._pages.items():
            assert self.tables._keys[page] == key
        assert self.tables.num_registered == sum(key is not None for key in self.tables._keys)


prompts = st.tuples(st.integers(0, 130), st.integers(1, 40), st.integers(0, 2))
adding = st.tuples(st.just("add"), prompts, st.integers(1, 50), st.sampled_from(["", "", "", "other"]))
actions = st.one_of(adding, adding, st.tuples(st.just("cancel"), st.integers(0, 9)), st.tuples(st.just("step")))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(actions, max_size=30),
    st.sampled_from([8, 12, 40]),
    st.sampled_from([(), (-32,), (0,), (-32, 0)]),
    st.booleans(),
    st.sampled_from([0, 5, 30]),
    st.randoms(use_true_random=False),
)
def test_any_order_of_requests_answers_correctly_and_loses_no_page(
    todo: list[Any], num_pages: int, boundaries: tuple[int, ...], on_disk: bool, num_slots: int, source: random.Random
) -> None:
    runner = FakeRunner(num_pages, 256, boundaries=boundaries, num_slots=num_slots)
    stores = [MemoryStore(memory, lambda: source.random() < 0.2) for memory in (runner.pages, runner.states)]
    driver = Driver(runner, stores[0] if on_disk else None, 256, stores[1] if on_disk and num_slots else None)
    for action, *details in todo:
        if action == "add":
            (shared, own, seed), count, salt = details
            driver.add([*TEXT[:shared], *TEXT[200 + seed : 200 + seed + own]], count, salt)
            driver.step()
        elif action == "cancel":
            driver.cancel(*details)
        else:
            driver.step()
    while driver.open:
        driver.step()
    if num_slots:
        snapshots = driver.prefixes._snapshots
        assert sorted([*snapshots._free, *snapshots._slots.values()]) == list(range(4, num_slots))
    assert driver.tables.num_free == num_pages
    assert (driver.tables.table == -1).all()


def test_pages_on_disk_are_read_in_parts_while_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = FakeRunner(40, 512)
    store = MemoryStore(runner.pages, lambda: False)
    first = Driver(runner, store, 512)
    first.add(TEXT[:321], 1, "")
    while first.open:
        first.step()
    assert len(store) == 10
    monkeypatch.setattr("freedive.engine.prefix.STEP_BYTES", 3 * store.page_bytes)
    runner.pages.fill(0)
    second = Driver(runner, store, 512)
    second.add(TEXT[100:110], 20, "")
    second.step()
    second.add(TEXT[:321], 4, "")
    second.add(TEXT[:330], 4, "")
    lengths = []
    for _ in range(4):
        second.step()
        lengths.append(runner.batches[-1].lengths.tolist())
    assert lengths == [[1], [1], [1], [1, 1, 10]]
    while second.open:
        second.step()
    assert (second.prefixes.num_restored_tokens, second.prefixes.num_cached_tokens) == (320, 320)


# --- memory and disk together -------------------------------------------------------------------------------------


def test_after_a_restart_prompts_are_found_on_disk(tmp_path: Path) -> None:
    for found, restored in ((0, 0), (192, 192)):
        runner = FakeRunner(boundaries=(-32,))
        store = PageStore(tmp_path / "pages", runner.pages, 10**6)
        with start(runner, store) as engine:
            assert ask(engine, TEXT[:201]) == (found, alone(TEXT[:201], SHORT, boundaries=(-32,)))
            assert (engine.stats().num_restored, engine.stats().num_cached) == (restored, 0)
            assert ask(engine, TEXT[:201])[0] == 192
    assert len(list(tmp_path.glob("pages/*.page"))) == 6


def test_only_prompts_are_written(tmp_path: Path) -> None:
    runner = FakeRunner()
    with start(runner, PageStore(tmp_path / "pages", runner.pages, 10**6)) as engine:
        ask(engine, TEXT[:70], Sampling(max_tokens=100, temperature=0, ignore_eos=True))
        assert engine.stats().known_pages == 5
    assert len(list(tmp_path.glob("pages/*.page"))) == 2


def test_a_disk_that_hangs_takes_no_page_and_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request here needs nearly the whole cache."""
    monkeypatch.setattr(page_store, "CLOSE_S", 0.05)
    hanging = threading.Event()
    monkeypatch.setattr(page_store, "_checksum", lambda folder, key, data: hanging.wait(100) and b"late")
    runner = FakeRunner(4, 128)
    store = PageStore(tmp_path / "pages", runner.pages, 10**6)
    with start(runner, store) as engine:
        for begin in range(6):
            prompt = TEXT[begin : begin + 100]
            assert ask(engine, prompt) == (0, alone(prompt, SHORT))
            assert engine.stats().free_pages == 4
    hanging.set()
    store._writer.join()
    assert list(tmp_path.glob("pages/*")) == []


def test_a_reused_page_is_not_written(tmp_path: Path) -> None:
    runner = FakeRunner(2)
    with closing(PageStore(tmp_path / "pages", runner.pages, 10**6)) as store:
        store.write(b"0" * 16, 0, lambda: False)
        store.write(b"1" * 16, 1, iter([True, False]).__next__)
    assert list(tmp_path.glob("pages/*")) == []
    assert b"0" * 16 not in store
    assert b"1" * 16 not in store
