"""spec -> {canonical name: shape, role}: the one shape table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from freedive.model.spec import Attention, FeedForward, Model

Role = Literal["embedding", "linear", "norm", "bias"]


@dataclass(frozen=True)
class Param:
    """One weight. Linear and embedding weights are [out, in]; norms and biases are [dim]."""

    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def params(spec: Model) -> dict[str, Param]:
    """Every weight of ``spec`` by its canonical name, in the order in which a step reads them."""
    table = {"embed": Param((spec.vocab_size, spec.hidden_dim), "embedding")}
    for index, layer in enumerate(spec.layers):
        for part, entries in (
            ("attn", _attention(layer.attention, spec.hidden_dim)),
            ("ffn", _feed_forward(layer.ffn, spec.hidden_dim)),
        ):
            table |= {f"layers.{index}.{part}.{name}": param for name, param in entries.items()}
    table["norm"] = Param((spec.hidden_dim,), "norm")
    if not spec.tied:
        table["head"] = Param((spec.vocab_size, spec.hidden_dim), "linear")
    return table


def _attention(attn: Attention, hidden: int) -> dict[str, Param]:
    table = {"norm": Param((hidden,), "norm")}
    for name, dim in (("q", attn.q_dim), ("k", attn.kv_dim), ("v", attn.kv_dim)):
        table |= _linear(name, dim, hidden, attn.qkv_bias)
    if attn.head_norm:
        table |= {name: Param((attn.head_dim,), "norm") for name in ("q_norm", "k_norm")}
    return table | _linear("o", hidden, attn.q_dim, attn.out_bias)


def _feed_forward(ffn: FeedForward, hidden: int) -> dict[str, Param]:
    table = {"norm": Param((hidden,), "norm")}
    for name in ("gate", "up"):
        table |= _linear(name, ffn.dim, hidden, ffn.bias)
    return table | _linear("down", hidden, ffn.dim, ffn.bias)


def _linear(name: str, out_dim: int, in_dim: int, bias: bool) -> dict[str, Param]:
    table = {name: Param((out_dim, in_dim), "linear")}
    if bias:
        table[f"{name}_bias"] = Param((out_dim,), "bias")
    return table
