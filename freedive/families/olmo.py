"""Ai2's OLMoE, OLMo 2 and 3, and FlexOlmo: norms of whole query and key projections; later ones norm only branches."""

from __future__ import annotations

from collections.abc import Mapping
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
)
from freedive.families.rope import local_rope
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec


def _olmoe(config: Config) -> ModelSpec:
    clip = config.number("clip_qkv") if "clip_qkv" in config else 0.0
    layer = Layer(replace(_attention(config), clip=clip), _experts(config))
    return model("olmoe", config, [layer] * num_layers(config))


def _olmo2(config: Config) -> ModelSpec:
    return model("olmo2", config, [_layer(_attention(config), feed_forward(config))] * num_layers(config))


def _flex_olmo(config: Config) -> ModelSpec:
    return model("flex_olmo", config, [_layer(_attention(config), _experts(config))] * num_layers(config))


def _olmo3(config: Config) -> ModelSpec:
    full, ffn = _attention(config), feed_forward(config)
    kinds = {FULL: full, SLIDING: replace(full, window=window(config), rope=local_rope(config, full.head_dim))}
    types = layer_types(config, [SLIDING if (i + 1) % 4 else FULL for i in range(num_layers(config))])
    return model("olmo3", config, [_layer(kinds[kind], ffn) for kind in types])


def _attention(config: Config) -> Attention:
    bias = config.flag("attention_bias")
    return attention(config, qkv_bias=bias, out_bias=bias, qk_norm="full")


def _experts(config: Config) -> Experts:
    return Experts(router(config, renormalise=config.flag("norm_topk_prob")), feed_forward(config))


def _layer(attn: Attention, ffn: FeedForward | Experts) -> Layer:
    return Layer(attn, ffn, post_norms=True, pre_norms=False)


BRANCH_NORMS = Naming(
    {
        "layers.{}.attn.post_norm": "model.layers.{}.post_attention_layernorm.weight",
        "layers.{}.ffn.post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
    }
)
"""The tensor names of decoders that norm the results of branches and not their inputs."""

_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}

OLMOE = Family(
    name="olmoe",
    models="OLMoE-1B-7B",
    architectures=("OlmoeForCausalLM",),
    spec=_olmoe,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    gguf=Gguf(architecture="olmoe"),
)

OLMO2 = Family(
    name="olmo2",
    models="OLMo 2 1B, 7B, 13B, 32B",
    architectures=("Olmo2ForCausalLM",),
    spec=_olmo2,
    defaults=_DEFAULTS,
    hub=BRANCH_NORMS,
    gguf=Gguf(architecture="olmo2"),
)

OLMO3 = Family(
    name="olmo3",
    models="OLMo 3 7B, 32B",
    architectures=("Olmo3ForCausalLM",),
    spec=_olmo3,
    defaults={**_DEFAULTS, "rope_theta": 5e5, "sliding_window": 4096},
    hub=BRANCH_NORMS,
    gguf=Gguf(
        architecture="olmo2",
        mark="olmo2.attention.sliding_window",
        keys={
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "layer_types",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
    ),
)

FLEX_OLMO = Family(
    name="flex_olmo",
    models="FlexOlmo-7x7B-1T",
    architectures=("FlexOlmoForCausalLM",),
    spec=_flex_olmo,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "rope_theta": 5e5,
        "num_experts": 7,
        "num_experts_per_tok": 5,
    },
    hub=BRANCH_NORMS,
)
