"""The operations in plain numpy: slow, and obviously right. The other sets are held against this one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from freedive.engine.batch import PAGE_TOKENS, Batch
from freedive.model import spec
from freedive.model.decoder import forward

Array = npt.NDArray[np.float32]


class ReferenceOps:
    """Operations of one step over arrays; ``cache`` is each layer's (keys, values), [slots, kv heads, head_dim]."""

    def __init__(self, batch: Batch, cache: list[tuple[Array, Array]]) -> None:
        self._batch = batch
        self._cache = cache
        self._positions = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(batch.starts, batch.lengths, strict=True)]
        )

    def embed(self, table: Array) -> Array:
        return table[self._batch.tokens]

    def select(self, x: Array) -> Array:
        return x[self._batch.wanted]

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight
        return y

    def head_norm(self, x: Array, weight: Array, eps: float) -> Array:
        return self.rms_norm(x.reshape(len(x), -1, weight.size), weight, eps).reshape(x.shape)

    def rope(self, x: Array, rope: spec.Rope, head_dim: int) -> Array:
        angles = self._positions[:, None].astype(np.float32) * np.array(rope.inv_freq, np.float32)
        cos, sin = np.cos(angles)[:, None] * rope.factor, np.sin(angles)[:, None] * rope.factor
        heads = x.reshape(len(x), -1, head_dim).copy()
        half = rope.dim // 2
        first, second = (
            (slice(0, rope.dim, 2), slice(1, rope.dim, 2))
            if rope.interleaved
            else (slice(0, half), slice(half, rope.dim))
        )
        a, b = heads[..., first].copy(), heads[..., second].copy()
        heads[..., first] = a * cos - b * sin
        heads[..., second] = b * cos + a * sin
        return heads.reshape(x.shape)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        y: Array = x @ weight.T
        return y if bias is None else y + bias

    def glu(self, gate: Array, up: Array, activation: spec.Activation) -> Array:
        y: Array = gate / (1 + np.exp(-gate)) * up
        return y

    def attention(self, q: Array, k: Array, v: Array, attn: spec.Attention, layer: int) -> Array:
        out = np.empty_like(q)
        row = 0
        for start, length, pages in zip(self._batch.starts, self._batch.lengths, self._batch.pages, strict=True):
            rows = slice(row, row + length)
            out[rows] = self._attend_sequence(q[rows], k[rows], v[rows], attn, self._cache[layer], start, pages)
            row += length
        return out

    def _attend_sequence(
        self,
        q: Array,
        k: Array,
        v: Array,
        attn: spec.Attention,
        cache: tuple[Array, Array],
        start: int,
        pages: npt.NDArray[np.int32],
    ) -> Array:
        """One request's rows: writes its new keys and values, reads all of them back through its page table."""
        position = np.arange(start + len(q))
        slots = pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
        for store, new in zip(cache, (k, v), strict=True):
            store[slots[start:]] = new.reshape(len(new), attn.num_kv_heads, attn.head_dim)
        group = attn.num_heads // attn.num_kv_heads
        keys, values = (np.repeat(store[slots], group, axis=1) for store in cache)
        scores = np.einsum("qhd,khd->hqk", q.reshape(len(q), attn.num_heads, attn.head_dim), keys) * attn.scale
        distance = position[start:, None] - position[None, :]
        seen = (distance >= 0) & ((distance < attn.window) if attn.window else True)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out: Array = np.einsum("hqk,khd->qhd", weights, values).reshape(q.shape)
        return out

    def add(self, x: Array, y: Array) -> Array:
        return x + y


class ReferenceRunner:
    """A model that takes steps with :class:`ReferenceOps`. ``weights`` are float32 by canonical name."""

    def __init__(self, model: spec.Model, weights: Mapping[str, Array], *, num_pages: int = 64) -> None:
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.num_pages = num_pages
        self._model = model
        self._weights = weights
        self._cache = [
            (np.zeros(shape, np.float32), np.zeros(shape, np.float32))
            for layer in model.layers
            for shape in [(num_pages * PAGE_TOKENS, layer.attention.num_kv_heads, layer.attention.head_dim)]
        ]

    def step(self, batch: Batch) -> Array:
        return forward(self._model, self._weights, ReferenceOps(batch, self._cache))
