"""Estimates what a model of the catalogue needs, from its numbers of parameters and the size of its download."""

from __future__ import annotations

from freedive.hub.catalogue import Entry
from freedive.model.size import ExpertLayer, WeightSizes

PACKING_SHARE = 0.05
"""The memory of packed weights beyond the size of their file, as a share of that size."""

CACHE_BYTES = 1.1e9
"""Memory of the key-value cache: 8,192 tokens of Hunyuan-A13B, 131 kB each; most models of the catalogue need less."""

WORKING_BYTES = 1e9
"""Memory of Python, buffers and the system, in addition to the weights and the cache."""

RECORD_BYTES = 4 << 20
"""Size of the record of an expert if the model is not known."""

ROUTED_SHARE = 0.55
"""Routed experts as a share of the active parameters of a mixture, for models of which only the numbers of parameters
are known: Qwen3-30B-A3B 55%, DeepSeek-V3 55%, gpt-oss-20b 66%."""


def memory_bytes(weights: float) -> int:
    """Returns the memory that a model with ``weights`` bytes takes if all of them are in it.

    A model is given a key-value cache as large as its weights, but at most :data:`CACHE_BYTES`.
    """
    return int(weights * (1 + PACKING_SHARE) + min(weights, CACHE_BYTES) + WORKING_BYTES)


def estimated_sizes(entry: Entry) -> WeightSizes:
    """Returns the sizes of a model of the catalogue if all parameters have equally many bits."""
    each = entry.gigabytes / entry.total
    if entry.active == entry.total:
        return WeightSizes(round(1e9 * entry.gigabytes), 0)
    routed = ROUTED_SHARE * entry.active
    dense = entry.active - routed
    records = [round(1e9 * each * count / RECORD_BYTES) for count in (entry.total - dense, routed)]
    return WeightSizes(round(1e9 * each * dense), 0, (ExpertLayer(records[0], max(1, records[1]), RECORD_BYTES),))


def experts_in_memory(entry: Entry, budget: float) -> int | None:
    """Returns the bytes of experts that are in a memory of ``budget``: all if the model fits.

    Returns None if it cannot run in this memory: what every token reads does not fit, or not the experts of one token.
    """
    sizes = estimated_sizes(entry)
    room = budget - memory_bytes(1e9 * entry.gigabytes)
    slots = sizes.experts + min(0, int(room / (1 + PACKING_SHARE)))
    return slots if room >= 0 or (sizes.experts and slots >= sizes.routed) else None
