"""The log-probabilities of a prompt are conditioned on the tokens before each, however the prompt is computed."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runner import FakeRunner, FakeTokenizer, logits_of

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import TokenLogprobs
from freedive.engine.sampler import logprobs
from freedive.engine.sampling import Sampling
from freedive.engine.scoring import MAX_SCORED_ROWS

PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 90, 300)]
SCORED = Sampling(temperature=0, max_tokens=2, logprobs=3, prompt_logprobs=3)


def expected(prompt: list[int]) -> list[TokenLogprobs]:
    after = [logprobs(logits_of(np.array(prompt[:end])), prompt[end], 3) for end in range(1, len(prompt))]
    return [TokenLogprobs(prompt[0], None, ()), *after]


@pytest.mark.parametrize("config", [{}, {"prefill_chunk": 7}, {"max_batch": 2}, {"prefix_cache": "off"}], ids=str)
@pytest.mark.parametrize("num_pages", [64, 24])
def test_prompt_logprobs_are_the_models_own_alone_cached_cut_and_preempted(
    config: dict[str, int], num_pages: int
) -> None:
    with Engine(FakeRunner(num_pages), FakeTokenizer(), EngineConfig(**config)) as engine:
        list(engine.submit(PROMPT, Sampling(temperature=0, max_tokens=1)))  # registers its pages
        others = [engine.submit(PROMPT[:size], Sampling(seed=size, max_tokens=90)) for size in (200, 150)]
        generations = [engine.submit(PROMPT[:size], SCORED) for size in (300, 200, 1, 2, 129)]
        for generation in generations:
            first, *rest = list(generation)
            assert list(first.prompt_logprobs) == expected(PROMPT[: generation.num_prompt_tokens])
            assert first.logprobs
            assert not any(output.prompt_logprobs for output in rest)
        assert all(list(other) for other in others)


def test_logits_of_long_prompts_are_computed_in_bounded_parts() -> None:
    runner = FakeRunner()
    with Engine(runner, FakeTokenizer(), EngineConfig()) as engine:
        runner.gate.clear()
        generations = [engine.submit(PROMPT[start:], SCORED) for start in range(4)]
        runner.gate.set()
        assert all(next(iter(generation)).prompt_logprobs for generation in generations)
    assert max(len(batch.output_rows) for batch in runner.batches) <= MAX_SCORED_ROWS + len(generations)


def test_no_tokens_are_an_answer_too() -> None:
    with Engine(FakeRunner(max_context=300), FakeTokenizer(), EngineConfig()) as engine:
        for prompt in (PROMPT[:1], PROMPT):  # the latter leaves no room for an answer
            (plain,) = engine.submit(prompt, Sampling(max_tokens=0))
            (scored,) = engine.submit(prompt, Sampling(max_tokens=0, prompt_logprobs=3))
            assert (plain.events, plain.token_ids, plain.finish_reason, plain.prompt_logprobs) == ((), (), "length", ())
            assert list(scored.prompt_logprobs) == expected(prompt)
            assert scored.timings


def test_answers_are_truncated_to_the_context() -> None:
    with Engine(FakeRunner(max_context=310), FakeTokenizer(), EngineConfig()) as engine:
        for limit in (None, -1, 11, 8192):
            outputs = list(engine.submit(PROMPT, Sampling(seed=1, max_tokens=limit, ignore_eos=True)))
            assert (len(outputs), outputs[-1].finish_reason) == (10, "length")


def test_values_that_ask_for_nothing_are_accepted() -> None:
    sampling = Sampling(max_tokens=-1, top_k=-1, stop=("", "x", ""))
    assert sampling == Sampling(stop=("x",))
