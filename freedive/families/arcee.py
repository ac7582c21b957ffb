"""Arcee's Trinity: gated attention, norms around both branches, and positions only in layers with a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
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
    with_shared,
)
from freedive.model.spec import Attention, Experts, Layer, ModelSpec


def _afmoe(config: Config) -> ModelSpec:
    dense, moe = feed_forward(config), _experts(config)
    first = config.count("num_dense_layers", 0, least=0)
    layers = [Layer(attn, dense if i < first else moe, post_norms=True) for i, attn in enumerate(_attentions(config))]
    scale = config.count("hidden_size") ** 0.5 if config.flag("mup_enabled") else 1.0
    return model("afmoe", config, layers, embed_scale=scale)


def _attentions(config: Config) -> Sequence[Attention]:
    bias, period = config.flag("attention_bias"), config.count("global_attn_every_n_layers", 4)
    local = attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head", output_gate=True, window=window(config))
    kinds = {SLIDING: local, FULL: replace(local, window=0, rope=None)}
    types = layer_types(config, [SLIDING if (i + 1) % period else FULL for i in range(num_layers(config))])
    return [kinds[kind] for kind in types]


def _experts(config: Config) -> Experts:
    config.choice(config.first("score_func", "scoring_func"), ("sigmoid",))
    scale = config.number("route_scale", 1.0)
    gate = router(config, score="sigmoid", choice_bias=True, renormalise=True, scale=scale)
    moe = Experts(gate, feed_forward(config, "moe_intermediate_size"))
    return with_shared(moe, config.count("num_shared_experts", 0, least=0, most=64))


_LAYER = "model.layers.{}."

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 16384,
    "head_dim": 128,
    "moe_intermediate_size": 1408,
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "num_shared_experts": 2,
    "num_dense_layers": 1,
    "sliding_window": 1024,
}

AFMOE = Family(
    name="afmoe",
    models="Trinity Nano, Mini, Large",
    architectures=("AfmoeForCausalLM",),
    spec=_afmoe,
    defaults=_DEFAULTS,
    ignorable=("load_balance_coeff", "use_grouped_mm"),
    fixed={"n_group": 1, "num_expert_groups": 1, "num_limited_groups": 1, "route_norm": True, "topk_group": 1},
    hub=Naming(
        {
            "layers.{}.attn.gate": f"{_LAYER}self_attn.gate_proj.weight",
            "layers.{}.attn.post_norm": f"{_LAYER}post_attention_layernorm.weight",
            "layers.{}.ffn.norm": f"{_LAYER}pre_mlp_layernorm.weight",
            "layers.{}.ffn.post_norm": f"{_LAYER}post_mlp_layernorm.weight",
            "layers.{}.ffn.router": f"{_LAYER}mlp.router.gate.weight",
            "layers.{}.ffn.choice_bias": f"{_LAYER}mlp.expert_bias",
        }
    ),
    gguf=Gguf(
        {"layers.{}.attn.gate": "blk.{}.attn_gate.weight"},
        architecture="afmoe",
        keys={
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "layer_types",
            "expert_shared_count": "num_shared_experts",
            "expert_weights_norm": "route_norm",
            "expert_weights_scale": "route_scale",
            "leading_dense_block_count": "num_dense_layers",
        },
        implied=lambda config: {"mup_enabled": True},
    ),
)
