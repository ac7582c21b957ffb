"""Frequencies of experts that are built into random weights, so that every engine meets the same.

Each embedding has the same large values in its first :data:`BAND` columns, half of its energy. Norms keep that share,
since the embeddings are large against what the layers add. The weights of a router in these columns give each expert
the logarithm of its frequency, in another order of experts for every layer. The other columns, which differ by token,
add normal noise of about the size of Gumbel noise, with which the best k would be k draws without replacement.

If all frequencies are equal, a cache hits as often as its share of the experts, the worst case. (Random weights alone
are better than that: layers add vectors that are equal for all tokens.) With Zipf's law it hits more often. In all,
frequencies are the same at all times: successive tokens choose independently. Real text has more locality in time, and
less difference between experts in the long run, which favours a cache that drops the least recently used. With Zipf's
law the two balance: with 128 experts, of which 8 are chosen, such a cache hits 47% with room for 12% of the experts and
73% with 25% (simulated on recorded routes); BigMoeOnEdge reports 53% and 76% for Qwen3-30B-A3B.

The third routing has the frequencies of a trained mixture, nano, on real text (record_routing.py). Only these: that a
token chooses experts of the token before it again is recorded, too, but cannot be built into weights, since the tokens
of prompts and answers are random.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.tensor import Tensor

BAND = 32
"""The number of columns with equal values, one block of Q8_0."""

SIZE = 4.0
"""The size of an embedding's other values; the outputs of layers have a size below 1."""

SHARE = 0.5
"""The share of the band in the energy of an embedding."""

UNIFORM, ZIPF, RECORDED = ROUTINGS = "uniform", "zipf", "recorded"

RECORD = Path(__file__).parent / "recorded_routes.json"
"""What record_routing.py has recorded."""

Doubles = npt.NDArray[np.float64]

PART = 1024
"""The number of embeddings that are made at once."""

NOISE = np.pi / 6**0.5
"""The standard deviation of Gumbel noise, and of the part of a logit that differs by token."""


def routed(name: str, shape: tuple[int, ...], routing: str) -> Tensor | None:
    """Returns the tensor ``name`` of a GGUF file with a ``routing`` of :data:`ROUTINGS`; None if that does not concern
    it."""
    source = np.random.default_rng(zlib.crc32(name.encode()))
    if name == "token_embd.weight":
        return Tensor(name, shape, "Q8_0", lambda begin, end: _embeddings(begin, end, shape[1]))
    if re.fullmatch(r"blk\.\d+\.ffn_gate_inp\.weight", name):
        return Tensor(name, shape, "F32", _router(shape, log_frequencies(routing, shape[0]), source).view(np.uint8))
    if re.fullmatch(r"blk\.\d+\.attn_norm\.weight", name):
        values = 1 + 0.02 * source.standard_normal((1, *shape), np.float32)
        values[:, :BAND] = 0  # else every layer would add one more vector that is equal for all tokens
        return Tensor(name, shape, "F32", values.view(np.uint8))
    return None


def log_frequencies(routing: str, num_experts: int) -> Doubles:
    """Returns the logarithms of frequencies, up to a constant, before the best k are chosen; the highest first.

    A recorded share p of the tokens that choose an expert is what a rate of -log(1 - p) gives, whatever k is. Between
    the recorded ranks, as shares of all experts, logarithms are interpolated.
    """
    if routing == UNIFORM:
        return np.zeros(num_experts)
    if routing == ZIPF:
        return np.asarray(-np.log(np.arange(num_experts) + 1.0))
    recorded = json.loads(RECORD.read_text("utf-8"))
    least = 0.5 / recorded["tokens"]
    rates = -np.log1p(-np.clip(recorded["frequencies"], least, 1 - least))
    by_rank: Doubles = np.interp(_places(num_experts), _places(len(rates)), np.log(rates))
    return by_rank


def _places(count: int) -> Doubles:
    return np.asarray((np.arange(count) + 0.5) / count)


def top_share(counts: list[list[int]], part: float) -> float:
    """Returns the share of all choices that the most frequent ``part`` of the experts of each layer has received;
    ``counts`` are by layer and expert."""
    best = sum(sum(sorted(layer, reverse=True)[: round(part * len(layer))]) for layer in counts)
    return best / sum(map(sum, counts))


def _embeddings(begin: int, end: int, width: int) -> Bytes:
    source = np.random.default_rng(begin)
    parts = []
    for at in range(begin, end, PART):
        values = SIZE * source.standard_normal((min(PART, end - at), width), np.float32)
        values[:, :BAND] = SIZE * (SHARE / (1 - SHARE) * (width - BAND) / BAND) ** 0.5
        parts.append(_q8_0(values))
    return np.concatenate(parts)


def _router(shape: tuple[int, ...], by_rank: Doubles, source: np.random.Generator) -> Floats:
    num_experts, width = shape
    weights = source.standard_normal((num_experts, width), np.float32)
    weights *= np.float32(NOISE / ((1 - SHARE) * width) ** 0.5)
    logits = by_rank[source.permutation(num_experts)]
    band = (SHARE * width / BAND) ** 0.5  # the values of a normed embedding in the band
    weights[:, :BAND] = ((logits - logits.mean()) / (BAND * band))[:, None]
    return weights


def _q8_0(values: Floats) -> Bytes:
    """Quantises [rows, width] to Q8_0: blocks of a half-float scale and 32 codes."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return np.hstack([scales.view(np.uint8), codes.view(np.uint8)]).reshape(len(values), -1)
