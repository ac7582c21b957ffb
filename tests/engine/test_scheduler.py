"""The scheduler's guarantees, step by step, without an engine."""

from __future__ import annotations

import random

import pytest
from fake_runner import FakeDecoder

from freedive.engine.chunk_sizer import ChunkSizer
from freedive.engine.detokenizer import Detokenizer
from freedive.engine.generation import Generation
from freedive.engine.kvcache import PageTables, pages_for
from freedive.engine.sampler import Sampler
from freedive.engine.sampling import Sampling
from freedive.engine.scheduler import Scheduler
from freedive.engine.sequence import Sequence, StepPlan

MAX_LENGTH = 200


def steady(chunk: int) -> ChunkSizer:
    """A chunk sizer with a constant size."""
    return ChunkSizer(chunk, seconds=1e9)


def request(index: int, num_prompt: int, num_answer: int, user: str = "", tenant: str = "") -> Sequence:
    sampling = Sampling()
    return Sequence(
        generation=Generation(str(index), num_prompt, 0, lambda generation: None),
        sampling=sampling,
        sampler=Sampler(sampling, 0, [], 2),
        detokenizer=Detokenizer(FakeDecoder(), ()),
        tokens=[1] * num_prompt,
        max_length=num_prompt + num_answer,
        stop_ids=frozenset(),
        user=user,
        tenant=tenant,
    )


def take_step(scheduler: Scheduler) -> list[Sequence]:
    """Runs one step; returns the sequences in it."""
    plan = scheduler.plan()
    carry_out(scheduler, plan)
    return [share.sequence for share in plan]


def carry_out(scheduler: Scheduler, plan: StepPlan) -> None:
    """Executes a plan as the engine does; the answer is always the same token."""
    for share in plan:
        one = share.sequence
        one.num_cached_tokens += share.num_tokens
        if one.num_pending_tokens == 0:
            one.tokens.append(1)
        if len(one.tokens) == one.max_length:
            scheduler.remove(one)


@pytest.mark.parametrize("num_pages", [7, 12, 100])
@pytest.mark.parametrize("seed", range(4))
def test_first_come_first_served_within_the_budget_and_the_youngest_is_preempted(num_pages: int, seed: int) -> None:
    rng = random.Random(seed)
    pages = PageTables(num_pages, 5, MAX_LENGTH)
    scheduler = Scheduler(pages, 5, steady(30))
    sequences = [request(index, rng.randint(1, 120), rng.randint(1, 80)) for index in range(40)]
    arriving, num_steps = iter(sequences), 0
    for first in (next(arriving) for _ in range(10)):
        scheduler.add(first)
    while scheduler.running or scheduler.waiting:
        decoding = [one for one in scheduler.running if one.num_pending_tokens == 1]
        oldest = next(iter([*scheduler.running, *scheduler.waiting]))
        plan = scheduler.plan()
        num_steps += 1

        planned = [share.sequence for share in plan]
        assert planned
        assert oldest in planned
        assert all(one in planned or one in scheduler.waiting for one in decoding)
        assert sum(share.num_tokens for share in plan if share.num_tokens > 1) <= 30
        arrival = [int(one.generation.id) for one in (*scheduler.running, *scheduler.waiting)]
        assert arrival == sorted(arrival)
        assert sum(pages_for(len(one.tokens)) for one in scheduler.running) == num_pages - pages.num_free

        carry_out(scheduler, plan)
        if rng.random() < 0.5 and (late := next(arriving, None)):
            scheduler.add(late)
        if rng.random() < 0.05 and scheduler.waiting:
            scheduler.remove(rng.choice(list(scheduler.waiting)))
    assert pages.num_free == num_pages
    assert (pages.table == -1).all()
    assert num_pages < 100 or all(one.generation.timings.num_preemptions == 0 for one in sequences)
    assert sequences[0].generation.timings.num_preemptions == 0


def test_prompts_share_the_budget_of_one_step() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(50))
    for index, num_prompt in enumerate((20, 100, 30)):
        scheduler.add(request(index, num_prompt, 5))
    assert [share.num_tokens for share in scheduler.plan()] == [20, 30]


def test_a_request_that_cannot_start_yet_is_not_overtaken() -> None:
    scheduler = Scheduler(PageTables(5, 4, MAX_LENGTH), 4, steady(500))
    for index, num_prompt in enumerate((64, 128, 1)):
        scheduler.add(request(index, num_prompt, 5))
    assert [int(share.sequence.generation.id) for share in scheduler.plan()] == [0]


def test_pages_are_allocated_all_or_none() -> None:
    pages = PageTables(4, 2, 128)
    assert pages.reserve(0, 33)
    assert not pages.reserve(1, 65)
    assert pages.num_free == 2
    assert pages.reserve(1, 64)
    assert pages.reserve(1, 1)
    assert sorted(pages.table[:, :2].ravel().tolist()) == [0, 1, 2, 3]
    pages.release(0)
    assert pages.num_free == 2
    assert (pages.table[0] == -1).all()


