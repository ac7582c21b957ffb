"""Mistral's Ministral 3 (dense) and Mistral Small 4 (latent attention and experts), whose queries have a temperature.

Mistral 7B to Small 3 and Mixtral are in llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freedive.families.config import Config
from freedive.families.deepseek import GGUF_KEYS, REPEATED, decoder, first_dense, gguf_implied, routed_scale
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import GGUF_STACKED, STACKED, Naming, interleaved_heads
from freedive.families.parts import attention, feed_forward, groups, latent_attention, model, num_layers, router, window
from freedive.families.rope import attention_temperature, rope, supply_rope
from freedive.model.spec import Layer, ModelSpec


def _ministral3(config: Config) -> ModelSpec:
    supply_rope(config, _yarn(16.0, 16384, 1e6))
    attn = attention(config, window=window(config), temperature=attention_temperature(config))
    return model("ministral3", config, [Layer(attn, feed_forward(config))] * num_layers(config))


def _mistral4(config: Config) -> ModelSpec:
    supply_rope(config, _yarn(128.0, 8192, 1e4))
    nope_dim, rope_dim = config.count("qk_nope_head_dim", most=4096), config.count("qk_rope_head_dim", most=4096)
    config.supply({"rotary_dim": rope_dim})  # the rope settings have it as a fraction of the whole head
    interleaved = config.flag("rope_interleave", True)
    turns = rope(config, nope_dim + rope_dim, interleaved=interleaved, partial=True)
    temperature = attention_temperature(config)
    attn = latent_attention(config, interleaved=interleaved, rope=turns, temperature=temperature)
    config.choice("scoring_func", ("softmax",))
    gate = router(config, renormalise=config.flag("norm_topk_prob", True), scale=routed_scale(config))
    return decoder("mistral4", config, attn, groups(config, gate, "top2"), first_dense(config))


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns the magnitudes of YaRN, whose quotient llama.cpp computes likewise."""
    below = config.section("rope_scaling").number("yarn_log_multiplier", 0.0, least=0)
    return {"rope_scaling": {"mscale": 1.0, "mscale_all_dim": below}}


def _gguf_implied_4(config: Config) -> Mapping[str, Any]:
    """Returns what llama.cpp's converter leaves out, the temperature among it."""
    implied = gguf_implied(config)
    return {**implied, "rope_scaling": {**implied["rope_scaling"], "llama_4_scaling_beta": _BETA}}


_BETA = 0.1


def _yarn(factor: float, original: int, theta: float) -> Mapping[str, Any]:
    """Returns the rope settings of configurations that have none."""
    settings = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    magnitudes = {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": _BETA}
    return {"rope_theta": theta, "rope_scaling": {**settings, **magnitudes}}


MINISTRAL3 = Family(
    name="ministral3",
    models="Ministral 3 3B, 8B, 14B (text)",
    architectures=("Ministral3ForCausalLM",),
    spec=_ministral3,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    gguf=Gguf(architecture="mistral3", rules=interleaved_heads, implied=_gguf_implied),
)

MISTRAL4 = Family(
    name="mistral4",
    models="Mistral Small 4 119B (text)",
    architectures=("Mistral4ForCausalLM",),
    spec=_mistral4,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1 << 20,
        "q_lora_rank": 1024,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
    },
    ignorable=REPEATED,
    hub=Naming(rules=lambda spec: STACKED),
    gguf=Gguf(rules=lambda spec: [GGUF_STACKED], architecture="mistral4", keys=GGUF_KEYS, implied=_gguf_implied_4),
)
