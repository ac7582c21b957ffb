"""The forward pass of a decoder, written once and run by every implementation of the operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from freedive.model import spec
from freedive.model.operations import Ops

V = TypeVar("V")
W = TypeVar("W")


def forward(model: spec.ModelSpec, weights: Mapping[str, W], ops: Ops[V, W]) -> V:
    """Returns the logits [W, vocab] of the step of ``ops``; ``weights`` have the canonical names of model/params.py."""
    return head(model, weights, states(model, weights, ops), ops)


def states(model: spec.ModelSpec, weights: Mapping[str, W], ops: Ops[V, W]) -> V:
    """Returns the hidden states [T, hidden] after the last layer, before the last norm."""
    x = _embed(model, weights, ops)
    for index, layer in enumerate(model.layers):
        x = _block(index, layer, Scope(weights, f"layers.{index}"), model, x, ops)
    return x


def head(model: spec.ModelSpec, weights: Mapping[str, W], x: V, ops: Ops[V, W], norm: str = "norm") -> V:
    """Returns the logits [W, vocab] of the output rows of hidden states ``x`` [T, hidden]."""
    x = ops.rms_norm(ops.select(x), weights[norm], model.norm_eps)
    logits = ops.linear(x, weights["embed" if model.tied else "head"], weights.get("head_bias"))
    logits = _scale(logits, model.logit_scale, ops)
    return ops.softcap(logits, model.logit_softcap) if model.logit_softcap else logits


def embedding(model: spec.ModelSpec, weights: Mapping[str, W], x: V, ops: Ops[V, W]) -> V:
    """Returns the output rows [W, hidden] of hidden states ``x`` [T, hidden], after the last norm."""
    return ops.rms_norm(ops.select(x), weights["norm"], model.norm_eps)


def draft(model: spec.ModelSpec, layer: spec.Layer, weights: Mapping[str, W], x: V, ops: Ops[V, W]) -> V:
    """Returns the MTP logits [W, vocab], which predict the token after the next: see :func:`draft_states`."""
    return head(model, weights, draft_states(model, layer, weights, x, ops), ops, draft_norm(model))


def draft_norm(model: spec.ModelSpec) -> str:
    """Returns the name of the norm that is applied to draft states before the output head."""
    return f"layers.{len(model.layers)}.mtp.norm"


def draft_states(model: spec.ModelSpec, layer: spec.Layer, weights: Mapping[str, W], x: V, ops: Ops[V, W]) -> V:
    """Returns the hidden states [T, hidden] after the MTP layer ``layer``, whose input tokens are those of ``ops``.

    ``x`` [T, hidden] are the :func:`states` at the positions before these tokens (DeepSeek-V3, section 2.2). They pass
    through the norm of the output head first.
    """
    index, eps = len(model.layers), model.norm_eps
    w = Scope(weights, f"layers.{index}")
    token = ops.rms_norm(_embed(model, weights, ops), w["mtp.embed_norm"], eps)
    state = ops.rms_norm(ops.rms_norm(x, weights["norm"], eps), w["mtp.state_norm"], eps)
    x = ops.add(ops.linear(token, w["mtp.embed_proj"], None), ops.linear(state, w["mtp.state_proj"], None))
    return _block(index, layer, w, model, x, ops)


class Scope(Mapping[str, W]):
    """A view of the weights whose names begin with ``prefix``, by the rest of their names."""

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


def _embed(model: spec.ModelSpec, weights: Mapping[str, W], ops: Ops[V, W]) -> V:
    return _scale(ops.embed(weights["embed"]), model.embed_scale, ops)


def _block(index: int, layer: spec.Layer, w: Mapping[str, W], model: spec.ModelSpec, x: V, ops: Ops[V, W]) -> V:
    h = ops.rms_norm(x, w["attn.norm"], model.norm_eps) if layer.pre_norms else x
    x = _add(x, _mix(index, layer.mixer, Scope(w, "attn"), model.norm_eps, h, ops), w.get("attn.post_norm"), model, ops)
    h = ops.rms_norm(x, w["ffn.norm"], model.norm_eps) if layer.pre_norms else x
    return _add(x, _feed(layer.ffn, Scope(w, "ffn"), h, ops), w.get("ffn.post_norm"), model, ops)


def _add(x: V, branch: V, post_norm: W | None, model: spec.ModelSpec, ops: Ops[V, W]) -> V:
    if post_norm is not None:
        branch = ops.rms_norm(branch, post_norm, model.norm_eps)
    return ops.add(x, _scale(branch, model.residual_scale, ops))


def _scale(x: V, factor: float, ops: Ops[V, W]) -> V:
    return x if factor == 1.0 else ops.scale(x, factor)


def _mix(
    index: int,
    mixer: spec.Mixer,
    w: Mapping[str, W],
    eps: float,
    h: V,
    ops: Ops[V, W],
) -> V:
    match mixer:
        case spec.Attention():
            return _attention(index, mixer, w, eps, h, ops)
        case spec.LatentAttention():
            return _latent_attention(index, mixer, w, h, ops)
        case spec.ShortConv():
            return _short_conv(index, mixer, w, h, ops)
        case spec.DeltaRule():
            return _delta_rule(index, mixer, w, eps, h, ops)


def _attention(index: int, attn: spec.Attention, w: Mapping[str, W], eps: float, h: V, ops: Ops[V, W]) -> V:
    q, k, v, *gate = _linears(h, w, ("q", "k", "v", "gate") if attn.output_gate else "qkv", ops)
    if not attn.norm_after_rope:
        q, k = _qk_norm(attn, w, eps, q, k, ops)
    if attn.clip:
        q, k, v = (ops.clip(x, attn.clip) for x in (q, k, v))
    if attn.rope:
        q, k = ops.rope(q, attn.rope, attn.head_dim), ops.rope(k, attn.rope, attn.head_dim)
    if attn.norm_after_rope:
        q, k = _qk_norm(attn, w, eps, q, k, ops)
    if attn.temperature:
        q = ops.scale_by_position(q, attn.temperature)
    out = ops.attention(q, k, v, w.get("sinks"), attn, index)
    out = ops.gate(out, gate[0], attn.gate_activation) if gate else out
    return ops.linear(out, w["o"], w.get("o_bias"))


def _qk_norm(attn: spec.Attention, w: Mapping[str, W], eps: float, q: V, k: V, ops: Ops[V, W]) -> tuple[V, V]:
    match attn.qk_norm:
        case "":
            return q, k
        case "full":
            return ops.rms_norm(q, w["q_norm"], eps), ops.rms_norm(k, w["k_norm"], eps)
        case _:
            dim = attn.head_dim
            return ops.head_norm(q, w.get("q_norm"), dim, eps), ops.head_norm(k, w.get("k_norm"), dim, eps)


def _latent_attention(index: int, attn: spec.LatentAttention, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    names = ("q_a" if attn.q_rank else "q", "kv_a", *(["gate"] if attn.output_gate else []))
    q, kv, *gate = _linears(h, w, names, ops)
    if attn.q_rank:
        q = ops.linear(ops.rms_norm(q, w["q_a_norm"], attn.latent_eps), w["q_b"], None)
    if attn.temperature:
        q = ops.scale_by_position(q, attn.temperature)
    out = ops.latent_attention(q, kv, w["kv_a_norm"], w["k_b"], w["v_b"], attn, index)
    return ops.linear(ops.gate(out, gate[0]) if gate else out, w["o"], w.get("o_bias"))


def _short_conv(index: int, conv: spec.ShortConv, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    x = ops.linear(h, w["in"], w.get("in_bias"))
    return ops.linear(ops.short_conv(x, w["conv"], w.get("conv_bias"), conv, index), w["out"], w.get("out_bias"))


def _delta_rule(index: int, delta: spec.DeltaRule, w: Mapping[str, W], eps: float, h: V, ops: Ops[V, W]) -> V:
    ranks = {"in_decay": delta.decay_rank, "in_gate": delta.gate_rank}
    firsts = [f"{name}_a" if rank else name for name, rank in ranks.items()]
    *qkv, beta, decay, gate = _linears(h, w, ("in_q", "in_k", "in_v", "in_beta", *firsts), ops)
    q, k, v = (
        ops.silu_conv(x, w[f"{name}_conv"], delta.kernel, index, part)
        for part, (x, name) in enumerate(zip(qkv, "qkv", strict=True))
    )
    if delta.decay_rank:
        decay = ops.linear(decay, w["in_decay_b"], None)
    if delta.gate_rank:
        gate = ops.linear(gate, w["in_gate_b"], None)
    out = ops.delta_rule(q, k, v, beta, decay, w["rate"], w["dt_bias"], delta, index)
    return ops.linear(ops.gated_norm(out, gate, w["out_norm"], delta, eps), w["out"], None)


def _linears(h: V, w: Mapping[str, W], names: Iterable[str], ops: Ops[V, W]) -> Sequence[V]:
    return ops.linears(h, [(w[name], w.get(f"{name}_bias")) for name in names])


def _feed(ffn: spec.FeedForward | spec.Experts, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    return _experts(ffn, w, h, ops) if isinstance(ffn, spec.Experts) else ops.feed_forward(h, ffn, w)


def feed_forward(ffn: spec.FeedForward, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    """Returns the output [T, hidden] of the feed-forward network of a layer or of one expert.

    ``w`` has ``gate``, ``up`` and ``down``, and their biases (``gate_bias``, ...) if the model has biases.
    """
    gate, up = _linears(h, w, ("gate", "up"), ops)
    return ops.linear(ops.glu(gate, up, ffn), w["down"], w.get("down_bias"))


def _experts(moe: spec.Experts, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    logits = ops.router_logits(h, w["router"], w.get("router_bias"))
    y = ops.experts(h, logits, moe, Scope(w, "experts"), w.get("choice_bias"), w.get("expert_scale"))
    if moe.shared:
        shared = ops.feed_forward(h, moe.shared, Scope(w, "shared"))
        if moe.shared_gate:
            shared = ops.gate(shared, ops.linear(h, w["shared_gate"], None))
        y = ops.add(y, shared)
    return y