def test_users_get_equal_shares_however_many_requests_they_have() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(64))
    for index in range(60):
        scheduler.add(request(index, 30, 20, "many"))
    for index in range(60, 70):
        scheduler.add(request(index, 30, 20, "few"))
    finished: list[Sequence] = []
    while sum(one.user == "few" for one in finished) < 10:
        finished += [one for one in take_step(scheduler) if len(one.tokens) == one.max_length]
    assert sum(one.user == "many" for one in finished) in range(8, 14)


def test_a_user_without_a_slot_gets_one_of_a_user_with_several() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(64))
    for index in range(8):
        scheduler.add(request(index, 3, 190, "many"))
    for _ in range(5):
        take_step(scheduler)
    scheduler.add(late := request(8, 3, 5, "late"))
    assert late in take_step(scheduler)
    assert [one.generation.timings.num_preemptions for one in scheduler.waiting] == [1, 0, 0, 0, 0]


def test_tenants_get_equal_shares_however_many_users_they_name() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(64))
    for index in range(20):
        scheduler.add(request(index, 30, 20, "one name", "ann"))
    took_part = []
    for index in range(200):
        scheduler.add(request(100 + index, 30, 20, f"user {index}", "bob"))
        took_part += [one.tenant for one in take_step(scheduler)]
    assert 0.4 < took_part.count("ann") / len(took_part) < 0.6


def test_users_of_one_tenant_get_equal_shares_of_what_it_has() -> None:
    scheduler = Scheduler(PageTables(100, 8, MAX_LENGTH), 8, steady(64))
    for index in range(60):
        scheduler.add(request(index, 30, 20, "many", "ann"))
        scheduler.add(request(100 + index, 30, 20, "", "bob"))
    for index in range(200, 210):
        scheduler.add(request(index, 30, 20, "few", "ann"))
    finished: list[Sequence] = []
    while sum(one.user == "few" for one in finished) < 10:
        finished += [one for one in take_step(scheduler) if len(one.tokens) == one.max_length]
    assert sum(one.user == "many" for one in finished) in range(6, 16)
    assert sum(one.tenant == "bob" for one in finished) in range(14, 28)


def test_a_new_user_takes_no_slot_from_another_tenant() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(64))
    for index in range(3):
        scheduler.add(request(index, 3, 190, "", "ann"))
    scheduler.add(request(3, 3, 190, "first", "bob"))
    for _ in range(5):
        take_step(scheduler)
    scheduler.add(request(4, 3, 190, "second", "bob"))
    take_step(scheduler)
    assert [one.user for one in scheduler.waiting] == ["second"]
    scheduler.add(request(5, 3, 5, "", "cid"))
    take_step(scheduler)
    assert [one.tenant for one in scheduler.running].count("ann") == 2, "who has most gives one to who has none"


def test_an_idle_user_accumulates_no_credit() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), 4, steady(64))
    scheduler.add(request(0, 3, 2, "away"))
    for index in range(1, 40):
        scheduler.add(request(index, 30, 20, "busy"))
    for _ in range(30):
        take_step(scheduler)
    for index in range(40, 60):
        scheduler.add(request(index, 30, 20, "away"))
    took_part = [one.user for _ in range(100) for one in take_step(scheduler)]
    assert 0.4 < took_part.count("away") / len(took_part) < 0.6


def test_prompts_of_users_are_computed_alternately() -> None:
    scheduler = Scheduler(PageTables(100, 4, 2000), 4, steady(64))
    scheduler.add(request(0, 1500, 5, "long"))
    take_step(scheduler)
    scheduler.add(short := request(1, 64, 5, "short"))
    assert take_step(scheduler) == [short]


def test_chunks_shrink_while_answers_are_decoded() -> None:
    pace = ChunkSizer(512, seconds=0.25)
    for _ in range(8):
        pace.record(chunk := pace.chunk(decoding=True), chunk / 400)
    assert 90 <= pace.chunk(decoding=True) <= 110
    scheduler = Scheduler(PageTables(100, 4, 2000), 4, pace)
    scheduler.add(request(0, 1500, 5))
    assert [share.num_tokens for share in scheduler.plan()] == [512], "nobody is held up"
    scheduler.remove(next(iter(scheduler.running)))
    scheduler.add(request(1, 3, 50))
    take_step(scheduler)
    scheduler.add(request(2, 1500, 5))
    assert [share.num_tokens for share in scheduler.plan()] == [1, pace.chunk(decoding=True)]
    for _ in range(20):
        pace.record(pace.chunk(decoding=True), 1e-3)
    assert pace.chunk(decoding=True) == 512


def test_a_new_request_waits_for_a_bounded_time_if_nobody_decodes() -> None:
    pace = ChunkSizer(4096, seconds=0.25)
    for _ in range(8):
        pace.record(chunk := pace.chunk(decoding=False), chunk / 400)
    assert 1.2 <= pace.chunk(decoding=False) / 400 <= 1.8
