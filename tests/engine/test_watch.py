"""Watched answers: readers see how each token was chosen and which experts computed it, and change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runner import FakeRunner, FakeTokenizer, repetitive_logits_of
from test_real_engine import TinyTokenizer
from tiny_models import tiny

from freedive.arrays import Ints
from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import Generation
from freedive.engine.sampler import logprobs
from freedive.engine.sampling import Sampling
from freedive.engine.watch import MAX_TOKENS, NUM_TOP
from freedive.model.batch import Batch
from freedive.ops.native import NativeRunner

PROMPTS = [[5, 6, 7, 8] * 9, [20, 21], [9] * 50, [30 + place % 7 for place in range(40)]]
SAMPLINGS = [Sampling(max_tokens=150, seed=7, ignore_eos=True, temperature=place % 2) for place in range(4)]


class Witness(FakeRunner):
    """A fake model whose only expert of a row is the token that the row reads; it counts who asks."""

    num_asked = 0

    def chosen_experts(self, row: int) -> Ints:
        self.num_asked += 1
        return self.batches[-1].tokens[row].reshape(1, 1).copy()


def held(runner: FakeRunner, engine: Engine) -> list[Generation]:
    """Submits all requests, which begin when the runner's gate is opened."""
    runner.gate.clear()
    return [engine.submit(prompt, sampling) for prompt, sampling in zip(PROMPTS, SAMPLINGS, strict=True)]


def tokens_of(generation: Generation) -> list[int]:
    return [token for output in generation for token in output.token_ids]


def answers(runner: FakeRunner, **config: int | str) -> list[list[int]]:
    with Engine(runner, FakeTokenizer(), EngineConfig(**config)) as engine:
        generations = held(runner, engine)
        runner.gate.set()
        return [tokens_of(generation) for generation in generations]


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("num_pages", [64, 10], ids=["", "preempted"])
@pytest.mark.parametrize("drafts", [False, True])
def test_watched_answers_are_the_same_and_each_token_is_shown_with_its_own_row(num_pages: int, drafts: bool) -> None:
    runner = Witness(num_pages, logits_of=repetitive_logits_of, drafts=drafts)
    with Engine(runner, FakeTokenizer(), EngineConfig(prefill_chunk=16)) as engine:
        generations = held(runner, engine)
        with generations[0].watches.open() as first, generations[3].watches.open() as last:
            runner.gate.set()
            found = [tokens_of(generation) for generation in generations]
            stats = engine.stats()
        assert stats.num_accepted > 0
        assert (sum(each.timings.num_preemptions for each in generations) > 0) == (num_pages == 10)
    assert found == answers(FakeRunner(logits_of=repetitive_logits_of), speculation="off")
    for place, watch in ((0, first), (3, last)):
        assert [token.token_id for token in watch] == found[place]
        assert [token.index for token in watch] == list(range(150))
        for token in watch:
            text = PROMPTS[place] + found[place][: token.index]
            assert token.experts.tolist() == [text[-1:]], "the row that it was chosen from"
            entry = logprobs(repetitive_logits_of(np.array(text)).astype(np.float32), token.token_id, NUM_TOP)
            assert (token.logprob, token.top) == (entry.logprob, entry.top)
    assert runner.num_asked == 300, "nothing is computed for those that nobody watches"


def test_a_reader_may_come_in_the_middle_and_leave_and_keeps_no_more_than_the_newest_tokens() -> None:
    runner = Witness(max_context=2048)
    sampling = Sampling(max_tokens=2 * MAX_TOKENS, seed=1, ignore_eos=True)
    with Engine(runner, FakeTokenizer(), EngineConfig()) as engine:
        plain = tokens_of(engine.submit([1, 2, 3], sampling))
        assert runner.num_asked == 0
        generation = engine.submit([1, 2, 3], sampling)
        outputs = iter(generation)
        found = [next(outputs).token_ids[0] for _ in range(10)]
        runner.gate.clear()
        with generation.watches.open() as watch, generation.watches.open() as other:
            runner.gate.set()
            found += [output.token_ids[0] for output in outputs]
        assert not generation.watches
    assert found == plain
    assert len(watch) == MAX_TOKENS
    assert list(watch) == list(other)
    assert [token.token_id for token in watch] == plain[-MAX_TOKENS:]
    assert watch[-1].index == 2 * MAX_TOKENS - 1


def test_a_reader_who_left_is_told_no_more() -> None:
    runner = Witness(max_context=2048)
    with Engine(runner, FakeTokenizer(), EngineConfig()) as engine:
        runner.gate.clear()
        generation = engine.submit([1, 2, 3], Sampling(max_tokens=500, seed=1, ignore_eos=True))
        with generation.watches.open():
            runner.gate.set()
            outputs = iter(generation)
            next(outputs)
            runner.gate.clear()
        runner.entered.clear()
        runner.gate.set()
        assert runner.entered.wait(10)
        asked = runner.num_asked  # at most the step that ran while the reader left is shown
        assert len(list(outputs)) == 499
        assert runner.num_asked - asked <= 1


@pytest.mark.parametrize("name", ["qwen3_moe", "llama"])
def test_the_experts_are_those_of_a_plain_run(name: str) -> None:
    model = tiny(name)

    def runner() -> NativeRunner:
        return NativeRunner(model.spec, model.packed, num_threads=2, max_rows=256, num_pages=24)

    with Engine(runner(), TinyTokenizer(), EngineConfig(prefill_chunk=16)) as engine:
        generations = [engine.submit(prompt, sampling) for prompt, sampling in zip(PROMPTS, SAMPLINGS, strict=True)]
        with generations[0].watches.open() as watch:
            found = [tokens_of(generation) for generation in generations]
    with Engine(runner(), TinyTokenizer(), EngineConfig(prefill_chunk=16, speculation="off")) as engine:
        plain = [tokens_of(engine.submit(prompt, each)) for prompt, each in zip(PROMPTS, SAMPLINGS, strict=True)]
    assert found == plain
    assert [token.token_id for token in watch] == found[0][150 - len(watch) :]
    assert watch
    alone = runner()
    for token in watch:
        [logits] = alone.step(Batch.whole([PROMPTS[0] + found[0][: token.index]]))
        assert token.experts.tolist() == [routes.experts[-1].tolist() for routes in alone.routes()]
        assert token.top == logprobs(logits, token.token_id, NUM_TOP).top
        assert list(token.missed) == []
