"""Synthetic model descriptions: together they have every trait of model/spec.py, and shapes that no family has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from freedive.model.params import Role, params
from freedive.model.spec import (
    Attention,
    AttentionTemperature,
    DeltaRule,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    ModelSpec,
    Rope,
    Router,
    ShortConv,
)

Floats = np.ndarray[Any, np.dtype[np.float32]]

VOCAB = 77


def rope(dim: int, *, interleaved: bool = False, factor: float = 1.0, theta: float = 1e4) -> Rope:
    return Rope(dim, tuple(theta ** (-2 * i / dim) for i in range(dim // 2)), factor, interleaved)


PLAIN = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=rope(16), scale=0.25)
DENSE = FeedForward(50)
LATENT = LatentAttention(
    num_heads=3, q_rank=24, kv_rank=20, nope_dim=12, rope_dim=8, value_dim=14, rope=rope(8, interleaved=True), scale=0.2
)
EXPERT = FeedForward(18)


def experts(num_experts: int = 6, num_chosen: int = 2, **traits: Any) -> Experts:
    return Experts(Router(num_experts, num_chosen, **traits), EXPERT)


def model(attention: Attention | LatentAttention, ffn: FeedForward | Experts = DENSE, **traits: Any) -> ModelSpec:
    """Two layers with different windows and ropes."""
    if isinstance(attention, LatentAttention):
        other: Attention | LatentAttention = attention
    else:
        turns = attention.rope and replace(attention.rope, inv_freq=rope(attention.rope.dim, theta=500.0).inv_freq)
        other = replace(attention, window=17, rope=turns)
    return with_layers(Layer(attention, ffn), Layer(other, ffn), **traits)


def with_layers(*layers: Layer, **traits: Any) -> ModelSpec:
    return ModelSpec("test", VOCAB, 44, layers, norm_eps=1e-5, max_context=512, **{"tied": False, **traits})


CONV = ShortConv(52, 3)
DELTA = DeltaRule(2, 4, key_dim=12, value_dim=20, kernel=4, decay="head", decay_rank=0, gate_rank=0)
KDA = DeltaRule(
    3, 3, key_dim=20, value_dim=36, kernel=3, decay="channel", decay_rank=10, gate_rank=14, gate_activation="sigmoid"
)

SHAPES = {
    "short convolutions": with_layers(
        Layer(CONV, DENSE), Layer(PLAIN, DENSE), Layer(ShortConv(36, 5, bias=True), experts())
    ),
    "delta rule": with_layers(Layer(DELTA, DENSE), Layer(PLAIN, DENSE), Layer(replace(DELTA, tiled=True), experts())),
    "delta rule by channel": with_layers(
        Layer(KDA, DENSE), Layer(LATENT, DENSE), Layer(replace(KDA, decay_rank=0, gate_rank=0, decay_bound=-3.0), DENSE)
    ),
    "layers of other heads": with_layers(
        Layer(PLAIN, DENSE), Layer(Attention(3, 1, 32, rope=rope(32), scale=0.2, window=9), DENSE), Layer(LATENT, DENSE)
    ),
    "neighbours rotate": model(replace(PLAIN, rope=rope(16, interleaved=True))),
    "part of a head rotates": model(replace(PLAIN, rope=rope(6))),
    "part of a head rotates by neighbours": model(replace(PLAIN, rope=rope(10, interleaved=True, factor=1.3))),
    "no rope": model(replace(PLAIN, rope=None)),
    "odd heads": model(Attention(num_heads=3, num_kv_heads=1, head_dim=20, rope=rope(20), scale=0.3)),
    "narrow heads": model(Attention(num_heads=5, num_kv_heads=5, head_dim=6, rope=rope(6), scale=0.4)),
    "many heads to one": model(Attention(num_heads=20, num_kv_heads=1, head_dim=16, rope=rope(16), scale=0.25)),
    "wide heads": model(Attention(num_heads=2, num_kv_heads=1, head_dim=576, rope=rope(64), scale=0.05)),
    "a window of one": model(replace(PLAIN, window=1)),
    "a window of a page": model(replace(PLAIN, window=32)),
    "norms on odd heads": model(
        Attention(num_heads=4, num_kv_heads=2, head_dim=20, rope=rope(8), scale=0.3, qk_norm="head")
    ),
    "all biases": model(replace(PLAIN, qkv_bias=True, out_bias=True), replace(DENSE, bias=True)),
}
"""Grouped-query attention with a gated feed-forward: sizes, ropes, windows, biases."""

ATTENTIONS = {
    "chunks, then all without rope": with_layers(
        Layer(replace(PLAIN, chunk=8), DENSE),
        Layer(replace(PLAIN, rope=None, temperature=AttentionTemperature(floor_scale=4.0, scale=0.3)), DENSE),
    ),
    "norms of whole projections": model(replace(PLAIN, qk_norm="full")),
    "norms after rope": model(replace(PLAIN, qk_norm="head", norm_after_rope=True)),
    "norms without weights after rope": model(
        replace(PLAIN, rope=rope(6, factor=1.4), qk_norm="l2", norm_after_rope=True)
    ),
    "norms without weights": model(replace(PLAIN, qk_norm="l2")),
    "clipped projections": model(replace(PLAIN, qk_norm="full", clip=0.9)),
    "soft caps": model(replace(PLAIN, softcap=1.5), logit_softcap=2.0),
    "soft caps in a window": model(replace(PLAIN, softcap=1.5, window=9)),
    "narrow values": model(replace(PLAIN, value_dim=12, result_scale=0.7, sinks=True, v_norm=True)),
    "wide values": model(replace(PLAIN, value_dim=20, output_gate=True, out_bias=True, result_scale=1.3)),
    "sinks": model(replace(PLAIN, sinks=True)),
    "values from keys": model(replace(PLAIN, values="keys", v_norm=True, qk_norm="head", qkv_bias=True)),
    "norms of values": model(replace(PLAIN, v_norm=True, qk_norm="head", norm_after_rope=True, clip=0.9)),
    "keys and values of another layer": with_layers(
        Layer(replace(PLAIN, window=9), DENSE),
        Layer(PLAIN, DENSE),
        Layer(replace(PLAIN, window=9, kv_layer=0, qk_norm="head"), DENSE),
        Layer(replace(PLAIN, kv_layer=1, qkv_bias=True), experts()),
    ),
    "output gates": model(replace(PLAIN, output_gate=True, qkv_bias=True)),
    "output gates by softplus": model(replace(PLAIN, output_gate=True, gate_activation="softplus")),
    "output gates of heads": model(
        replace(PLAIN, output_gate=True, gate_activation="softplus", gate_by_head=True, window=9)
    ),
    "sinks in a window": model(replace(PLAIN, sinks=True, window=5, qkv_bias=True, out_bias=True)),
    "latents": model(LATENT),
    "latents with queries from the input": model(replace(LATENT, q_rank=0, rope=rope(8))),
    "latents with biases": model(replace(LATENT, bias=True, latent_eps=0.1)),
    "latents with a temperature": model(
        replace(LATENT, temperature=AttentionTemperature(floor_scale=4.0, scale=0.3, offset=0))
    ),
    "latents with output gates": model(replace(LATENT, output_gate=True, rope=None)),
    "latents with wide values": model(replace(LATENT, nope_dim=6, rope_dim=4, rope=rope(4, factor=1.2), value_dim=24)),
}

FEED_FORWARDS = {
    "gelu": model(PLAIN, replace(DENSE, activation="gelu_tanh")),
    "clamped": model(PLAIN, replace(DENSE, limit=0.8)),
    "clamped after the activation": model(
        PLAIN, Experts(Router(6, 2), replace(EXPERT, activation="clamped_silu", limit=0.2))
    ),
    "clamped, with biases": model(PLAIN, replace(DENSE, activation="swiglu_oai", limit=0.8, bias=True)),
}

EXPERTS = {
    "experts by softmax": model(PLAIN, experts(renormalise=True)),
    "experts as they score": model(PLAIN, experts(scale=1.8)),
    "one expert of many": model(PLAIN, experts(40, 1)),
    "every expert": model(PLAIN, experts(4, 4)),
    "experts with biases": model(
        PLAIN,
        replace(
            experts(bias=True, renormalise=True), expert=FeedForward(18, activation="swiglu_oai", bias=True, limit=0.8)
        ),
    ),
    "experts by sigmoid, chosen with a bias": model(
        PLAIN, experts(score="sigmoid", choice_bias=True, renormalise=True, scale=2.5)
    ),
    "groups by their best": model(PLAIN, experts(12, 3, num_groups=4, kept_groups=2, scale=1.4)),
    "groups by their best two": model(
        LATENT,
        experts(
            12, 3, score="sigmoid", num_groups=4, kept_groups=2, group_choice="top2", choice_bias=True, renormalise=True
        ),
    ),
    "some of each group": model(PLAIN, experts(12, 4, num_groups=4, group_choice="each", expert_scale=True)),
    "weighted inputs": model(PLAIN, experts(num_chosen=1, score="sigmoid", weighs_input=True)),
    "shared experts": model(PLAIN, replace(experts(), shared=FeedForward(30, bias=True))),
    "gated shared experts": model(PLAIN, replace(experts(), shared=FeedForward(30), shared_gate=True)),
    "branches with norms of their own": model(
        PLAIN, replace(experts(renormalise=True, expert_scale=True), shared=FeedForward(30), branch_norms=True)
    ),
    "a dense layer first": with_layers(Layer(LATENT, DENSE), Layer(PLAIN, experts(renormalise=True))),
}

WHOLES = {
    "norms after branches": with_layers(*[Layer(PLAIN, DENSE, post_norms=True)] * 2),
    "normed embeddings": with_layers(
        *[Layer(PLAIN, DENSE, post_norms=True)] * 2, embed_norm=True, post_norm_eps=0.25, embed_scale=0.05
    ),
    "norms after experts": with_layers(*[Layer(LATENT, replace(experts(), shared=EXPERT), post_norms=True)] * 2),
    "norms after branches with norms of their own": with_layers(
        *[Layer(PLAIN, replace(experts(), shared=EXPERT, branch_norms=True), post_norms=True, out_scale=True)] * 2
    ),
    "scaled layers": with_layers(Layer(PLAIN, DENSE, out_scale=True), Layer(PLAIN, DENSE, out_scale=True)),
    "inputs of layers": model(PLAIN, token_input=20),
    "inputs of scaled layers": with_layers(*[Layer(PLAIN, DENSE, post_norms=True, out_scale=True)] * 3, token_input=36),
    "norms only after branches": with_layers(
        *[Layer(PLAIN, DENSE, post_norms=True, pre_norms=False)] * 2, embed_scale=0.05
    ),
    "norms only after experts": with_layers(
        Layer(LATENT, replace(experts(), shared=EXPERT), post_norms=True, pre_norms=False), embed_scale=0.2
    ),
    "tied": model(PLAIN, tied=True),
    "a bias on logits": model(PLAIN, head_bias=True),
    "scales": model(PLAIN, embed_scale=6.0, residual_scale=0.3, logit_scale=0.2),
    "scaled experts": model(LATENT, replace(experts(), shared=EXPERT), residual_scale=0.3),
}

DESCRIPTIONS: dict[str, ModelSpec] = SHAPES | ATTENTIONS | FEED_FORWARDS | EXPERTS | WHOLES

SPREAD: dict[Role, float] = {"norm": 0.3, "bias": 0.3}


def weights(described: ModelSpec) -> dict[str, Floats]:
    """Random weights: matrices that preserve the norm of their input, norms near 1, biases near 0."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.standard_normal(param.shape) * SPREAD.get(param.role, 2 / param.shape[-1] ** 0.5)
            + (param.role == "norm")
        ).astype(np.float32)
        for name, param in params(described).items()
    }
