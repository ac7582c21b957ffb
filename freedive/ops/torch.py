"""The operations in PyTorch: differentiable, for training. No module that serves imports this module or torch.

Activations may have any float type. A linear computes in the type of its weight; norms, rotations, softmax and routing
compute at least in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.model import spec
from freedive.model.batch import PAGE_TOKENS, Batch
from freedive.model.decoder import Scope, feed_forward, forward
from freedive.model.state import PerSequence, PerToken
from freedive.ops.torch_attention import attend
from freedive.ops.torch_delta import DeltaInputs, delta_inputs, recur, wide

Cache = list[tuple[Tensor, ...]]
"""The states of each layer: per token [num_pages * PAGE_TOKENS, heads, dim], per sequence [num_slots, *shape]."""


class TorchOps:
    """The operations of one step over tensors.

    Without a ``cache`` every request must start at position 0; ``pages`` is not used, and all weights get gradients.
    With a ``cache``, keys and values are written in place, so gradients must be off. With ``absorbed``, latent
    attention multiplies its key and value matrices into queries and results.
    """

    def __init__(self, batch: Batch, cache: Cache | None = None, *, absorbed: bool = False) -> None:
        assert cache is not None or not batch.starts.any(), "without a cache a request has to start at 0"
        self._batch = batch
        self._cache = cache
        self._absorbed = absorbed
        self._runs = list(_runs(batch))
        self._angles_of: dict[spec.Rope, Tensor] = {}
        self._new: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        self._positions = torch.cat([run.positions.repeat(run.count) for run in self._runs])

    def embed(self, table: Tensor) -> Tensor:
        return F.embedding(torch.tensor(self._batch.tokens), table)

    def select(self, x: Tensor) -> Tensor:
        return x[torch.tensor(self._batch.output_rows)]

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        y = F.rms_norm(wide(x), x.shape[-1:], eps=eps)
        return (y if weight is None else y * weight).to(x.dtype)

    def head_norm(self, x: Tensor, weight: Tensor | None, head_dim: int, eps: float) -> Tensor:
        return self.rms_norm(x.reshape(len(x), -1, head_dim), weight, eps).flatten(1)

    def rope(self, x: Tensor, rope: spec.Rope | None, head_dim: int) -> Tensor:
        if rope is None:
            return x
        cos, sin = self._angles(rope)[:, :, None]
        heads = x.reshape(len(x), -1, head_dim)
        pair, shape = (-1, (-1, 2)) if rope.interleaved else (-2, (2, -1))
        a, b = heads[..., : rope.dim].reshape(*heads.shape[:2], *shape).unbind(pair)
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], pair).flatten(2)
        return torch.cat([rotated.to(x.dtype), heads[..., rope.dim :]], -1).flatten(1)

    def _angles(self, rope: spec.Rope) -> Tensor:
        """Returns the cosines and sines [2, T, dim / 2] of all tokens; they are equal in all layers."""
        if rope not in self._angles_of:
            angles = self._positions[:, None] * torch.tensor(rope.inv_freq)
            self._angles_of[rope] = torch.stack([angles.cos(), angles.sin()]) * rope.factor
        return self._angles_of[rope]

    def scale_by_position(self, q: Tensor, temperature: spec.AttentionTemperature) -> Tensor:
        steps = ((self._positions + temperature.offset) / temperature.floor_scale).floor()
        return (q * (steps.log1p() * temperature.scale + 1)[:, None]).to(q.dtype)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x.to(weight.dtype), weight, bias)

    def linears(self, x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]]) -> Sequence[Tensor]:
        return [self.linear(x, weight, bias) for weight, bias in layers]

    router_logits = linear

    def glu(self, gate: Tensor, up: Tensor, ffn: spec.FeedForward) -> Tensor:
        if ffn.limit:
            up = self.clip(up, ffn.limit)
            gate = gate if ffn.activation == "clamped_silu" else gate.clamp(max=ffn.limit)
        match ffn.activation:
            case "clamped_silu":
                return F.silu(gate).clamp(max=ffn.limit) * up
            case "silu":
                return F.silu(gate) * up
            case "gelu_tanh":
                return F.gelu(gate, approximate="tanh") * up
            case "swiglu_oai":
                return gate * (1.702 * gate).sigmoid() * (up + 1)

    def feed_forward(self, x: Tensor, ffn: spec.FeedForward, weights: Mapping[str, Tensor]) -> Tensor:
        return feed_forward(ffn, weights, x, self)

    def attention(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, sinks: Tensor | None, attn: spec.Attention, layer: int
    ) -> Tensor:
        k, v = self._keys_and_values(k, v, attn, layer)
        source = layer if attn.kv_layer < 0 else attn.kv_layer
        by_run = [self._by_run(x, attn.num_kv_heads) for x in (k, v) if x is not None]
        parts = []
        for index, (run, queries) in enumerate(zip(self._runs, self._by_run(q, attn.num_heads), strict=True)):
            keys, values = self._append(source, run, *(x[index] for x in by_run))
            parts.append(attend(queries, keys, values, run.start, attn, sinks))
        return torch.cat(parts)

    def _keys_and_values(
        self, k: Tensor | None, v: Tensor | None, attn: spec.Attention, layer: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns the keys and values of the step; without a cache, those of another layer are remembered."""
        if self._cache is not None:
            return k, v
        return self._new.setdefault(layer if attn.kv_layer < 0 else attn.kv_layer, (k, v))

    def latent_attention(
        self, q: Tensor, kv: Tensor, norm: Tensor, k_b: Tensor, v_b: Tensor, attn: spec.LatentAttention, layer: int
    ) -> Tensor:
        latent = self.rms_norm(kv[:, : attn.kv_rank], norm, attn.latent_eps)
        rope_key = self.rope(kv[:, attn.kv_rank :], attn.rope, attn.rope_dim)
        q = self._latent_queries(q, k_b, attn)
        parts = []
        by_run = self._by_run(q, attn.num_heads), self._by_run(latent, 1), self._by_run(rope_key, 1)
        for run, queries, *new in zip(self._runs, *by_run, strict=True):
            latents, rope_keys = self._append(layer, run, *new)
            if self._absorbed:
                keys, values = latents, latents
            else:
                keys, values = (torch.einsum("nsir,hdr->nshd", latents, matrix) for matrix in (k_b, v_b))
            keys = torch.cat([keys, rope_keys.expand(-1, -1, keys.shape[2], -1)], -1)
            plain = spec.Attention(attn.num_heads, keys.shape[2], keys.shape[3], None, attn.scale)
            parts.append(attend(queries, keys, values, run.start, plain, None))
        out = torch.cat(parts)
        if self._absorbed:
            out = torch.einsum("thr,hdr->thd", out.reshape(len(q), attn.num_heads, -1), v_b).flatten(1)
        return out

    def _latent_queries(self, q: Tensor, k_b: Tensor, attn: spec.LatentAttention) -> Tensor:
        """Returns the queries with their last part rotated; if absorbed, the first part is multiplied by ``k_b``."""
        heads = q.reshape(len(q), attn.num_heads, attn.head_dim)
        plain, rotated = heads[..., : attn.nope_dim], heads[..., attn.nope_dim :]
        rotated = self.rope(rotated.flatten(1), attn.rope, attn.rope_dim).view_as(rotated)
        if self._absorbed:
            plain = torch.einsum("thd,hdr->thr", plain, k_b)
        return torch.cat([plain, rotated], -1).flatten(1)

    def _by_run(self, x: Tensor, num_heads: int) -> list[Tensor]:
        """Splits x [T, heads * dim] into [requests, rows, heads, dim] for each run, in one split for fast gradients."""
        parts = torch.split(x, [run.count * len(run.positions) for run in self._runs])
        return [
            part.reshape(run.count, len(run.positions), num_heads, -1)
            for run, part in zip(self._runs, parts, strict=True)
        ]

    def short_conv(self, x: Tensor, taps: Tensor, bias: Tensor | None, conv: spec.ShortConv, layer: int) -> Tensor:
        b, c, x = x.chunk(3, -1)
        y = self._convolve(b * x, taps, conv.kernel, layer, 0)
        return c * (y if bias is None else y + bias)

    def silu_conv(self, x: Tensor, taps: Tensor, kernel: int, layer: int, part: int) -> Tensor:
        return F.silu(self._convolve(x, taps, kernel, layer, part))

    def _convolve(self, x: Tensor, taps: Tensor, kernel: int, layer: int, part: int) -> Tensor:
        parts, first = [], 0
        for run, new in zip(self._runs, self._by_run(x, 1), strict=True):
            seen = self._with_history(layer, part, run, first, new[:, :, 0], kernel)
            rows = len(run.positions)
            weighted = [seen[:, tap : tap + rows] * weight for tap, weight in enumerate(taps.view(kernel, -1))]
            parts.append(torch.stack(weighted).sum(0).flatten(0, 1))
            first += run.count
        return torch.cat(parts)

    def _with_history(self, layer: int, part: int, run: Run, first: int, new: Tensor, kernel: int) -> Tensor:
        """Returns the inputs [requests, kernel - 1 + rows, dim] of a convolution, and updates the cache if it exists.

        ``first`` is the index of the first request of the run. Steps with draft tokens are not supported.
        """
        zeros = new.new_zeros(run.count, kernel - 1, new.shape[-1])
        if self._cache is None:
            return torch.cat([zeros, new], 1)
        kept, slots = self._cache[layer][part], self._slots(run, first)
        seen = torch.cat([kept[slots] if run.start else zeros, new], 1)
        kept[slots] = seen[:, -(kernel - 1) :]
        return seen

    def _slots(self, run: Run, first: int) -> Tensor:
        assert self._batch.states is not None
        return torch.tensor(self._batch.states.slots[first : first + run.count])

    def delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor,
        rate: Tensor,
        dt_bias: Tensor,
        delta: spec.DeltaRule,
        layer: int,
    ) -> Tensor:
        inputs = delta_inputs(q, k, v, beta, decay, rate, dt_bias, delta)
        by_run = [self._by_run(x, delta.num_value_heads) for x in inputs]
        parts, first = [], 0
        for run, *new in zip(self._runs, *by_run, strict=True):
            states = v.new_zeros(run.count, *delta.state[-1].shape) if self._cache is None else self._cache[layer][-1]
            slots = torch.arange(run.count) if self._cache is None else self._slots(run, first)
            out, state = recur(wide(states[slots]) * bool(run.start), DeltaInputs(*new))
            if self._cache is not None:
                states[slots] = state.to(v.dtype)
            parts.append(out.flatten(0, 1).flatten(1))
            first += run.count
        return torch.cat(parts).to(v.dtype)

    def gated_norm(self, x: Tensor, gate: Tensor, weight: Tensor, delta: spec.DeltaRule, eps: float) -> Tensor:
        act = gate.sigmoid() if delta.gate_activation == "sigmoid" else F.silu(gate)
        return self.head_norm(x, weight, delta.value_dim, eps) * act

    def _append(self, layer: int, run: Run, *new: Tensor) -> tuple[Tensor, ...]:
        """Writes ``new`` rows [requests, rows, heads, dim], if any, to the cache and returns those of all positions."""
        if self._cache is None:
            return new
        slots = run.slots
        for store, rows in zip(self._cache[layer], new, strict=bool(new)):
            store[slots[:, run.start :]] = rows
        return tuple(store[slots] for store in self._cache[layer])

    def route(
        self, logits: Tensor, router: spec.Router, choice_bias: Tensor | None, expert_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the experts (int64) and their weights (with gradients), [T, num_chosen] each."""
        logits = wide(logits)
        scores = logits.sigmoid() if router.score == "sigmoid" else logits.softmax(-1)
        chosen = self.choose(scores.detach() if choice_bias is None else scores.detach() + choice_bias, router)
        weights = scores.gather(-1, chosen)
        if router.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * router.scale
        if expert_scale is not None:
            weights = weights * expert_scale[chosen]
        return chosen, weights

    def choose(self, merit: Tensor, router: spec.Router) -> Tensor:
        """Returns the experts of each token [T, num_chosen] with the highest ``merit`` [T, num_experts], best first.

        If merits are equal, the lower index comes first. It is called once for each layer with experts, in order:
        override it to count loads or to replay choices.
        """
        groups = merit.reshape(len(merit), router.num_groups, -1)
        if router.group_choice == "each":
            first = torch.arange(0, router.num_experts, groups.shape[-1])[:, None]
            return (_top(groups, router.num_chosen // router.num_groups) + first).flatten(1)
        if router.kept_groups < router.num_groups:
            strength = groups.topk(2 if router.group_choice == "top2" else 1).values.sum(-1)
            dropped = torch.ones_like(strength).scatter(-1, _top(strength, router.kept_groups), 0).bool()
            merit = groups.masked_fill(dropped[..., None], -torch.inf).flatten(1)
        return _top(merit, router.num_chosen)

    def experts(
        self,
        x: Tensor,
        logits: Tensor,
        moe: spec.Experts,
        weights: Mapping[str, Tensor],
        choice_bias: Tensor | None,
        expert_scale: Tensor | None,
    ) -> Tensor:
        chosen, shares = self.route(logits, moe.router, choice_bias, expert_scale)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=moe.router.num_experts).tolist()
        rows, share = order // moe.router.num_chosen, shares.flatten()[order, None]
        y = x[rows]
        if moe.router.weighs_input:
            y = (y * share).to(x.dtype)
        parts = [
            feed_forward(moe.expert, Scope(weights, str(expert)), part, self)
            for expert, part in enumerate(torch.split(y, counts))
            if len(part)
        ]
        y = wide(torch.cat(parts))
        if not moe.router.weighs_input:
            y = y * share
        return torch.zeros_like(y[: len(x)]).index_add(0, rows, y).to(x.dtype)

    def gate(self, x: Tensor, gate: Tensor, activation: spec.GateActivation = "sigmoid") -> Tensor:
        factors = gate.sigmoid() if activation == "sigmoid" else F.softplus(gate)
        return (x * factors.repeat_interleave(x.shape[-1] // gate.shape[-1], -1)).to(x.dtype)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def scale_by(self, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor

    def columns(self, x: Tensor, first: int, width: int) -> Tensor:
        return x[:, first : first + width]

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return cap * (x / cap).tanh()

    def clip(self, x: Tensor, limit: float) -> Tensor:
        return x.clamp(-limit, limit)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@dataclass(frozen=True)
class Run:
    """Consecutive requests of a step with the same start and length, whose attention is one batched product."""

    start: int
    pages: npt.NDArray[np.int32]
    positions: Tensor

    @property
    def count(self) -> int:
        return len(self.pages)

    @property
    def slots(self) -> Tensor:
        """The cache rows of every position up to the last, [requests, positions]."""
        position = np.arange(self.start + len(self.positions))
        return torch.tensor(self.pages[:, position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS)


def _runs(batch: Batch) -> Iterator[Run]:
    requests = zip(batch.starts.tolist(), batch.lengths.tolist(), batch.pages, strict=True)
    for (start, length), same in groupby(requests, key=lambda request: request[:2]):
        pages = np.stack([table for _, _, table in same])
        yield Run(start, pages, torch.arange(start, start + length))


def _shape(part: PerToken | PerSequence, num_places: int, num_slots: int) -> tuple[int, ...]:
    if isinstance(part, PerToken):
        return (num_places, part.heads, part.dim)
    return (num_slots, *part.shape)


def _top(x: Tensor, count: int) -> Tensor:
    """Returns the indices of the ``count`` largest values of each row, the lower index first if values are equal.

    The order of equal values in ``torch.topk`` is undefined.
    """
    return x.argsort(dim=-1, descending=True, stable=True)[..., :count]


class TorchRunner:
    """Runs a model with :class:`TorchOps`. ``weights`` are tensors of one float type by canonical name."""

    def __init__(
        self,
        model: spec.ModelSpec,
        weights: Mapping[str, Tensor],
        *,
        num_pages: int = 64,
        num_slots: int = 16,
        absorbed: bool = False,
    ) -> None:
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.num_pages = num_pages
        self._model = model
        self._weights = weights
        self._absorbed = absorbed
        self._cache: Cache = [
            tuple(
                torch.zeros(_shape(part, num_pages * PAGE_TOKENS, num_slots), dtype=weights["embed"].dtype)
                for part in layer.mixer.state
            )
            for layer in model.layers
        ]

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Implements :meth:`freedive.model.batch.Runner.step`."""
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = forward(self._model, self._weights, self.ops(batch)).float().numpy()
        return logits

    def ops(self, batch: Batch) -> TorchOps:
        """Returns the operations of the step ``batch``."""
        return TorchOps(batch, self._cache, absorbed=self._absorbed)
