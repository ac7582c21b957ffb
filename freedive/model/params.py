"""The shape and role of every weight of a model, by canonical name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from freedive.model.spec import (
    Attention,
    DeltaRule,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mixer,
    ModelSpec,
    ShortConv,
)

Role = Literal["embedding", "linear", "router", "heads", "norm", "bias", "conv"]


@dataclass(frozen=True)
class Param:
    """The shape and role of one weight.

    Matrices are [out, in], norms and biases [dim], ``heads`` [heads, out, in]. The weights of a convolution are
    [kernel * dim], those of the oldest token first.
    """

    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Table = dict[str, Param]


@dataclass(frozen=True)
class ExpertParams:
    """The weights of the ``count`` experts of a layer; each expert has the weights ``parts``."""

    count: int
    parts: Table

    @property
    def size(self) -> int:
        return self.count * sum(part.size for part in self.parts.values())


Entries = Mapping[str, Param | ExpertParams]

BRANCH_NORMS = ("router_norm", "experts_norm", "experts_post_norm", "shared_post_norm")
"""Names of the norms of ``branch_norms``; ``ffn.norm`` is that of the shared expert."""

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


def expert_of(name: str) -> tuple[str, int, str] | None:
    """Splits the canonical name of an expert's weight into ("layers.3.ffn.experts", index, "gate").

    Returns None for a weight that belongs to no expert.
    """
    match = _EXPERT.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def params(spec: ModelSpec) -> Table:
    """Returns every weight of ``spec`` by its canonical name, in the order in which a step reads them."""
    table: Table = {}
    for name, entry in entries(spec).items():
        if isinstance(entry, ExpertParams):
            for index in range(entry.count):
                table |= {f"{name}.{index}.{part}": param for part, param in entry.parts.items()}
        else:
            table[name] = entry
    return table


def entries(spec: ModelSpec) -> Entries:
    """Returns every weight of ``spec``, with all experts of a layer as one entry (``layers.3.ffn.experts``).

    A packed store has one record for each entry.
    """
    table: dict[str, Param | ExpertParams] = {"embed": Param((spec.vocab_size, spec.hidden_dim), "embedding")}
    if spec.token_input:
        table |= {f"inputs.{name}": param for name, param in _token_inputs(spec).items()}
    for index, layer in enumerate(spec.blocks):
        entries = _layer(layer, spec.hidden_dim, spec.token_input if index < len(spec.layers) else 0)
        table |= {f"layers.{index}.{name}": entry for name, entry in entries.items()}
    if spec.mtp:
        table |= {f"layers.{len(spec.layers)}.mtp.{name}": param for name, param in _mtp(spec.hidden_dim).items()}
    table["norm"] = _vector(spec.hidden_dim, "norm")
    if not spec.tied:
        table["head"] = Param((spec.vocab_size, spec.hidden_dim), "linear")
    if spec.head_bias:
        table["head_bias"] = _vector(spec.vocab_size, "bias")
    return table


def tables_by_row(spec: ModelSpec) -> tuple[str, ...]:
    """Returns the names of the tables of which a token reads one row each: embeddings that are not the head too."""
    untied = () if spec.tied else ("embed",)
    return (*untied, "inputs.embed") if spec.token_input else untied


def _token_inputs(spec: ModelSpec) -> Table:
    """Returns the weights that make the further inputs of all layers from tokens and their embeddings."""
    width = len(spec.layers) * spec.token_input
    table = {"embed": Param((spec.vocab_size, width), "embedding")}
    return table | _linear("proj", width, spec.hidden_dim) | {"norm": _vector(spec.token_input, "norm")}


def _layer(layer: Layer, hidden: int, token_input: int) -> Entries:
    ffn = layer.ffn
    mixer = _mixer(layer.mixer, hidden)
    feeder = _experts(ffn, hidden) if isinstance(ffn, Experts) else _feed_forward(ffn, hidden)
    table: dict[str, Param | ExpertParams] = {}
    branches: tuple[tuple[str, Entries], ...] = (("attn", mixer), ("ffn", feeder))
    for part, branch in branches:
        if layer.pre_norms:
            table[f"{part}.norm"] = _vector(hidden, "norm")
        table |= {f"{part}.{name}": entry for name, entry in branch.items()}
        if layer.post_norms:
            table[f"{part}.post_norm"] = _vector(hidden, "norm")
    if token_input:
        branch = _linear("gate", token_input, hidden) | _linear("proj", hidden, token_input)
        table |= {f"input.{name}": param for name, param in (branch | {"post_norm": _vector(hidden, "norm")}).items()}
    if layer.out_scale:
        table["out_scale"] = _vector(1, "norm")
    return table


def _mixer(mixer: Mixer, hidden: int) -> Table:
    match mixer:
        case Attention():
            return _attention(mixer, hidden)
        case LatentAttention():
            return _latent_attention(mixer, hidden)
        case ShortConv():
            return _short_conv(mixer, hidden)
        case DeltaRule():
            return _delta_rule(mixer, hidden)


def _attention(attn: Attention, hidden: int) -> Table:
    widths = {"q": attn.q_dim, "k": attn.k_dim, "v": attn.v_dim}
    table: Table = {}
    for name in attn.projections:
        table |= _linear(name, widths[name], hidden, attn.qkv_bias)
    if attn.qk_norm in ("head", "full"):
        for name in attn.projections[:2]:
            table[f"{name}_norm"] = _vector(widths[name] if attn.qk_norm == "full" else attn.head_dim, "norm")
    if attn.sinks:
        table["sinks"] = _vector(attn.num_heads, "bias")
    if attn.output_gate:
        table |= _linear("gate", attn.num_heads if attn.gate_by_head else attn.out_dim, hidden, attn.qkv_bias)
    return table | _linear("o", hidden, attn.out_dim, attn.out_bias)


def _latent_attention(attn: LatentAttention, hidden: int) -> Table:
    heads, q_dim = attn.num_heads, attn.num_heads * attn.head_dim
    if attn.q_rank:
        table = _linear("q_a", attn.q_rank, hidden, attn.bias)
        table["q_a_norm"] = _vector(attn.q_rank, "norm")
        table |= _linear("q_b", q_dim, attn.q_rank)
    else:
        table = _linear("q", q_dim, hidden)
    table |= _linear("kv_a", attn.kv_rank + attn.rope_dim, hidden, attn.bias)
    table["kv_a_norm"] = _vector(attn.kv_rank, "norm")
    table["k_b"] = Param((heads, attn.nope_dim, attn.kv_rank), "heads")
    table["v_b"] = Param((heads, attn.value_dim, attn.kv_rank), "heads")
    if attn.output_gate:
        table |= _linear("gate", heads, hidden)
    return table | _linear("o", hidden, heads * attn.value_dim, attn.bias)


def _short_conv(conv: ShortConv, hidden: int) -> Table:
    table = _linear("in", 3 * conv.dim, hidden, conv.bias)
    table["conv"] = _vector(conv.kernel * conv.dim, "conv")
    if conv.bias:
        table["conv_bias"] = _vector(conv.dim, "bias")
    return table | _linear("out", hidden, conv.dim, conv.bias)


def _delta_rule(delta: DeltaRule, hidden: int) -> Table:
    """Named apart from those of attention, since the layers of a model may have either.

    The rates of decay are positive factors, and so treated as norms are.
    """
    widths = {"q": delta.k_dim, "k": delta.k_dim, "v": delta.v_dim}
    table: Table = {}
    for name, dim in widths.items():
        table |= _linear(f"in_{name}", dim, hidden)
    for name, dim in widths.items():
        table[f"{name}_conv"] = _vector(delta.kernel * dim, "conv")
    table |= _linear("in_beta", delta.num_value_heads, hidden)
    table |= _low_rank("in_decay", delta.decay_dim, hidden, delta.decay_rank)
    table["rate"] = _vector(delta.num_value_heads, "norm")
    table["dt_bias"] = _vector(delta.decay_dim, "bias")
    table |= _low_rank("in_gate", delta.v_dim, hidden, delta.gate_rank)
    table["out_norm"] = _vector(delta.value_dim, "norm")
    return table | _linear("out", hidden, delta.v_dim)


def _low_rank(name: str, out_dim: int, in_dim: int, rank: int) -> Table:
    """One matrix, or two whose product has ``rank``."""
    if not rank:
        return _linear(name, out_dim, in_dim)
    return _linear(f"{name}_a", rank, in_dim) | _linear(f"{name}_b", out_dim, rank)


def _feed_forward(ffn: FeedForward, hidden: int) -> Table:
    table: Table = {}
    for name in ("gate", "up"):
        table |= _linear(name, ffn.dim, hidden, ffn.bias)
    return table | _linear("down", hidden, ffn.dim, ffn.bias)


def _experts(moe: Experts, hidden: int) -> Entries:
    count = moe.router.num_experts
    table: dict[str, Param | ExpertParams] = {"router": Param((count, hidden), "router")}
    for name in ("bias", "choice_bias", "expert_scale"):
        if getattr(moe.router, name):
            table["router_bias" if name == "bias" else name] = _vector(count, "bias")
    if moe.branch_norms:
        table |= {name: _vector(hidden, "norm") for name in BRANCH_NORMS}
    table["experts"] = ExpertParams(count, _feed_forward(moe.expert, hidden))
    if moe.shared:
        table |= {f"shared.{name}": param for name, param in _feed_forward(moe.shared, hidden).items()}
    if moe.shared_gate:
        table["shared_gate"] = Param((1, hidden), "router")
    return table


def _mtp(hidden: int) -> Table:
    """Returns the weights of the MTP module that are not part of its layer."""
    norms = {name: _vector(hidden, "norm") for name in ("embed_norm", "state_norm", "norm")}
    return norms | _linear("embed_proj", hidden, hidden) | _linear("state_proj", hidden, hidden)


def _linear(name: str, out_dim: int, in_dim: int, bias: bool = False) -> Table:
    table = {name: Param((out_dim, in_dim), "linear")}
    if bias:
        table[f"{name}_bias"] = _vector(out_dim, "bias")
    return table


def _vector(dim: int, role: Literal["norm", "bias", "conv"]) -> Param:
    return Param((dim,), role)
