"""The sampler against transformers' logits processors, against known distributions, and at its edges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from freedive.engine.generation import EngineError
from freedive.engine.sampler import Adjustment, Sampler, logprobs, uniform
from freedive.engine.sampling import Sampling
from freedive.native import _native


def some_logits(size: int, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def warped(logits: np.ndarray, prompt: list[int], sampling: Sampling) -> np.ndarray:
    """Returns the probabilities that transformers would sample from, in float64."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([prompt]), torch.from_numpy(logits.astype(np.float64))[None])
    return torch.softmax(scores, -1)[0].numpy()


def ours(logits: np.ndarray, prompt: list[int], sampling: Sampling) -> np.ndarray:
    adjusted, weights = Adjustment(sampling, prompt, logits.size).apply(logits), np.empty_like(logits)
    _native.weigh(adjusted, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, weights)
    return weights / weights.sum(dtype=np.float64)


@pytest.mark.parametrize("size", [5, 64, 1000, 49152])
@pytest.mark.parametrize("scale", [0.3, 3.0, 8.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 3000, "top_p": 0.8},
        {"top_p": 0.95},
        {"top_p": 0.1, "temperature": 2.0},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 0.1, "top_p": 0.5, "top_k": 20, "temperature": 0.8},
        {"repetition_penalty": 1.3, "top_p": 0.9},
        {"repetition_penalty": 0.7, "min_p": 0.02},
    ],
)
def test_kept_tokens_and_probabilities_are_those_of_transformers(
    size: int, scale: float, settings: dict[str, float]
) -> None:
    logits, sampling = some_logits(size, scale, seed=size), Sampling(**settings)
    prompt = [0, 3, 3, size - 1]
    expected, actual = warped(logits, prompt, sampling), ours(logits, prompt, sampling)
    # At the boundary of a nucleus float32 may fall on either side; at most one token may differ.
    differing = np.flatnonzero((expected > 1e-37) != (actual > 1e-37))
    assert len(differing) <= (1 if sampling.top_p < 1 else 0)
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=expected[differing].max(initial=1e-37))


def test_presence_frequency_and_bias_follow_their_formula() -> None:
    logits = some_logits(50)
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={7: 3.0, 9: -100.0})
    adjustment = Adjustment(sampling, [1, 2, 9], 50)
    for token in (4, 7, 4, 4):
        adjustment.count(token)
    expected = logits.copy()
    expected[4] -= 0.5 + 3 * 0.25
    expected[7] += 3.0 - 0.5 - 0.25
    expected[9] -= 100
    np.testing.assert_allclose(adjustment.apply(logits), expected, rtol=1e-6)


def test_repetition_penalty_covers_the_prompt_and_the_answer() -> None:
    logits = np.array([2.0, 1.9, -1.0, 1.8], np.float32)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), 0, [0], 4)
    assert [sampler(logits) for _ in range(4)] == [1, 3, 0, 0]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9, "temperature": 0.7}, {"top_k": 30}, {"min_p": 0.02}])
def test_draws_follow_the_distribution(settings: dict[str, float]) -> None:
    logits, sampling = some_logits(200, 1.5), Sampling(**settings)
    sampler = Sampler(sampling, 1234, [], 200)
    num_draws = 20_000
    counts = np.bincount([sampler(logits) for _ in range(num_draws)], minlength=200)
    expected = ours(logits, [], sampling) * num_draws
    assert (counts[expected == 0] == 0).all()
    kept = expected > 5
    chi2 = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    # The statistic of n categories has mean n and standard deviation sqrt(2 n).
    assert abs(chi2 - kept.sum()) < 4 * math.sqrt(2 * kept.sum())


def test_draws_reach_every_block_of_a_large_vocabulary_evenly() -> None:
    logits = np.zeros(49153, np.float32)
    sampler = Sampler(Sampling(), 99, [], logits.size)
    draws = np.array([sampler(logits) for _ in range(4000)])
    counts, _ = np.histogram(draws, bins=20, range=(0, logits.size))
    assert ((counts - 200) ** 2 / 200).sum() < 20 + 4 * math.sqrt(40)


