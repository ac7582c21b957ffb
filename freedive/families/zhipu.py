"""Zhipu's GLM-4-0414 (dense), and GLM-4.5, 4.6 and 4.7 (mixtures of experts); GLM-4.7-Flash is in deepseek.py."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.deepseek import decoder, first_dense, unbiased_router
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.families.parts import attention, feed_forward, model, num_layers
from freedive.families.rope import rope
from freedive.model.spec import Layer, ModelSpec


def _glm4(config: Config) -> ModelSpec:
    attn = attention(config, qkv_bias=config.flag("attention_bias", True), rope=None)
    attn = replace(attn, rope=rope(config, attn.head_dim, interleaved=True, partial=True))
    return model("glm4", config, [Layer(attn, feed_forward(config), post_norms=True)] * num_layers(config))


def _glm4_moe(config: Config) -> ModelSpec:
    norm = "head" if config.flag("use_qk_norm") else ""
    attn = attention(config, qkv_bias=config.flag("attention_bias"), qk_norm=norm, rope=None)
    attn = replace(attn, rope=rope(config, attn.head_dim, partial=True))
    return decoder("glm4_moe", config, attn, unbiased_router(config), first_dense(config))


def _fused(theirs: str) -> list[Rule]:
    return [Rule(theirs, ("layers.{}.ffn.gate", "layers.{}.ffn.up"))]


_DEFAULTS = {"max_position_embeddings": 131072, "partial_rotary_factor": 0.5}

GLM4 = Family(
    name="glm4",
    models="GLM-4-0414",
    architectures=("Glm4ForCausalLM",),
    spec=_glm4,
    defaults={**_DEFAULTS, "rms_norm_eps": 1.5625e-7, "num_key_value_heads": 2, "head_dim": 128},
    hub=Naming(
        {
            "layers.{}.attn.post_norm": "model.layers.{}.post_self_attn_layernorm.weight",
            "layers.{}.ffn.post_norm": "model.layers.{}.post_mlp_layernorm.weight",
        },
        lambda spec: _fused("model.layers.{}.mlp.gate_up_proj.weight"),
    ),
    gguf=Gguf(architecture="glm4", rules=lambda spec: _fused("blk.{}.ffn_up.weight")),
)

GLM4_MOE = Family(
    name="glm4_moe",
    models="GLM-4.5, 4.6, 4.7, Air",
    architectures=("Glm4MoeForCausalLM",),
    spec=_glm4_moe,
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    gguf=Gguf({"layers.{}.ffn.norm": "blk.{}.post_attention_norm.weight"}, architecture="glm4moe"),
)
