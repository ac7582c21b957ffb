"""The scheduler's promises, step by step, with no engine around it."""

from __future__ import annotations

import random

import pytest
from fake_runner import FakeDecoder

from freedive.engine.kvcache import PageTables, pages_for
from freedive.engine.request import Generation, Sampling
from freedive.engine.sampler import Sampler
from freedive.engine.scheduler import Request, Scheduler
from freedive.engine.stop import TextStream

MAX_LENGTH = 200


def request(index: int, num_prompt: int, num_answer: int) -> Request:
    sampling = Sampling()
    return Request(
        generation=Generation(str(index), num_prompt, 0, lambda generation: None),
        sampling=sampling,
        sampler=Sampler(sampling, 0, [], 2),
        text=TextStream(FakeDecoder(), ()),
        tokens=[1] * num_prompt,
        max_length=num_prompt + num_answer,
        stop_ids=frozenset(),
    )


@pytest.mark.parametrize("num_pages", [7, 12, 100])
@pytest.mark.parametrize("seed", range(4))
def test_first_come_first_served_within_the_budget_and_the_youngest_gives_way(num_pages: int, seed: int) -> None:
    rng = random.Random(seed)
    pages = PageTables(num_pages, 5, MAX_LENGTH)
    scheduler = Scheduler(pages, max_batch=5, prefill_chunk=30)
    requests = [request(index, rng.randint(1, 120), rng.randint(1, 80)) for index in range(40)]
    arriving, num_steps = iter(requests), 0
    for first in (next(arriving) for _ in range(10)):
        scheduler.add(first)
    while scheduler.running or scheduler.waiting:
        decoding = [one for one in scheduler.running if one.num_pending == 1]
        oldest = (scheduler.running or scheduler.waiting)[0]
        plan = scheduler.plan()
        num_steps += 1

        planned = [share.request for share in plan]
        assert planned
        assert planned[0] is oldest
        assert all(one in planned or one in scheduler.waiting for one in decoding)
        assert sum(share.count for share in plan if share.count > 1) <= 30
        arrival = [int(one.generation.id) for one in (*scheduler.running, *scheduler.waiting)]
        assert arrival == sorted(arrival)
        assert sum(pages_for(len(one.tokens)) for one in scheduler.running) == num_pages - pages.num_free

        for share in plan:
            one = share.request
            one.num_cached += share.count
            if one.num_pending == 0:
                one.tokens.append(1)
            if len(one.tokens) == one.max_length:
                scheduler.remove(one)
        if rng.random() < 0.5 and (late := next(arriving, None)):
            scheduler.add(late)
        if rng.random() < 0.05 and scheduler.waiting:
            scheduler.remove(rng.choice(scheduler.waiting))
    assert pages.num_free == num_pages
    assert (pages.table == -1).all()
    assert num_pages < 100 or all(one.generation.timings.num_preemptions == 0 for one in requests)
    assert requests[0].generation.timings.num_preemptions == 0


def test_prompts_share_the_budget_of_one_step() -> None:
    scheduler = Scheduler(PageTables(100, 4, MAX_LENGTH), max_batch=4, prefill_chunk=50)
    for index, num_prompt in enumerate((20, 100, 30)):
        scheduler.add(request(index, num_prompt, 5))
    assert [share.count for share in scheduler.plan()] == [20, 30]


def test_a_request_that_cannot_start_yet_is_not_overtaken() -> None:
    scheduler = Scheduler(PageTables(5, 4, MAX_LENGTH), max_batch=4, prefill_chunk=500)
    for index, num_prompt in enumerate((64, 128, 1)):
        scheduler.add(request(index, num_prompt, 5))
    assert [int(share.request.generation.id) for share in scheduler.plan()] == [0]


def test_pages_are_taken_whole_or_not_at_all() -> None:
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
