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
    inputs = _token_inputs(model, Scope(weights, "inputs"), x, ops) if model.token_input else None
    for index, layer in enumerate(model.layers):
        x = _block(index, layer, Scope(weights, f"layers.{index}"), model, x, ops, inputs)
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

    ``x`` [T, hidden] are the :func:`states` at the positions before these tokens (DeepSeek-V3, section 2.2).
    """
    index, eps = len(model.layers), model.norm_eps
    w = Scope(weights, f"layers.{index}")
    token = ops.rms_norm(_embed(model, weights, ops), w["mtp.embed_norm"], eps)
    x = ops.rms_norm(x, weights["norm"], eps) if model.mtp_normed else x
    state = ops.rms_norm(x, w["mtp.state_norm"], eps)
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
    x = _scale(ops.embed(weights["embed"]), model.embed_scale, ops)
    return ops.head_norm(x, None, model.hidden_dim, model.norm_eps) if model.embed_norm else x


def _token_inputs(model: spec.ModelSpec, w: Mapping[str, W], x: V, ops: Ops[V, W]) -> V:
    """Returns the further inputs of all layers [T, layers * token_input], made of tokens and their embeddings ``x``."""
    dim, half = model.token_input, 2**-0.5
    own = ops.scale(ops.embed(w["embed"]), dim**0.5 * half)
    made = ops.scale(ops.linear(x, w["proj"], None), model.hidden_dim**-0.5)
    return ops.add(own, ops.scale(ops.head_norm(made, w["norm"], dim, model.norm_eps), half))


def _add_input(index: int, w: Mapping[str, W], model: spec.ModelSpec, x: V, inputs: V, ops: Ops[V, W]) -> V:
    """Returns ``x`` with the branch of a layer that reads its part of ``inputs`` added."""
    dim = model.token_input
    gate = ops.linear(x, w["gate"], None)
    part = ops.glu(gate, ops.columns(inputs, index * dim, dim), spec.FeedForward(dim, "gelu_tanh"))
    return ops.add(x, ops.rms_norm(ops.linear(part, w["proj"], None), w["post_norm"], model.norm_eps))


def _block(
    index: int,
    layer: spec.Layer,
    w: Mapping[str, W],
    model: spec.ModelSpec,
    x: V,
    ops: Ops[V, W],
    inputs: V | None = None,
) -> V:
    eps = model.norm_eps
    h = _normed(x, w.get("attn.norm"), eps, ops)
    x = _add(x, _mix(index, layer.mixer, Scope(w, "attn"), eps, h, ops), w.get("attn.post_norm"), model, ops)
    x = _add(x, _feed(layer.ffn, Scope(w, "ffn"), eps, x, ops), w.get("ffn.post_norm"), model, ops)
    if inputs is not None:
        x = _add_input(index, Scope(w, "input"), model, x, inputs, ops)
    return ops.scale_by(x, w["out_scale"]) if layer.out_scale else x


def _add(x: V, branch: V, post_norm: W | None, model: spec.ModelSpec, ops: Ops[V, W]) -> V:
    branch = _normed(branch, post_norm, model.post_norm_eps or model.norm_eps, ops)
    return ops.add(x, _scale(branch, model.residual_scale, ops))


def _normed(x: V, norm: W | None, eps: float, ops: Ops[V, W]) -> V:
    """Returns the RMS norm of ``x``, or ``x`` if the layer has no such norm."""
    return x if norm is None else ops.rms_norm(x, norm, eps)


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
    q, *others = _linears(h, w, (*attn.projections, *(["gate"] if attn.output_gate else [])), ops)
    gate = others.pop() if attn.output_gate else None
    q = _norm_and_turn(attn, q, w.get("q_norm"), eps, ops)
    if attn.temperature:
        q = ops.scale_by_position(q, attn.temperature)
    k = v = None
    if others:
        k, v = _norm_and_turn(attn, others[0], w.get("k_norm"), eps, ops), others[-1]
        if attn.v_norm:
            v = ops.head_norm(v, None, attn.v_head_dim, eps)
        if attn.clip:
            v = ops.clip(v, attn.clip)
    out = ops.attention(q, k, v, w.get("sinks"), attn, index)
    if gate is not None:
        out = ops.gate(out, gate, attn.gate_activation)
    return _scale(ops.linear(out, w["o"], w.get("o_bias")), attn.result_scale, ops)


def _norm_and_turn(attn: spec.Attention, x: V, norm: W | None, eps: float, ops: Ops[V, W]) -> V:
    """Returns queries or keys after their norm, clipping and rotary embedding."""
    if not attn.norm_after_rope:
        x = _qk_norm(attn, x, norm, eps, ops)
    if attn.clip:
        x = ops.clip(x, attn.clip)
    if attn.rope:
        x = ops.rope(x, attn.rope, attn.head_dim)
    return _qk_norm(attn, x, norm, eps, ops) if attn.norm_after_rope else x


def _qk_norm(attn: spec.Attention, x: V, norm: W | None, eps: float, ops: Ops[V, W]) -> V:
    if norm is not None and attn.qk_norm == "full":
        return ops.rms_norm(x, norm, eps)
    return ops.head_norm(x, norm, attn.head_dim, eps) if attn.qk_norm else x


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


def _feed(ffn: spec.FeedForward | spec.Experts, w: Mapping[str, W], eps: float, x: V, ops: Ops[V, W]) -> V:
    h = _normed(x, w.get("norm"), eps, ops)
    if isinstance(ffn, spec.FeedForward):
        return ops.feed_forward(h, ffn, w)
    return _normed_branches(ffn, w, eps, x, h, ops) if ffn.branch_norms else _experts(ffn, w, h, ops)


def feed_forward(ffn: spec.FeedForward, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    """Returns the output [T, hidden] of the feed-forward network of a layer or of one expert.

    ``w`` has ``gate``, ``up`` and ``down``, and their biases (``gate_bias``, ...) if the model has biases.
    """
    gate, up = _linears(h, w, ("gate", "up"), ops)
    return ops.linear(ops.glu(gate, up, ffn), w["down"], w.get("down_bias"))


def _experts(moe: spec.Experts, w: Mapping[str, W], h: V, ops: Ops[V, W]) -> V:
    y = _routed(moe, w, h, h, ops)
    if moe.shared:
        shared = ops.feed_forward(h, moe.shared, Scope(w, "shared"))
        if moe.shared_gate:
            shared = ops.gate(shared, ops.linear(h, w["shared_gate"], None))
        y = ops.add(y, shared)
    return y


def _normed_branches(moe: spec.Experts, w: Mapping[str, W], eps: float, x: V, h: V, ops: Ops[V, W]) -> V:
    """Returns the sum of routed experts and shared expert; ``x`` is the input of the layer, ``h`` its first norm."""
    assert moe.shared
    to_router, to_experts = (ops.rms_norm(x, w[name], eps) for name in ("router_norm", "experts_norm"))
    y = ops.rms_norm(_routed(moe, w, to_experts, to_router, ops), w["experts_post_norm"], eps)
    shared = ops.feed_forward(h, moe.shared, Scope(w, "shared"))
    return ops.add(y, ops.rms_norm(shared, w["shared_post_norm"], eps))


def _routed(moe: spec.Experts, w: Mapping[str, W], h: V, to_router: V, ops: Ops[V, W]) -> V:
    logits = ops.router_logits(to_router, w["router"], w.get("router_bias"))
    return ops.experts(h, logits, moe, Scope(w, "experts"), w.get("choice_bias"), w.get("expert_scale"))
