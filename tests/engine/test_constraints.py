"""A constraint limits the tokens of its own answer and affects no other request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_runner import END, VOCAB, FakeRunner, FakeTokenizer, repetitive_logits_of

from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import EngineError, Generation
from freedive.engine.sampler import Sampler, masked
from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.text.prompt import Prompt

PROMPT = [5, 6, 7]


def bits(*tokens: int, size: int = VOCAB) -> np.ndarray:
    chosen = np.zeros(size, np.bool_)
    chosen[list(tokens)] = True
    return np.packbits(chosen, bitorder="little")


class Counting:
    """Allows multiples of three, or of two after an odd number of tokens; it is complete after ``longest`` tokens."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.taken: list[int] = []

    @property
    def complete(self) -> bool:
        return len(self.taken) == self.longest

    def allowed(self) -> np.ndarray:
        return bits(*range(0, 90, 2 if len(self.taken) % 2 else 3))

    def take(self, token: int) -> None:
        self.taken.append(token)


class Failing(Counting):
    def allowed(self) -> np.ndarray:
        if len(self.taken) == 3:
            raise RuntimeError("too hard")
        return super().allowed()


def constrained_by(constraint: Any) -> Prompt:
    return Prompt(PROMPT, make_constraint=lambda: constraint)


def read(generation: Generation) -> tuple[list[int], str | None]:
    outputs = list(generation)
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=1), Sampling(seed=2, top_k=3, top_p=0.9)])
def test_only_allowed_tokens_come_and_the_answer_ends_when_it_is_complete(sampling: Sampling) -> None:
    constraint = Counting(20)
    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        tokens, reason = read(engine.submit(constrained_by(constraint), sampling))
        assert engine.stats().num_steps == 20
    assert (len(tokens), reason, constraint.taken) == (20, "stop", tokens)
    assert all(token % (2 if place % 2 else 3) == 0 for place, token in enumerate(tokens))


def test_a_truncated_answer_has_the_reason_length() -> None:
    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        for longest, reason in ((20, "length"), (7, "stop"), (6, "stop")):
            sampling = Sampling(seed=1, max_tokens=7)
            assert read(engine.submit(constrained_by(Counting(longest)), sampling))[1] == reason


@pytest.mark.parametrize("config", [{}, {"max_batch": 2}, {"prefill_chunk": 2}, {"speculation": "off"}], ids=str)
@pytest.mark.parametrize("num_pages", [200, 12])
def test_constrained_answers_do_not_depend_on_batch_preemption_or_speculation(
    config: dict[str, int], num_pages: int
) -> None:
    def run(engine: Engine, seed: int, constrained: bool) -> Generation:
        sampling = Sampling(seed=seed, temperature=0.3, max_tokens=60, ignore_eos=True)
        return engine.submit(constrained_by(Counting(50)) if constrained else PROMPT, sampling)

    cases = [(seed, seed % 2 == 0) for seed in range(8)]
    alone = []
    for case in cases:
        with Engine(
            FakeRunner(logits_of=repetitive_logits_of), FakeTokenizer(), EngineConfig(speculation="off")
        ) as one:
            alone.append(read(run(one, *case)))
    runner = FakeRunner(num_pages, max_context=96, logits_of=repetitive_logits_of)
    with Engine(runner, FakeTokenizer(), EngineConfig(**config)) as engine:
        generations = [run(engine, *case) for case in cases]
        assert [read(generation) for generation in generations] == alone


def test_correct_drafts_are_accepted_under_a_constraint() -> None:
    runner = FakeRunner(logits_of=repetitive_logits_of)
    with Engine(runner, FakeTokenizer(), EngineConfig()) as engine:
        read(engine.submit(constrained_by(Counting(300)), Sampling(temperature=0, max_tokens=300)))
        assert engine.stats().num_accepted > 20


def test_a_constraint_that_fails_ends_its_own_request_alone() -> None:
    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        bad = engine.submit(constrained_by(Failing(20)), Sampling(seed=1))
        good = engine.submit(constrained_by(Counting(20)), Sampling(seed=1))
        with pytest.raises(EngineError, match="too hard"):
            read(bad)
        assert read(good)[1] == "stop"


def test_a_format_that_proves_too_complex_is_a_user_error() -> None:
    class TooHard(Counting):
        def allowed(self) -> np.ndarray:
            raise UserError("The form cannot be kept to", param="response_format")

    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        bad = engine.submit(constrained_by(TooHard(20)), Sampling(seed=1))
        good = engine.submit(constrained_by(Counting(20)), Sampling(seed=1))
        with pytest.raises(UserError, match="cannot be kept to"):
            read(bad)
        assert read(good)[1] == "stop"
        assert engine.stats().free_pages == engine.stats().num_pages


def test_the_end_may_come_where_a_constraint_allows_it() -> None:
    class Ending(Counting):
        def allowed(self) -> np.ndarray:
            return bits(END)

    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        assert read(engine.submit(constrained_by(Ending(5)), Sampling(seed=1))) == ([END], "stop")


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    with Engine(FakeRunner(), FakeTokenizer(), EngineConfig()) as engine:
        free = next(iter(engine.submit(PROMPT, Sampling(temperature=0, logprobs=20))))
        constrained = next(iter(engine.submit(constrained_by(Counting(1)), Sampling(temperature=0, logprobs=20))))
    assert free.logprobs
    assert constrained.logprobs
    assert constrained.logprobs[0].top == free.logprobs[0].top
    assert constrained.logprobs[0].logprob <= free.logprobs[0].logprob


@pytest.mark.parametrize("size", [8, 61, 64, 100, 131])
@pytest.mark.parametrize("known", [5, 61, 100, 200])
def test_tokens_that_are_not_allowed_have_no_probability(size: int, known: int) -> None:
    rng = np.random.default_rng(size)
    logits = rng.standard_normal(size).astype(np.float32)
    chosen = rng.random(known) < 0.5
    result = masked(logits, np.packbits(chosen, bitorder="little"))
    expected = np.append(chosen, np.zeros(size, np.bool_))[:size]
    assert (result == np.where(expected, logits, -np.inf)).all()


def test_a_constraint_comes_after_penalties_and_before_the_likeliest_are_kept() -> None:
    logits = np.arange(VOCAB, dtype=np.float32)
    for sampling in (Sampling(top_k=1, seed=0), Sampling(top_p=0.01, seed=0), Sampling(min_p=1, seed=0)):
        assert Sampler(sampling, 0, [], VOCAB)(logits, bits(3, 4, 5)) == 5
    biased = Sampler(Sampling(temperature=0, logit_bias={3: 100, 90: 100}), 0, [], VOCAB)
    assert biased(logits, bits(3, 4, 5)) == 3
