"""Frequencies of experts that are built into random weights, so that every engine meets the same.

Each embedding has the same large values in its first :data:`BAND` columns, half of its energy. Norms keep that share,
since the embeddings are large against what the layers add. The weights of a router in these columns give each expert
the logarithm of its frequency, in another order of experts for every layer. The other columns, which differ by token,
add normal noise of about the size of Gumbel noise, with which the best k would be k draws without replacement.

If all frequencies are equal, a cache hits as often as its share of the experts, the worst case. (Random weights alone
are better than that: layers add vectors that are equal for all tokens.) With Zipf's law it hits more often. In both,
frequencies are the same at all times: successive tokens choose independently. Real text has more locality in time, and
less difference between experts in the long run, which favours a cache that drops the least recently used. The two
balance: with 128 experts, of which 8 are chosen, such a cache hits 47% with room for 12% of the experts and 73% with
25% (simulated on recorded routes); BigMoeOnEdge reports 53% and 76% for Qwen3-30B-A3B.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from freedive.arrays import Bytes, Floats
from freedive.checkpoint.tensor import Tensor

BAND = 32
"""The number of columns with equal values, one block of Q8_0."""

SIZE = 4.0
"""The size of an embedding's other values; the outputs of layers have a size below 1."""

SHARE = 0.5
"""The share of the band in the energy of an embedding."""

UNIFORM, ZIPF = "uniform", "zipf"
EXPONENTS = {UNIFORM: 0.0, ZIPF: 1.0}
"""Routing -> s, where the expert of rank r has the frequency r ** -s before the best k are chosen."""

PART = 1024
"""The number of embeddings that are made at once."""

NOISE = np.pi / 6**0.5
"""The standard deviation of Gumbel noise, and of the part of a logit that differs by token."""


def routed(name: str, shape: tuple[int, ...], routing: str) -> Tensor | None:
    """Returns the tensor ``name`` of a GGUF file with a ``routing`` of :data:`EXPONENTS`; None if that does not concern
    it."""
    source = np.random.default_rng(zlib.crc32(name.encode()))
    if name == "token_embd.weight":
        return Tensor(name, shape, "Q8_0", lambda begin, end: _embeddings(begin, end, shape[1]))
    if re.fullmatch(r"blk\.\d+\.ffn_gate_inp\.weight", name):
        return Tensor(name, shape, "F32", _router(shape, EXPONENTS[routing], source).view(np.uint8))
    if re.fullmatch(r"blk\.\d+\.attn_norm\.weight", name):
        values = 1 + 0.02 * source.standard_normal((1, *shape), np.float32)
        values[:, :BAND] = 0  # else every layer would add one more vector that is equal for all tokens
        return Tensor(name, shape, "F32", values.view(np.uint8))
    return None


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


def _router(shape: tuple[int, ...], exponent: float, source: np.random.Generator) -> Floats:
    num_experts, width = shape
    weights = source.standard_normal((num_experts, width), np.float32)
    weights *= np.float32(NOISE / ((1 - SHARE) * width) ** 0.5)
    logits = -exponent * np.log(source.permutation(num_experts) + 1.0)
    band = (SHARE * width / BAND) ** 0.5  # the values of a normed embedding in the band
    weights[:, :BAND] = ((logits - logits.mean()) / (BAND * band))[:, None]
    return weights


def _q8_0(values: Floats) -> Bytes:
    """Quantises [rows, width] to Q8_0: blocks of a half-float scale and 32 codes."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(blocks / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    return np.hstack([scales.view(np.uint8), codes.view(np.uint8)]).reshape(len(values), -1)
