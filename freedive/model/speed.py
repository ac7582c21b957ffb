"""Predicts the speed of a model on a machine from the bytes and operations of a token. Only arithmetic; no clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from freedive.model.size import MixerCost, WeightSizes

DECODE_EFFICIENCY = 0.9
"""The share of the measured memory bandwidth at which decoding reads weights.

79% with qwen3-moe Q4_0 after 16 tokens on Zen 4 (docs/benchmarks.md); about 105% on a Xeon with 260 MiB of L3, which
holds a part of the weights that every token reads (docs/log/memory.md)."""

PREFILL_EFFICIENCY, TILE_EFFICIENCY = 0.32, 0.15
"""The share of the peak of int8 products at which prompts are read, with vector and with tile (AMX) instructions.

Vectors: of prompts of 512 and 2,048 tokens 46% and 38% on Zen 4 (docs/benchmarks.md), 31% and 26% on a Xeon with
AVX512-VNNI, attention included. Tiles: a prototype of the experts' kernels reached 1.4 to 2.6 of 13 TOPS; the whole
program has not been calibrated."""

ATTENTION_EFFICIENCY = 0.5
"""The share of the peak of fp32 products at which attention and recurrences read prompts.

An estimate that agrees with one model's prompts of 512 and 2,048 tokens (docs/log/memory.md)."""

STEP_SECONDS = 2e-4
"""Time of a step that depends on no weight: Python, sampling, barriers. An estimate, not calibrated."""

SKEW = 0.2
"""If s is the share of the experts in slots, about s ** SKEW of all reads find their expert there.

Real text uses some experts more than others, and uses those of the last tokens again. Measured with Zipf's law: 65% of
reads at 0.15 of the experts (this formula: 68%), 85% at 0.39 (83%), 93% at 0.65 (92%). Published for a cache of the
least recently used and Qwen3-30B-A3B in BigMoeOnEdge: 53% at 1/8 (66%) and 76% at 1/4 (76%)."""


@dataclass(frozen=True)
class MachineSpeed:
    """Bytes per second that all threads read from memory and that the disk gives; operations per second that kernels
    reach on prompts (the peak times its efficiency): int8 ``products`` with weights, and fp32 ones of ``attention``."""

    memory: float
    disk: float
    products: float
    attention: float = math.inf


@dataclass(frozen=True)
class TokenCost:
    """The cost of a model's tokens.

    ``cache`` and ``states``: bytes that decoding a token reads (and writes) beside weights. ``operations``: of one
    prompt token in products with weights. ``mixers``: what attention and recurrences of each layer add to these.
    """

    sizes: WeightSizes
    operations: float
    cache: float = 0.0
    states: float = 0.0
    mixers: tuple[MixerCost, ...] = ()


def hit_rates(sizes: WeightSizes, slots: float) -> tuple[float, float]:
    """Returns the shares of expert reads that find the expert in ``slots`` bytes: at worst, and with usual text.

    The worst is uniform routing, where the share is that of the experts in slots. Slots that hold less than the experts
    of one token are overwritten before they are used again, so nothing is found.
    """
    if not sizes.experts or slots >= sizes.experts:
        return 1.0, 1.0
    if slots < sizes.routed:
        return 0.0, 0.0
    share = slots / sizes.experts
    return share, share**SKEW


def decode_seconds(cost: TokenCost, machine: MachineSpeed, hit_rate: float) -> float:
    """Returns the time of one token.

    The experts of a layer are known when the layers before it are done; then those that are in slots are computed while
    the others are read. So the longer of the two times counts for routed experts, and other reads are added.
    """
    bandwidth = DECODE_EFFICIENCY * machine.memory
    hits, missed = (share * cost.sizes.routed for share in (hit_rate, 1 - hit_rate))
    waits = max(hits / bandwidth, missed / machine.disk if missed else 0) + missed / bandwidth
    return STEP_SECONDS + (cost.sizes.dense + cost.cache + cost.states) / bandwidth + waits


def prefill_seconds(cost: TokenCost, machine: MachineSpeed, num_tokens: int, chunk: int, slots: float) -> float:
    """Returns the time to the first token of a prompt, which is read in chunks of ``chunk`` tokens.

    A chunk reads each expert that it uses once from memory, and from disk if it is in no slot. The reads of the disk
    run ahead of the products, so the longer of the two counts.
    """
    resident = min(1.0, slots / cost.sizes.experts) if cost.sizes.experts else 1.0
    seconds = 0.0
    for begin in range(0, num_tokens, chunk):
        count = min(chunk, num_tokens - begin)
        experts = unique_bytes(cost.sizes, count)
        memory = (cost.sizes.dense + experts) / (DECODE_EFFICIENCY * machine.memory)
        computed = count * cost.operations / machine.products
        computed += _mixed(cost, begin, begin + count) / machine.attention
        missed = experts * (1 - resident)
        seconds += STEP_SECONDS + max(memory + computed, missed / machine.disk if missed else 0)
    return seconds


def _mixed(cost: TokenCost, begin: int, end: int) -> float:
    """Returns the operations of attention and recurrences of the tokens from ``begin`` to ``end`` of a prompt."""
    return sum(mixer.operations(end) - mixer.operations(begin) for mixer in cost.mixers)


def unique_bytes(sizes: WeightSizes, num_tokens: int) -> float:
    """Returns the expected bytes of the different experts that ``num_tokens`` tokens use, with uniform routing."""
    return sum(
        layer.record_bytes * layer.count * (1 - (1 - layer.chosen / layer.count) ** num_tokens)
        for layer in sizes.layers
    )


def budget_for(seconds: float, low: int, high: int, predict: Callable[[int], float]) -> int | None:
    """Returns the smallest budget from ``low`` to ``high`` bytes, to within 64 MiB, whose prediction is at most
    ``seconds``; None if even ``high`` is slower."""
    if predict(high) > seconds:
        return None
    while high - low > 64 << 20:
        middle = (low + high) // 2
        low, high = (low, middle) if predict(middle) <= seconds else (middle, high)
    return high
