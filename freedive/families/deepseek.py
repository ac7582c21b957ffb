"""DeepSeek V2, V3, R1, V3.1; Moonshot's Moonlight and Kimi K2, and Zhipu's GLM-4.7-Flash, with the same decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.parts import (
    feed_forward,
    groups,
    latent_attention,
    model,
    num_layers,
    router,
    with_shared,
)
from freedive.model.spec import Attention, Experts, FeedForward, LatentAttention, Layer, ModelSpec, Router

DENSE, SPARSE = "dense", "sparse"
"""Names in ``mlp_layer_types`` of layers with one feed-forward network and with experts."""


def _deepseek_v2(config: Config) -> ModelSpec:
    config.choice("scoring_func", ("softmax",))
    gate = router(config, "n_routed_experts", renormalise=config.flag("norm_topk_prob"), scale=routed_scale(config))
    grouped = groups(config, gate)
    if config.choice("topk_method", ("greedy", "group_limited_greedy")) == "group_limited_greedy":
        gate = grouped
    return decoder("deepseek_v2", config, latent_attention(config, interleaved=True), gate, first_dense(config))


def _deepseek_v3(config: Config) -> ModelSpec:
    attn = latent_attention(config, interleaved=config.flag("rope_interleave", True))
    return decoder("deepseek_v3", config, attn, unbiased_router(config), first_dense(config))


def _glm4_moe_lite(config: Config) -> ModelSpec:
    attn = latent_attention(config, interleaved=config.flag("rope_interleave", True))
    types = config.choices("mlp_layer_types", num_layers(config), (DENSE, SPARSE)) or first_dense(config)
    return decoder("glm4_moe_lite", config, attn, unbiased_router(config), types)


def decoder(
    family: str,
    config: Config,
    attn: Attention | LatentAttention | Sequence[Attention],
    gate: Router,
    types: Sequence[str],
) -> ModelSpec:
    """Returns a decoder with the same attention in each layer, or one of ``attn`` each, and dense or sparse layers."""
    bias = config.flag("mlp_bias")
    moe = Experts(gate, feed_forward(config, "moe_intermediate_size", bias=bias))
    moe = with_shared(moe, config.count("n_shared_experts", 0, least=0, most=64))
    ffns: dict[str, FeedForward | Experts] = {SPARSE: moe}
    if DENSE in types or "intermediate_size" in config:
        ffns[DENSE] = feed_forward(config, bias=bias)
    attns = attn if isinstance(attn, Sequence) else [attn] * len(types)
    kinds = zip(attns, types, strict=True)
    return model(family, config, [Layer(mixer, ffns[kind]) for mixer, kind in kinds])


def unbiased_router(config: Config, *other_names: str) -> Router:
    """Returns a router balanced without an auxiliary loss (`noaux_tc`): a learned bias changes only the choice.

    ``other_names`` are those of its score besides ``sigmoid``.
    """
    config.choice("scoring_func", ("sigmoid", *other_names))
    config.choice("topk_method", ("noaux_tc",))
    renormalise = config.flag("norm_topk_prob", True)
    traits = {"score": "sigmoid", "choice_bias": True, "renormalise": renormalise, "scale": routed_scale(config)}
    gate = router(config, "n_routed_experts", **traits)
    return groups(config, gate, "top2")


def routed_scale(config: Config) -> float:
    return config.number("routed_scaling_factor", 1.0)


def first_dense(config: Config) -> list[str]:
    """Returns the type of each layer: from ``first_k_dense_replace`` on, every ``moe_layer_freq``-th is a mixture."""
    total = num_layers(config)
    first, step = config.count("first_k_dense_replace", 0, least=0), config.count("moe_layer_freq", 1)
    return [SPARSE if i >= first and i % step == 0 else DENSE for i in range(total)]


def gguf_implied(config: Config) -> dict[str, Any]:
    """Returns the head widths from other keys, because key_length and value_length may be widths of cached latents."""
    head_dim, value_dim = (config.count(f"mla_{name}", config.count(name)) for name in ("key_length", "value_length"))
    magnitude = round(10 * config.section("rope_scaling").number("yarn_log_multiplier", 0.0, least=0), 6)
    return {
        "qk_nope_head_dim": head_dim - config.count("qk_rope_head_dim"),
        "v_head_dim": value_dim,
        "rope_scaling": {"mscale": magnitude, "mscale_all_dim": magnitude},
    }


def _gguf_implied_v2(config: Config) -> dict[str, Any]:
    grouped = config.count("n_group", 1) > 1
    return {**gguf_implied(config), "topk_method": "group_limited_greedy" if grouped else "greedy"}


GGUF_KEYS = {
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.key_length": "key_length",
    "attention.value_length": "value_length",
    "attention.key_length_mla": "mla_key_length",
    "attention.value_length_mla": "mla_value_length",
    "rope.dimension_count": "qk_rope_head_dim",
}

_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 2048,
}
REPEATED = ("head_dim", "qk_head_dim")  # derived values, which transformers also writes

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    models="DeepSeek V2, V2-Lite, V2.5",
    architectures=("DeepseekV2ForCausalLM",),
    spec=_deepseek_v2,
    defaults=_DEFAULTS,
    ignorable=REPEATED,
    gguf=Gguf(architecture="deepseek2", keys=GGUF_KEYS, implied=_gguf_implied_v2),
)

DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    models="DeepSeek V3, R1, V3.1; Moonlight; Kimi K2, K2-Thinking, K2.5 (text)",
    architectures=(
        "DeepseekV3ForCausalLM",
        "kimi_k2",
        "kimi_k25",
        "KimiK25ForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
    ),
    spec=_deepseek_v3,
    defaults={
        **_DEFAULTS,
        "n_shared_experts": 1,
        "max_position_embeddings": 4096,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "num_experts_per_tok": 8,
    },
    ignorable=REPEATED,
    gguf=Gguf(architecture="deepseek2", mark="blk.{}.exp_probs_b.bias", keys=GGUF_KEYS, implied=gguf_implied),
)

GLM4_MOE_LITE = Family(
    name="glm4_moe_lite",
    models="GLM-4.7-Flash",
    architectures=("Glm4MoeLiteForCausalLM",),
    spec=_glm4_moe_lite,
    defaults={
        **_DEFAULTS,
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_shared_experts": 1,
        "max_position_embeddings": 202752,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8,
        "num_experts_per_tok": 4,
    },
    ignorable=REPEATED,
)
