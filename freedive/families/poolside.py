"""poolside's Laguna: gated attention whose number of query heads may differ by layer, and experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import SHARED, Naming, feed_forward_names
from freedive.families.parts import (
    FULL,
    SLIDING,
    attention,
    feed_forward,
    layer_types,
    model,
    num_layers,
    router,
    window,
)
from freedive.families.rope import plain_rope, rope, supply_rope
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec, Rope


def _laguna(config: Config) -> ModelSpec:
    supply_rope(config, {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_local_base_freq": 1e4})
    total = num_layers(config)
    config.choice("scoring_func", ("sigmoid",))
    scale = config.number("moe_routed_scaling_factor", 1.0)
    gate = router(config, score="sigmoid", choice_bias=True, renormalise=True, scale=scale)
    shared = feed_forward(config, "shared_expert_intermediate_size")
    moe = Experts(gate, feed_forward(config, "moe_intermediate_size"), shared)
    ffns: dict[str, FeedForward | Experts] = {DENSE: feed_forward(config), SPARSE: moe}
    first = config.count("first_k_dense_replace", 1, least=0)
    types = config.choices("mlp_layer_types", total, (DENSE, SPARSE))
    types = types or [DENSE if i < first else SPARSE for i in range(total)]
    attns = _attentions(config, total)
    return model("laguna", config, [Layer(attn, ffns[kind]) for attn, kind in zip(attns, types, strict=True)])


def _attentions(config: Config, total: int) -> Sequence[Attention]:
    bias, gating = config.flag("attention_bias"), config.choice("gating", (True, "per-head", "per-element"))
    full = attention(
        config,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        output_gate=True,
        gate_activation="softplus",
        gate_by_head=gating != "per-element",
        rope=None,
    )
    full = replace(full, rope=rope(config, full.head_dim, partial=True))
    kinds = {FULL: full, SLIDING: replace(full, window=window(config), rope=_local_rope(config, full.head_dim))}
    heads = config.counts("num_attention_heads_per_layer", total, full.num_heads, most=4096)
    types = layer_types(config, [FULL] * total)
    return [replace(kinds[kind], num_heads=count) for kind, count in zip(types, heads, strict=True)]


def _local_rope(config: Config, head_dim: int) -> Rope:
    """Returns the rotary embedding of layers with a window, which GGUF files describe by keys of their own."""
    if SLIDING in config.section("rope_parameters"):
        return rope(config, head_dim, kind=SLIDING, partial=True)
    dim = config.count("local_rotary_dim", head_dim, most=head_dim)
    return plain_rope(config.number("rope_local_base_freq", 1e4, least=2), dim)


_ATTN = "model.layers.{}.self_attn."

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 512,
    "intermediate_size": 8192,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns what the metadata say by layer or not at all: a layer in four, the first among them, has no window."""
    total = config.count("num_hidden_layers")
    heads = config.counts("num_attention_heads_per_layer", total, most=4096)
    types = [SLIDING if i % 4 and window(config) else FULL for i in range(total)]
    return {"num_attention_heads": heads[0], "layer_types": types}


LAGUNA = Family(
    name="laguna",
    models="Laguna XS.2, S.2, M.1",
    architectures=("LagunaForCausalLM",),
    spec=_laguna,
    defaults=_DEFAULTS,
    ignorable=("gating_types",),
    fixed={"moe_apply_router_weight_on_input": False, "moe_router_logit_softcapping": 0.0, "norm_topk_prob": True},
    hub=Naming(
        {
            "layers.{}.attn.gate": f"{_ATTN}g_proj.weight",
            "layers.{}.ffn.choice_bias": "model.layers.{}.mlp.experts.e_score_correction_bias",
            **feed_forward_names(SHARED, "model.layers.{}.mlp.shared_expert."),
        }
    ),
    gguf=Gguf(
        {"layers.{}.attn.gate": "blk.{}.attn_gate.weight"},
        architecture="laguna",
        keys={
            "attention.head_count": "num_attention_heads_per_layer",
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "layer_types",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "expert_weights_scale": "moe_routed_scaling_factor",
            "rope.dimension_count_swa": "local_rotary_dim",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        implied=_gguf_implied,
    ),
)
