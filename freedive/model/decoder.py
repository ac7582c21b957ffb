"""The forward pass: written once, run by any set of operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from freedive.model import spec
from freedive.ops.contract import Ops

V = TypeVar("V")
W = TypeVar("W")


def forward(model: spec.Model, weights: Mapping[str, W], ops: Ops[V, W]) -> V:
    """Logits [wanted, vocab] of the step that ``ops`` holds; ``weights`` go by the names of model.params."""
    x = ops.embed(weights["embed"])
    for index, layer in enumerate(model.layers):
        x = _block(index, layer, Scope(weights, f"layers.{index}"), model.norm_eps, x, ops)
    x = ops.rms_norm(ops.select(x), weights["norm"], model.norm_eps)
    return ops.linear(x, weights["embed" if model.tied else "head"], None)


class Scope(Mapping[str, W]):
    """The weights under one prefix."""

    def __init__(self, weights: Mapping[str, W], prefix: str) -> None:
        self._weights = weights
        self._prefix = prefix

    def __getitem__(self, name: str) -> W:
        return self._weights[f"{self._prefix}.{name}"]

    def __iter__(self) -> Iterator[str]:
        start = f"{self._prefix}."
        return (name.removeprefix(start) for name in self._weights if name.startswith(start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _block(index: int, layer: spec.Layer, w: Mapping[str, W], eps: float, x: V, ops: Ops[V, W]) -> V:
    h = ops.rms_norm(x, w["attn.norm"], eps)
    x = ops.add(x, _attention(index, layer.attention, Scope(w, "attn"), eps, h, ops))
    h = ops.rms_norm(x, w["ffn.norm"], eps)
    return ops.add(x, _feed_forward(layer.ffn, Scope(w, "ffn"), h, ops))


def _attention(index: int, attn: spec.Attention, w: Mapping[str, W], eps: float, h: V, ops: Ops[V, W]) -> V:
    q, k, v = (ops.linear(h, w[name], w.get(f"{name}_bias")) for name in "qkv")
    if attn.head_norm:
        q, k = ops.head_norm(q, w["q_norm"], eps), ops.head_norm(k, w["k_norm"], eps)
    if attn.rope:
        q, k = ops.rope(q, attn.rope, attn.head_dim), ops.rope(k, attn.rope, attn.head_dim)
    return ops.linear(ops.attention(q, k, v, attn, index), w["o"], w.get("o_bias"))


def _feed_forward(ffn: spec.FeedForward, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    gate, up = (ops.linear(h, w[name], w.get(f"{name}_bias")) for name in ("gate", "up"))
    return ops.linear(ops.glu(gate, up, ffn.activation), w["down"], w.get("down_bias"))
