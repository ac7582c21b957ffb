"""Same request, same answer: for any batch, any chunks of prompts and any preemption."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from fake_runner import END, VOCAB, FakeRunner, FakeTokenizer, alone, text_of

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import Generation, TokenOutput
from freedive.engine.sampling import Sampling


def start(runner: FakeRunner, **config: int) -> Engine:
    return Engine(runner, FakeTokenizer(), EngineConfig(**config))


def read(generation: Generation) -> tuple[list[int], str, str | None]:
    outputs = list(generation)
    assert [bool(output.finish_reason) for output in outputs] == [False] * (len(outputs) - 1) + [True]
    tokens = [token for output in outputs for token in output.token_ids]
    return tokens, "".join(output.text for output in outputs), outputs[-1].finish_reason


def random_request(rng: random.Random, longest: int = 150) -> tuple[list[int], Sampling]:
    prompt = [rng.randrange(VOCAB - 2) for _ in range(rng.randint(1, longest))]
    return prompt, Sampling(
        max_tokens=rng.randint(1, 100),
        temperature=rng.choice([0, 0.7, 1.5]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1, 0.9]),
        repetition_penalty=rng.choice([1, 1.3]),
        frequency_penalty=rng.choice([0, 0.5]),
        seed=rng.randrange(2**40),
        ignore_eos=rng.random() < 0.7,
    )


@pytest.mark.parametrize(
    ("num_pages", "config"),
    [
        (200, {}),
        (200, {"max_batch": 1}),
        (200, {"prefill_chunk": 7}),
        (9, {"max_batch": 8, "prefill_chunk": 20}),
        (8, {"max_batch": 8, "prefill_chunk": 64}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_answers_do_not_depend_on_batch_chunks_preemption_or_order(
    num_pages: int, config: dict[str, int], seed: int
) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(24)]
    runner = FakeRunner(num_pages, max_context=256)
    with start(runner, **config) as engine:
        order = rng.sample(range(len(requests)), len(requests))
        generations = {index: engine.submit(*requests[index]) for index in order}
        for index, (prompt, sampling) in enumerate(requests):
            tokens, text, _ = read(generations[index])
            assert tokens == alone(prompt, sampling)
            assert text == text_of(tokens)
        assert engine.stats().free_pages == num_pages
        preempted = sum(generation.timings.num_preemptions for generation in generations.values())
        assert (preempted > 0) == (num_pages < 10)


def test_every_decoding_request_takes_part_in_every_step_while_a_long_prompt_is_read() -> None:
    runner = FakeRunner(64, max_context=1024)
    with start(runner, prefill_chunk=16) as engine:
        short = engine.submit([1], Sampling(max_tokens=200, ignore_eos=True))
        reader = iter(short)
        next(reader)
        long = engine.submit([2] * 400, Sampling(max_tokens=1))
        read(long)
        list(reader)
    during = [batch for batch in runner.batches if 16 in batch.lengths]
    assert len(during) == 400 // 16
    assert all(batch.lengths.tolist() == [1, 16] for batch in during)


def test_the_oldest_request_is_served_first() -> None:
    runner = FakeRunner(64)
    runner.gate.clear()
    with start(runner, max_batch=1) as engine:
        generations = [engine.submit([index], Sampling(max_tokens=3)) for index in range(5)]
        runner.gate.set()
        for generation in generations:
            read(generation)
    finished = [generation.timings.finished_at or 0.0 for generation in generations]
    assert finished == sorted(finished)
    assert [batch.tokens[0] for batch in runner.batches if batch.starts[0] == 0] == list(range(5))


def test_an_answer_ends_at_max_tokens_at_the_end_of_the_context_or_with_an_end_token() -> None:
    with start(FakeRunner(64, max_context=100)) as engine:
        tokens, _, reason = read(engine.submit([1, 2, 3], Sampling(max_tokens=7, ignore_eos=True)))
        assert (len(tokens), reason) == (7, "length")
        tokens, _, reason = read(engine.submit([1, 2, 3], Sampling(ignore_eos=True)))
        assert (len(tokens), reason) == (97, "length")
        tokens, text, reason = read(engine.submit([5], Sampling(logit_bias={END: 100})))
        assert (tokens, text, reason) == ([END], "", "stop")
        free = alone([1, 2], Sampling(temperature=0, max_tokens=20, ignore_eos=True))
        sampling = Sampling(temperature=0, stop_token_ids=frozenset({free[4]}), ignore_eos=True)
        tokens, text, reason = read(engine.submit([1, 2], sampling))
        first = free.index(free[4])
        assert (tokens, text, reason) == (free[: first + 1], text_of(free[:first]), "stop")


def test_a_stop_string_that_spans_tokens_ends_the_answer_and_is_not_in_it() -> None:
    sampling = Sampling(temperature=0, max_tokens=40, ignore_eos=True)
    whole = text_of(alone([3, 1], sampling))
    with start(FakeRunner()) as engine:
        stopped = Sampling(temperature=0, max_tokens=40, ignore_eos=True, stop=("@never@", whole[10:14]))
        outputs = list(engine.submit([3, 1], stopped))
    cut = whole.index(whole[10:14])
    assert "".join(output.text for output in outputs) == whole[:cut]
    assert (outputs[-1].finish_reason, outputs[-1].stop_string) == ("stop", whole[10:14])
    assert sum(len(output.token_ids) for output in outputs) == cut + 4
    assert outputs[0].text == whole[0]


def test_a_random_seed_is_reported_when_none_is_given() -> None:
    with start(FakeRunner()) as engine:
        first = engine.submit([1, 2], Sampling(max_tokens=20))
        answer = read(first)
        assert read(engine.submit([1, 2], Sampling(max_tokens=20, seed=first.seed))) == answer
        assert read(engine.submit([1, 2], Sampling(max_tokens=20))) != answer


def test_the_last_output_has_the_timings() -> None:
    with start(FakeRunner()) as engine:
        generation = engine.submit([1] * 9, Sampling(max_tokens=20, ignore_eos=True))
        *_, last = generation
    timings = last.timings
    assert timings is generation.timings
    assert timings is not None
    assert timings.num_generated == 20
    assert generation.num_prompt_tokens == 9
    assert timings.first_token_s == pytest.approx(timings.queued_s + timings.prefill_s)
    assert min(timings.queued_s, timings.prefill_s, timings.decode_s) > 0
    assert timings.tokens_per_s == pytest.approx(19 / timings.decode_s)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    with start(FakeRunner()) as engine:
        sampling = Sampling(temperature=0, max_tokens=5, ignore_eos=True, logit_bias={7: 100}, logprobs=3)
        outputs = list(engine.submit([1, 2], sampling))
    for output in outputs:
        assert output.logprobs is not None
        (entry,) = output.logprobs
        assert entry.token_id == 7
        assert entry.top[0][1] > entry.top[1][1] > entry.top[2][1]
        assert entry.top[0][1] > entry.logprob


def test_async_iteration_serves_many_readers_on_one_loop() -> None:
    rng = random.Random(5)
    requests = [random_request(rng) for _ in range(20)]

    async def collect(generation: Generation) -> list[TokenOutput]:
        return [output async for output in generation]

    async def main(engine: Engine) -> list[list[TokenOutput]]:
        return await asyncio.gather(*(collect(engine.submit(*request)) for request in requests))

    with start(FakeRunner(100)) as engine:
        answers = asyncio.run(main(engine))
    for outputs, request in zip(answers, requests, strict=True):
        assert [token for output in outputs for token in output.token_ids] == alone(*request)


def test_two_threads_may_submit_at_once() -> None:
    rng = random.Random(6)
    requests = [random_request(rng, longest=40) for _ in range(60)]
    answers: dict[int, list[int]] = {}

    def work(engine: Engine, indices: range) -> None:
        for index in indices:
            answers[index] = read(engine.submit(*requests[index]))[0]

    with start(FakeRunner(100)) as engine:
        threads = [threading.Thread(target=work, args=(engine, range(part, 60, 2))) for part in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {index: alone(*request) for index, request in enumerate(requests)}