def test_random_numbers_are_uniform_and_a_function_of_seed_and_position() -> None:
    numbers = np.array([uniform(seed, position) for seed in (-(2**63), -1, 0, 2**63 - 1) for position in range(2500)])
    assert len(set(numbers.tolist())) == len(numbers)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 50 + 4 * math.sqrt(100)
    assert uniform(42, 7) == 0.22935545744979002


def test_a_draw_depends_on_its_position_not_on_what_was_drawn_elsewhere() -> None:
    logits = some_logits(1000)
    one, other = (Sampler(Sampling(), 5, [], 1000) for _ in range(2))
    first = [one(logits) for _ in range(10)]
    assert [other(logits) for _ in range(10)] == first
    assert [Sampler(Sampling(), 6, [], 1000)(logits) for _ in range(10)] != first


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert Sampler(Sampling(temperature=0), 0, [], 5)(np.array([1, 3, 2, 3, 3], np.float32)) == 1


@pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 2e-5}])
def test_the_narrowest_settings_leave_the_likeliest_token(settings: dict[str, float]) -> None:
    logits = some_logits(3000)
    sampler = Sampler(Sampling(**settings), 3, [], 3000)
    assert {sampler(logits) for _ in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error(temperature: float, bad: float) -> None:
    logits = some_logits(100)
    logits[17] = bad
    with pytest.raises(EngineError, match="not finite"):
        Sampler(Sampling(temperature=temperature), 0, [], 100)(logits)
    with pytest.raises(EngineError, match="not finite"):
        Sampler(Sampling(temperature=temperature), 0, [], 100)(np.full(100, -np.inf, np.float32))


def test_a_token_of_weight_zero_is_never_drawn() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500, 777]] = 1.0
    for settings in ({}, {"top_p": 0.99}, {"top_k": 100}, {"min_p": 0.001}):
        sampler = Sampler(Sampling(**settings), 1, [], 1000)
        assert {sampler(logits) for _ in range(60)} == {3, 500, 777}


def test_sampling_leaves_the_logits_as_they_are() -> None:
    logits = some_logits(500)
    before = logits.copy()
    Sampler(Sampling(repetition_penalty=1.5, logit_bias={3: 9}, top_p=0.5, top_k=9), 0, [1, 2], 500)(logits)
    assert (logits == before).all()


def test_logprobs_are_those_of_torch() -> None:
    logits = some_logits(5000)
    logits[[11, 12]] = logits.max() + 1  # equal logits: the lower id comes first
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    entry = logprobs(logits, 77, 5)
    assert entry.logprob == pytest.approx(float(expected[77]), abs=1e-5)
    assert [token for token, _ in entry.top] == [11, 12, *torch.topk(expected, 5).indices[2:].tolist()]
    assert [value for _, value in entry.top] == pytest.approx(torch.topk(expected, 5).values.tolist(), abs=1e-5)
    assert logprobs(logits, 77, 0).top == ()


def best_seconds(call: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return min(once() for _ in range(50))


def test_sampling_is_fast_enough_not_to_matter() -> None:
    """The bounds leave a wide margin over the figures in the comments (best of 50; EPYC, 2 cores), for
    busy machines."""
    small, large = some_logits(49152), some_logits(151936)
    assert best_seconds(lambda: Sampler(Sampling(temperature=0), 0, [], 49152)(small)) < 100e-6  # 8 us
    for settings in ({"top_k": 40, "top_p": 0.9}, {"top_p": 0.9}, {"min_p": 0.05}, {}):  # 0.1 to 0.4 ms
        sampler = Sampler(Sampling(temperature=0.8, **settings), 0, [], 151936)
        assert best_seconds(partial(sampler, large)) < 3e-3
