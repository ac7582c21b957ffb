"""The prediction of speed: arithmetic that can be done by hand."""

from __future__ import annotations

import pytest

from freedive.model.size import ExpertLayer, MixerCost, WeightSizes
from freedive.model.speed import (
    DECODE_EFFICIENCY,
    STEP_SECONDS,
    MachineSpeed,
    TokenCost,
    budget_for,
    decode_seconds,
    hit_rates,
    prefill_seconds,
    unique_bytes,
)

GB = 10**9
LAYER = ExpertLayer(count=256, chosen=8, record_bytes=1_779_000)
QWEN = WeightSizes(dense=2 * GB, embedding=0, layers=(LAYER,) * 40)
"""Qwen3.6-35B-A3B at 4.5 bits: 18 GB of experts, of which a token uses 0.57 GB."""

FAST = MachineSpeed(memory=1e18, disk=2e9, products=1e18)
"""A machine on which only the disk takes time, at 2 GB/s."""


def test_the_sizes_of_the_example() -> None:
    assert QWEN.experts == pytest.approx(18.2e9, rel=0.01)
    assert QWEN.routed == pytest.approx(0.57e9, rel=0.01)


@pytest.mark.parametrize(("hits", "tokens_per_s"), [(0.5, 7), (0.8, 17)])
def test_the_ceilings_of_the_disk(hits: float, tokens_per_s: float) -> None:
    assert 1 / decode_seconds(TokenCost(QWEN, 0), FAST, hits) == pytest.approx(tokens_per_s, rel=0.04)


def test_without_misses_memory_is_the_limit() -> None:
    machine = MachineSpeed(memory=20e9, disk=1, products=1)
    seconds = decode_seconds(TokenCost(QWEN, 0, cache=GB / 4, states=GB / 4), machine, 1.0)
    assert seconds == pytest.approx(STEP_SECONDS + (2.5e9 + QWEN.routed) / (20e9 * DECODE_EFFICIENCY))


def test_experts_in_memory_are_computed_while_the_others_are_read() -> None:
    cost, bandwidth = TokenCost(QWEN, 0), 20e9 * DECODE_EFFICIENCY
    always = STEP_SECONDS + QWEN.dense / bandwidth
    for disk in (2e9, 1e12):
        longer = max(0.5 * QWEN.routed / disk, 0.5 * QWEN.routed / bandwidth)
        seconds = decode_seconds(cost, MachineSpeed(memory=20e9, disk=disk, products=1), 0.5)
        assert seconds == pytest.approx(always + longer + 0.5 * QWEN.routed / bandwidth)


def test_uniform_routing_hits_the_share_in_slots_and_usual_text_more() -> None:
    assert hit_rates(QWEN, QWEN.experts) == (1, 1)
    assert hit_rates(WeightSizes(GB, 0), 0) == (1, 1)
    worst, usual = hit_rates(QWEN, QWEN.experts / 8)
    assert worst == 1 / 8
    assert usual == pytest.approx(0.66, abs=0.02)
    assert hit_rates(QWEN, QWEN.routed - 1) == (0, 0)


def test_a_chunk_reads_each_expert_once() -> None:
    assert unique_bytes(QWEN, 1) == pytest.approx(QWEN.routed)
    assert unique_bytes(QWEN, 100_000) == pytest.approx(QWEN.experts)
    half = QWEN.experts / 2
    [one, two, small] = [
        prefill_seconds(TokenCost(QWEN, 0), FAST, *sizes, half) for sizes in ((2048, 2048), (2048, 1024), (2048, 512))
    ]
    assert one == pytest.approx(half / 2e9, rel=0.01)
    assert two == pytest.approx(2 * one, rel=0.01)
    assert small == pytest.approx(4 * one, rel=0.01)


def test_a_resident_prompt_takes_memory_and_products() -> None:
    machine = MachineSpeed(memory=20e9, disk=1, products=1e12)
    sizes = WeightSizes(dense=3 * GB, embedding=GB)
    seconds = prefill_seconds(TokenCost(sizes, operations=4e9), machine, 600, 512, 0)
    assert seconds == pytest.approx(2 * STEP_SECONDS + 2 * 3e9 / (20e9 * DECODE_EFFICIENCY) + 600 * 4e9 / 1e12)


def test_the_disk_reads_while_products_are_computed() -> None:
    slow = MachineSpeed(memory=1e18, disk=2e9, products=QWEN.experts)
    computed = prefill_seconds(TokenCost(QWEN, operations=1e9), slow, 512, 512, QWEN.experts * 0.99)
    assert computed == pytest.approx(STEP_SECONDS + 512 * 1e9 / QWEN.experts)


def test_the_budget_that_reaches_a_speed() -> None:
    found = budget_for(10.0, 1 << 30, 64 << 30, lambda budget: (320 << 30) / budget)
    assert found is not None
    assert 32 << 30 <= found <= (32 << 30) + (64 << 20)
    assert budget_for(1.0, 1 << 30, 64 << 30, lambda budget: (320 << 30) / budget) is None


@pytest.mark.parametrize(
    ("cost", "pairs"),
    [
        (MixerCost(1), 1 + 2 + 3 + 4 + 5 + 6 + 7),
        (MixerCost(1, window=3), 1 + 2 + 3 + 3 + 3 + 3 + 3),
        (MixerCost(1, chunk=3), 1 + 2 + 3 + 1 + 2 + 3 + 1),
        (MixerCost(1, window=1), 7),
        (MixerCost(1, window=9), 28),
    ],
)
def test_attention_counts_the_keys_of_each_query(cost: MixerCost, pairs: int) -> None:
    assert cost.operations(7) == pairs


def test_attention_takes_longer_the_more_tokens_are_before_and_chunks_change_nothing() -> None:
    machine = MachineSpeed(memory=1e18, disk=1e18, products=1e18, attention=1e9)
    cost = TokenCost(WeightSizes(GB, 0), operations=0, mixers=(MixerCost(1000.0),) * 2)
    whole, halves = (prefill_seconds(cost, machine, 1000, chunk, 0) for chunk in (1000, 500))
    assert whole == pytest.approx(2 * 1000 * 500500 / 1e9 + STEP_SECONDS, rel=1e-3)
    assert halves == pytest.approx(whole + STEP_SECONDS, rel=1e-3)
