"""Speculation changes when tokens arrive and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from fake_runner import VOCAB, FakeRunner, FakeTokenizer, logits_of, repetitive_logits_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny
from tiny_mtp import with_mtp
from weights import BEST_LEVEL

from freedive.config import EngineConfig
from freedive.engine.engine import Engine, EngineStats
from freedive.engine.sampling import Sampling
from freedive.engine.speculation import NGRAM_SIZES, DraftBudget, PromptLookup
from freedive.errors import UserError
from freedive.model.batch import MAX_DRAFT, Runner
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

Requests = Sequence[tuple[list[int], Sampling]]


# --- drafts -------------------------------------------------------------------------------------------------------


def test_the_continuation_of_an_earlier_match_is_drafted() -> None:
    assert PromptLookup().draft([5, 6, 7, 8, 9, 5, 6], 3).tokens == [7, 8, 9]
    assert PromptLookup().draft([5, 6, 7, 5, 6, 8, 5, 6], 1).tokens == [8]  # the last occurrence counts,
    text = [1, 2, 3, 4, 9, 0, 3, 4, 8, 0, 1, 2, 3, 4]
    assert PromptLookup().draft(text, 1).tokens == [9]  # but a longer match more
    assert PromptLookup().draft([1, 2, 3, 4], 5).tokens == []
    assert PromptLookup().draft([1], 5).tokens == []


def test_a_draft_that_reaches_the_end_of_the_text_repeats_it() -> None:
    assert PromptLookup().draft([9, 1, 2, 3, 1, 2], 7).tokens == [3, 1, 2, 3, 1, 2, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_text_in_parts_is_looked_up_like_text_at_once(text: list[int], step: int) -> None:
    lookup = PromptLookup()
    for end in range(1, len(text), step):
        lookup.draft(text[:end], 4)
    at_once = PromptLookup().draft(text, 4).tokens
    assert lookup.draft(text, 4).tokens == at_once
    matches = [
        text[end]
        for size in sorted(NGRAM_SIZES, reverse=True)
        for end in range(len(text) - 1, size - 1, -1)
        if text[end - size : end] == text[-size:]
    ]
    assert at_once[:1] == matches[:1]


def test_accept_probabilities_follow_the_tokens_whether_or_not_drafts_were_checked() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2
    first = lookup.draft(text, 4).accept_probs
    assert first == sorted(first, reverse=True)
    for token in text * 5:
        text.append(token)
        lookup.draft(text, 4)
    assert lookup.draft(text, 4).accept_probs[-1] > 0.9
    lookup, source, text = PromptLookup(), random.Random(0), [1, 2]
    for _ in range(300):
        text.append(source.choice([1, 2, 3]))
        lookup.draft(text, 4)
    assert lookup.draft(text, 4).accept_probs[0] < 0.6


def test_prompt_lookup_takes_microseconds_per_token() -> None:
    source, text, lookup = random.Random(0), [], PromptLookup()
    text = source.choices(range(30), k=20_000)
    lookup.draft(text, MAX_DRAFT)
    times = []
    for _ in range(200):
        text.append(source.randrange(30))
        start = time.perf_counter()
        lookup.draft(text, MAX_DRAFT)
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 100e-6  # about 10 us, with a margin for busy machines


# --- the draft budget ---------------------------------------------------------------------------------------------


def settle(
    gate: DraftBudget, seconds: Mapping[int, float], odds: Sequence[Sequence[float]], steps: int = 400
) -> list[int]:
    """Returns the drafts that most of the last steps checked, in all, if a step of n rows takes ``seconds[n]``."""
    chosen = []
    for _ in range(steps):
        chosen.append(gate.choose(odds))
        rows = len(odds) + sum(chosen[-1])
        gate.record(rows, seconds[rows])
    last = [tuple(each) for each in chosen[steps // 2 :]]
    return list(max(set(last), key=last.count))


SURE = [0.9**n for n in range(1, 16)]
FLAT = {rows: 1 + rows / 100 for rows in range(1, 300)}
STEEP = {rows: float(rows) for rows in range(1, 300)}
EXPERTS = {rows: 0.3 + 0.7 * 16 * (1 - (1 - 1 / 16) ** rows) for rows in range(1, 300)}
"""Each token uses 8 of 128 experts; the rest of a step has a constant cost."""


def test_drafts_are_checked_only_if_rows_are_cheap() -> None:
    assert settle(DraftBudget(), FLAT, [SURE]) == [15]
    assert settle(DraftBudget(), STEEP, [SURE]) == [0]
    assert settle(DraftBudget(), FLAT, [[0.05**n for n in range(1, 16)]]) == [1]
    assert settle(DraftBudget(), FLAT, [[]]) == [0]


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("seconds", [FLAT, STEEP, EXPERTS, {**EXPERTS, 2: 1.0}])
def test_the_budget_finds_the_best_number_of_drafts(seconds: Mapping[int, float], chance: float) -> None:
    odds = [chance**n for n in range(1, 16)]
    rates = [(1 + sum(odds[:n])) / seconds[1 + n] for n in range(16)]
    (found,) = settle(DraftBudget(), seconds, [odds])
    assert rates[found] > 0.97 * max(rates)


def test_the_likeliest_drafts_of_all_requests_share_the_step() -> None:
    stairs = {rows: 1.0 if rows <= 8 else 10.0 for rows in range(1, 300)}
    assert settle(DraftBudget(), stairs, [[0.9, 0.8, 0.1], [], [0.7, 0.6, 0.5, 0.4]]) == [2, 0, 3]
    assert settle(DraftBudget(), {rows: max(16.0, rows) for rows in range(1, 300)}, [[0.5]] * 16) == [0] * 16


def test_the_budget_adapts_to_a_slower_machine() -> None:
    gate = DraftBudget()
    assert settle(gate, FLAT, [SURE]) == [15]
    assert settle(gate, STEEP, [SURE], steps=2_000) == [0]
    assert settle(gate, FLAT, [SURE], steps=2_000) == [15]


def test_outliers_of_step_times_are_forgotten() -> None:
    gate = DraftBudget()
    for rows in (1, 2, 4, 8, 16):
        gate.record(rows, 10.0 * rows)
    for _ in range(50):
        gate.record(1, 1.0)
    assert gate.choose([SURE]) == [0]
    for _ in range(500):
        gate.record(1, 1.0)
    assert settle(gate, FLAT, [SURE]) == [15]


def test_trials_that_do_not_pay_cost_little() -> None:
    """A step costs as much as its rows, so every checked draft is a loss, except for what it teaches."""
    gate, rows = DraftBudget(), []
    for _ in range(3000):
        rows.append(1 + sum(gate.choose([SURE])))
        gate.record(rows[-1], STEEP[rows[-1]])
    tokens = sum(1 + sum(SURE[: num - 1]) for num in rows)
    assert tokens / sum(STEEP[num] for num in rows) > 0.97


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    gate = DraftBudget()
    assert gate.choose([SURE]) == [0]
    gate.record(1, 1.0)
    assert gate.choose([SURE]) == [1]


# --- answers ------------------------------------------------------------------------------------------------------


def answers(runner: Runner, requests: Requests, **config: Any) -> tuple[list[Any], EngineStats]:
    """Returns the outputs of every request, without timings."""
    with Engine(runner, FakeTokenizer(), EngineConfig(**config)) as engine:
        generations = [engine.submit(prompt, sampling) for prompt, sampling in requests]
        pieces = [list(generation) for generation in generations]
        for one in pieces:
            assert all(len(output.token_ids) == 1 for output in one)
            assert one[-1].timings is not None
            assert one[-1].timings.num_generated == len(one)
        plain = [[(p.text, p.token_ids, p.finish_reason, p.logprobs) for p in one] for one in pieces]
        return plain, engine.stats()


def random_request(rng: random.Random, vocab: int) -> tuple[list[int], Sampling]:
    words = [[rng.randrange(vocab - 2) for _ in range(rng.randint(1, 9))] for _ in range(4)]
    prompt = [token for _ in range(rng.randint(1, 12)) for token in rng.choice(words)]
    return prompt, Sampling(
        max_tokens=rng.randint(1, 90),
        temperature=rng.choice([0, 0, 0.3, 1.0]),
        top_p=rng.choice([1, 0.9]),
        repetition_penalty=rng.choice([1, 1, 1.1]),
        frequency_penalty=rng.choice([0, 0, 0.1]),
        seed=rng.randrange(2**40),
        stop=rng.choice([(), ("ab",), ("c",)]),
        stop_token_ids=rng.choice([frozenset(), frozenset({7, 11})]),
        ignore_eos=rng.random() < 0.7,
        logprobs=rng.choice([None, 2]),
    )


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize(
    ("num_pages", "config"),
    [(200, {}), (200, {"max_batch": 1}), (200, {"prefill_chunk": 7}), (9, {"max_batch": 8, "prefill_chunk": 20})],
)
@pytest.mark.parametrize("logits", [logits_of, repetitive_logits_of])
@pytest.mark.parametrize("num_slots", [0, 18], ids=["pages", "pages and slots"])
@pytest.mark.parametrize("seed", range(3))
def test_answers_equal_those_without_speculation(
    num_pages: int, config: dict[str, int], logits: Any, num_slots: int, seed: int
) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng, VOCAB) for _ in range(16)]
    guessed, stats = answers(FakeRunner(num_pages, 256, logits, num_slots=num_slots), requests, **config)
    plain, other = answers(FakeRunner(num_pages, 256, logits), requests, **config, speculation="off")
    assert guessed == plain
    assert stats.free_pages == num_pages
    assert (other.num_drafted, other.num_accepted) == (0, 0)
    assert stats.num_generated == other.num_generated
    if logits is repetitive_logits_of:
        assert 0 < stats.num_accepted < stats.num_drafted


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("prefill_chunk", [512, 7])
def test_multi_token_predictions_are_drafted(prefill_chunk: int) -> None:
    """The fake model predicts correctly if it gets the right tokens; then every second token was a draft."""
    rng = random.Random(5)
    greedy = Sampling(max_tokens=41, temperature=0, ignore_eos=True)
    requests = [([rng.randrange(VOCAB - 2) for _ in range(length)], greedy) for length in (1, 20, 50)]
    guessed, stats = answers(FakeRunner(drafts=True), requests, prefill_chunk=prefill_chunk)
    plain, _ = answers(FakeRunner(), requests, speculation="off")
    assert guessed == plain
    assert stats.num_accepted >= 0.95 * stats.num_drafted
    assert stats.num_accepted > 0.35 * stats.num_generated  # steps that read a prompt check none


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_pages", [200, 9])
def test_multi_token_predictions_change_no_answer(num_pages: int, seed: int) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng, VOCAB) for _ in range(16)]
    runner = FakeRunner(num_pages, 256, repetitive_logits_of, drafts=True)
    guessed, stats = answers(runner, requests, prefill_chunk=20)
    plain, _ = answers(FakeRunner(num_pages, 256, repetitive_logits_of), requests, speculation="off")
    assert guessed == plain
    assert stats.num_accepted > 0


@pytest.mark.usefixtures("steps_cost_the_same")
def test_drafts_take_no_page_from_a_running_request() -> None:
    """Both requests fill the cache to its last page; no request is preempted for a draft."""
    requests = [([1, 2, 3] * 5, Sampling(max_tokens=17, ignore_eos=True, temperature=0))] * 2
    runner = FakeRunner(2, 64, repetitive_logits_of)
    with Engine(runner, FakeTokenizer(), EngineConfig(max_batch=2)) as engine:
        generations = [engine.submit(*request) for request in requests]
        assert [len(list(generation)) for generation in generations] == [17, 17]
        assert all(generation.timings.num_preemptions == 0 for generation in generations)
        assert engine.stats().num_accepted > 0


MODELS = [
    "qwen3",
    "qwen3_moe",
    "deepseek_v3",
    "mistral",
    "gpt_oss",
    "lfm2",
    "lfm2_moe",
    "qwen3_next",
    "qwen3_5",
    "kimi_linear",
    "bailing_hybrid",
]


def tiny_requests() -> Requests:
    rng = random.Random(1)
    requests = [random_request(rng, 128) for _ in range(5)]
    quoting = ([5, 6, 7, 8, 9, 10, 11, 12] * 20, Sampling(max_tokens=60, temperature=0, ignore_eos=True))
    biased = ([9] * 40, Sampling(max_tokens=60, temperature=0.5, seed=3, logit_bias={20: 6, 21: 5}, logprobs=1))
    return [*requests, quoting, biased]


def native_answers(name: str, num_pages: int, isa: str | None, **config: Any) -> tuple[list[Any], EngineStats]:
    rows = config.get("prefill_chunk", 512) + 16
    runner = NativeRunner(
        tiny(name).spec, tiny(name).packed, num_threads=1, max_rows=rows, num_pages=num_pages, isa=isa
    )
    return answers(runner, tiny_requests(), **config)


@cache
def plain_answers(name: str) -> list[Any]:
    return native_answers(name, 80, None, speculation="off")[0]


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize(("num_pages", "config"), [(80, {}), (10, {"prefill_chunk": 48})])
def test_kernels_answer_the_same_at_every_level(name: str, level: str, num_pages: int, config: dict[str, int]) -> None:
    guessed, stats = native_answers(name, num_pages, level, **config)
    assert guessed == plain_answers(name)
    assert 0 < stats.num_accepted < stats.num_drafted


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize(
    "name",
    [
        *("deepseek_v3", "glm4_moe", "bailing_moe_v2", "bailing_hybrid", "mimo_v2_flash", "step3p7", "qwen3_5"),
        "qwen3_5_moe",
    ],
)
@pytest.mark.parametrize("level", BEST_LEVEL)
def test_models_that_predict_answer_the_same_at_every_level(name: str, level: str) -> None:
    model = with_mtp(name)
    runs = []
    for described, speculation in ((model.spec, "auto"), (replace(model.spec, mtp=None), "off")):
        runner = NativeRunner(described, model.packed, num_threads=1, max_rows=64, num_pages=10, isa=level)
        runs.append(answers(runner, tiny_requests(), prefill_chunk=48, speculation=speculation))
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].num_accepted > 0


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "lfm2_moe", "qwen3_5"])
def test_the_reference_accepts_drafts_too(name: str) -> None:
    """Its products are not exact to the last bit, so only greedy answers are compared."""
    sampling = Sampling(max_tokens=50, temperature=0, ignore_eos=True, logit_bias={20: 4, 21: 4})
    requests = [([5, 6, 7, 8] * 10, sampling)] * 2
    runs = [
        answers(ReferenceRunner(tiny(name).spec, tiny(name).weights), requests, speculation=speculation)
        for speculation in ("auto", "off")
    ]
    assert runs[0][0] == runs[1][0]
    assert runs[0][1].num_accepted > 0


def test_speculation_is_auto_or_off() -> None:
    with pytest.raises(UserError, match="speculation is 'on'"):
        EngineConfig(speculation="on")
