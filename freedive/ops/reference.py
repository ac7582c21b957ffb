"""The operations in plain numpy: slow and simple. Tests compare the other implementations with this one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freedive.arrays import Bytes, Ints
from freedive.model import spec
from freedive.model.batch import PAGE_TOKENS, Batch, StateUpdates
from freedive.model.decoder import Scope, draft, embedding, feed_forward, head, states
from freedive.model.state import PerToken, State, per_token_dim
from freedive.ops.reference_delta import advance, delta_inputs, sigmoid
from freedive.ops.reference_states import SlotStates
from freedive.ops.routes import Routes

Array = npt.NDArray[np.float32]


class ReferenceOps:
    """The operations of one step over numpy arrays.

    ``cache`` has the per-token states of each layer, one array [num_pages * PAGE_TOKENS, heads, dim] for each declared
    state. ``states`` has the per-sequence states.
    """

    def __init__(self, batch: Batch, cache: list[tuple[Array, ...]], states: SlotStates) -> None:
        self._batch = batch
        self._cache = cache
        self._states = states
        self.routes: list[Routes] = []
        self._positions: npt.NDArray[np.int64] = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(batch.starts, batch.lengths, strict=True)]
        )

    def embed(self, table: Array) -> Array:
        return table[self._batch.tokens]

    def select(self, x: Array) -> Array:
        return x[self._batch.output_rows]

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        y: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight
        return y

    def head_norm(self, x: Array, weight: Array | None, head_dim: int, eps: float) -> Array:
        one = np.ones(head_dim, np.float32) if weight is None else weight
        return self.rms_norm(x.reshape(len(x), -1, head_dim), one, eps).reshape(x.shape)

    def rope(self, x: Array, rope: spec.Rope | None, head_dim: int) -> Array:
        if rope is None:
            return x
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

    def linears(self, x: Array, layers: Sequence[tuple[Array, Array | None]]) -> Sequence[Array]:
        return [self.linear(x, weight, bias) for weight, bias in layers]

    router_logits = linear

    def scale_by_position(self, q: Array, temperature: spec.AttentionTemperature) -> Array:
        steps = np.floor((self._positions + temperature.offset) / np.float32(temperature.floor_scale))
        factors = np.log1p(steps) * temperature.scale + 1
        y: Array = q * factors.astype(np.float32)[:, None]
        return y

    def glu(self, gate: Array, up: Array, ffn: spec.FeedForward) -> Array:
        if ffn.limit:
            up = self.clip(up, ffn.limit)
            gate = gate if ffn.activation == "clamped_silu" else np.minimum(gate, np.float32(ffn.limit))
        match ffn.activation:
            case "clamped_silu":
                least: Array = np.minimum(gate * sigmoid(gate), np.float32(ffn.limit))
                return least * up
            case "silu":
                return gate * sigmoid(gate) * up
            case "gelu_tanh":
                inner = np.float32(math.sqrt(2 / math.pi)) * (gate + np.float32(0.044715) * gate**3)
                half: Array = np.float32(0.5) * gate * (1 + np.tanh(inner))
                return half * up
            case "swiglu_oai":
                return gate * sigmoid(np.float32(1.702) * gate) * (up + 1)

    def feed_forward(self, x: Array, ffn: spec.FeedForward, weights: Mapping[str, Array]) -> Array:
        return feed_forward(ffn, weights, x, self)

    def attention(
        self, q: Array, k: Array | None, v: Array | None, sinks: Array | None, attn: spec.Attention, layer: int
    ) -> Array:
        stores = self._cache[layer if attn.kv_layer < 0 else attn.kv_layer]
        out = np.empty((len(q), attn.out_dim), np.float32)
        for rows, start, slots in self._sequences():
            keys, values = (
                np.repeat(
                    store[slots] if new is None else self._append(store, new[rows], start, slots),
                    attn.num_heads // attn.num_kv_heads,
                    axis=1,
                )
                for store, new in zip(stores, (k, v), strict=True)
            )
            heads = q[rows].reshape(-1, attn.num_heads, attn.head_dim)
            out[rows] = _attend(heads, keys, values, start, attn, sinks).reshape(len(heads), -1)
        return out

    def latent_attention(
        self, q: Array, kv: Array, norm: Array, k_b: Array, v_b: Array, attn: spec.LatentAttention, layer: int
    ) -> Array:
        latent = self.rms_norm(kv[:, : attn.kv_rank], norm, attn.latent_eps)
        shared = self.rope(kv[:, attn.kv_rank :], attn.rope, attn.rope_dim)
        heads = q.reshape(len(q), attn.num_heads, attn.head_dim).copy()
        rotated = np.ascontiguousarray(heads[..., attn.nope_dim :]).reshape(len(q), -1)
        heads[..., attn.nope_dim :] = self.rope(rotated, attn.rope, attn.rope_dim).reshape(len(q), attn.num_heads, -1)
        out = np.empty((len(q), attn.num_heads * attn.value_dim), np.float32)
        for rows, start, slots in self._sequences():
            latents, rope_keys = (
                self._append(store, new[rows], start, slots)[:, 0]
                for store, new in zip(self._cache[layer], (latent, shared), strict=True)
            )
            plain = np.einsum("tr,hnr->thn", latents, k_b)
            keys = np.concatenate([plain, np.repeat(rope_keys[:, None], attn.num_heads, axis=1)], -1)
            values = np.einsum("tr,hvr->thv", latents, v_b)
            out[rows] = _attend(heads[rows], keys, values, start, attn, None).reshape(-1, out.shape[1])
        return out

    def short_conv(self, x: Array, taps: Array, bias: Array | None, conv: spec.ShortConv, layer: int) -> Array:
        b, c, x = np.split(x, 3, axis=-1)
        out = self._convolve(b * x, taps, conv.kernel, layer, 0)
        return c * (out if bias is None else out + bias)

    def silu_conv(self, x: Array, taps: Array, kernel: int, layer: int, part: int) -> Array:
        out = self._convolve(x, taps, kernel, layer, part)
        return out * sigmoid(out)

    def _convolve(self, new: Array, taps: Array, kernel: int, layer: int, part: int) -> Array:
        out = np.zeros_like(new)
        weights, updates = taps.reshape(kernel, -1), self._batch.states
        assert updates is not None
        for index, (rows, start, _) in enumerate(self._sequences()):
            slot, begin = int(updates.slots[index]), int(updates.begins[index])
            kept, drafts = self._states.of(layer, slot, part), self._states.drafts(layer, slot, part)
            seen = np.concatenate([kept if begin else np.zeros_like(kept), drafts[: start - begin], new[rows]])
            for tap, weight in enumerate(weights):
                first = start - begin + tap
                out[rows] += weight * seen[first : first + rows.stop - rows.start]
            self._update_state(layer, part, index, updates, seen)
        return out

    def _update_state(self, layer: int, part: int, index: int, updates: StateUpdates, seen: Array) -> None:
        """Updates the state of request ``index``. ``seen`` are its inputs, from the first one in the old state on."""
        slot, begin, end = (int(values[index]) for values in (updates.slots, updates.begins, updates.ends))
        kept = self._states.of(layer, slot, part)
        for _, position, to in updates.saves[updates.saves[:, 0] == index]:
            self._states.of(layer, to, part)[:] = seen[position - begin : position - begin + len(kept)]
        kept[:] = seen[end - begin : end - begin + len(kept)]
        drafts = seen[end - begin + len(kept) :]
        self._states.drafts(layer, slot, part)[: len(drafts)] = drafts

    def delta_rule(
        self,
        q: Array,
        k: Array,
        v: Array,
        beta: Array,
        decay: Array,
        rate: Array,
        dt_bias: Array,
        delta: spec.DeltaRule,
        layer: int,
    ) -> Array:
        queries, new = delta_inputs(q, k, v, beta, decay, rate, dt_bias, delta)
        out, part, updates = np.empty_like(v), len(delta.state) - 1, self._batch.states
        assert updates is not None
        for index, (rows, start, _) in enumerate(self._sequences()):
            slot, begin, end = (int(values[index]) for values in (updates.slots, updates.begins, updates.ends))
            saves = [*updates.saves[updates.saves[:, 0] == index], (index, end, slot)]
            copies = [(int(at) - begin, self._states.of(layer, to, part)) for _, at, to in saves]
            kept, drafts = self._states.of(layer, slot, part), self._states.drafts(layer, slot, part)
            inputs = np.concatenate([drafts[: start - begin], new[rows]])
            out[rows] = advance(kept * bool(begin), inputs, queries[rows], copies, delta)
            drafts[: len(inputs) - end + begin] = inputs[end - begin :]
        return out

    def gated_norm(self, x: Array, gate: Array, weight: Array, delta: spec.DeltaRule, eps: float) -> Array:
        act = sigmoid(gate) if delta.gate_activation == "sigmoid" else gate * sigmoid(gate)
        return self.head_norm(x, weight, delta.value_dim, eps) * act

    def _sequences(self) -> Iterator[tuple[slice, int, npt.NDArray[np.int64]]]:
        """Yields for each request its rows of the step, the position of the first row, and the cache rows of all its
        positions.
        """
        batch, row = self._batch, 0
        for start, length, pages in zip(batch.starts, batch.lengths, batch.pages, strict=True):
            position = np.arange(start + length)
            yield (
                slice(row, row + length),
                int(start),
                pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS,
            )
            row += length

    @staticmethod
    def _append(store: Array, new: Array, start: int, slots: npt.NDArray[np.int64]) -> Array:
        """Writes the ``new`` rows to their cache rows and returns all rows of the request."""
        store[slots[start:]] = new.reshape(-1, *store.shape[1:])
        return store[slots]

    def route(
        self, logits: Array, router: spec.Router, choice_bias: Array | None, expert_scale: Array | None
    ) -> Routes:
        """Returns the experts of each token, best first, and their weights."""
        scores = sigmoid(logits) if router.score == "sigmoid" else softmax(logits)
        merit = scores if choice_bias is None else scores + choice_bias
        chosen = np.array([_choose(row, router) for row in merit], np.int64).reshape(-1, router.num_chosen)
        weights = np.take_along_axis(scores, chosen, -1)
        if router.renormalise:
            weights = weights / (weights.sum(-1, keepdims=True) + np.float32(1e-20))
        weights = weights * np.float32(router.scale)
        if expert_scale is not None:
            weights = weights * expert_scale[chosen]
        return Routes(chosen.astype(np.int32), weights)

    def experts(
        self,
        x: Array,
        logits: Array,
        moe: spec.Experts,
        weights: Mapping[str, Array],
        choice_bias: Array | None,
        expert_scale: Array | None,
    ) -> Array:
        out = np.zeros_like(x)
        chosen, shares = routes = self.route(logits, moe.router, choice_bias, expert_scale)
        self.routes.append(routes)
        for expert in range(moe.router.num_experts):
            rows, places = np.nonzero(chosen == expert)
            share = shares[rows, places][:, None]
            y = x[rows] * share if moe.router.weighs_input else x[rows]
            y = feed_forward(moe.expert, Scope(weights, str(expert)), y, self)
            out[rows] += y if moe.router.weighs_input else y * share
        return out

    def gate(self, x: Array, gate: Array, activation: spec.GateActivation = "sigmoid") -> Array:
        factors: Array = sigmoid(gate) if activation == "sigmoid" else np.logaddexp(np.float32(0), gate)
        return x * np.repeat(factors, x.shape[-1] // gate.shape[-1], axis=-1)

    def scale(self, x: Array, factor: float) -> Array:
        return x * np.float32(factor)

    def scale_by(self, x: Array, factor: Array) -> Array:
        return x * factor

    def columns(self, x: Array, first: int, width: int) -> Array:
        return x[:, first : first + width]

    def softcap(self, x: Array, cap: float) -> Array:
        y: Array = np.float32(cap) * np.tanh(x / np.float32(cap))
        return y

    def clip(self, x: Array, limit: float) -> Array:
        return np.clip(x, np.float32(-limit), np.float32(limit))

    def add(self, x: Array, y: Array) -> Array:
        return x + y


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    y: Array = weights / weights.sum(-1, keepdims=True)
    return y


def _choose(merit: Array, router: spec.Router) -> npt.NDArray[np.int64]:
    """Returns the experts of one token, best first; if scores are equal, the lower index comes first."""
    groups = merit.reshape(router.num_groups, -1)
    if router.group_choice == "each":
        best = np.argsort(-groups, axis=-1, kind="stable")[:, : router.num_chosen // router.num_groups]
        return (best + np.arange(router.num_groups)[:, None] * groups.shape[1]).ravel()
    if router.kept_groups < router.num_groups:
        strength = np.sort(groups, axis=-1)[:, -2 if router.group_choice == "top2" else -1 :].sum(-1)
        kept = np.argsort(-strength, kind="stable")[: router.kept_groups]
        masked = np.full_like(groups, -np.inf)
        masked[kept] = groups[kept]
        merit = masked.ravel()
    return np.argsort(-merit, kind="stable")[: router.num_chosen]


def _attend(
    q: Array,
    keys: Array,
    values: Array,
    start: int,
    attn: spec.Attention | spec.LatentAttention,
    sinks: Array | None,
) -> Array:
    """Returns causal attention [Q, heads, dim] of one request.

    ``q`` [Q, heads, dim] are the queries from position ``start`` on; ``keys`` and ``values`` are [T, heads, dim].
    """
    scores = np.einsum("qhd,khd->hqk", q, keys) * np.float32(attn.scale)
    query, key = np.arange(start, start + len(q))[:, None], np.arange(len(keys))[None, :]
    seen = key <= query
    if isinstance(attn, spec.Attention):
        if attn.softcap:
            scores = np.float32(attn.softcap) * np.tanh(scores / np.float32(attn.softcap))
        if attn.window:
            seen &= query - key < attn.window
        if attn.chunk:
            seen &= query // attn.chunk == key // attn.chunk
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    out: Array = np.einsum("hqk,khd->qhd", weights / total, values)
    return out


class ReferenceRunner:
    """Runs a model with :class:`ReferenceOps`; implements :class:`freedive.model.batch.Runner`.

    ``weights`` are float32 by canonical name. The cache has ``num_pages`` pages and ``num_slots`` slots. ``routes``
    are the routes of the last step, for each layer with experts.
    """

    def __init__(
        self, model: spec.ModelSpec, weights: Mapping[str, Array], *, num_pages: int = 64, num_slots: int = 16
    ) -> None:
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.num_pages = num_pages
        self.drafts = model.mtp is not None
        self.pages_experts = False
        self.boundaries: tuple[int, ...] = ()
        self.routes: list[Routes] = []
        self._model, self._weights = model, weights
        places = num_pages * PAGE_TOKENS
        self._cache = [
            tuple(np.zeros((places, heads, dim), np.float32) for heads, dim in cache_shapes(layer.mixer.state))
            for layer in model.blocks
        ]
        self.page_bytes = 4 * PAGE_TOKENS * sum(per_token_dim(layer.mixer.state) for layer in model.blocks)
        self._slots = SlotStates(model, num_slots)

    @property
    def states(self) -> Bytes:
        """Implements :meth:`freedive.model.batch.Runner.states`."""
        return self._slots.memory.view(np.uint8)

    def step(self, batch: Batch) -> Array:
        """Implements :meth:`freedive.model.batch.Runner.step`."""
        ops = ReferenceOps(batch, self._cache, self._slots)
        self._batch, self._states = batch, states(self._model, self._weights, ops)
        self.routes = ops.routes
        return head(self._model, self._weights, self._states, ops)

    def draft(self, tokens: Ints, output_rows: Ints) -> Array:
        """Implements :meth:`freedive.model.batch.Runner.draft`."""
        assert self._model.mtp
        ops = ReferenceOps(replace(self._batch, tokens=tokens, output_rows=output_rows), self._cache, self._slots)
        return draft(self._model, self._model.mtp, self._weights, self._states, ops)

    def chosen_experts(self, row: int) -> Ints:
        """Implements :meth:`freedive.model.batch.Runner.chosen_experts` for layers that choose equally many."""
        return np.array([layer.experts[row] for layer in self.routes], np.int32)

    def missed_experts(self) -> tuple[()]:
        """Implements :meth:`freedive.model.batch.Runner.missed_experts`."""
        return ()

    def embed(self, output_rows: Ints) -> Array:
        """Implements :meth:`freedive.model.batch.Runner.embed`."""
        ops = ReferenceOps(replace(self._batch, output_rows=output_rows), self._cache, self._slots)
        return embedding(self._model, self._weights, self._states, ops)


def cache_shapes(state: State) -> list[tuple[int, int]]:
    """Returns (heads, dim) of each per-token state: keys and values, or latents and rotated keys."""
    return [(part.heads, part.dim) for part in state if isinstance(part, PerToken)]
