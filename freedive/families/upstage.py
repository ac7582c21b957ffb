"""Upstage's Solar Open: experts in every layer, as in DeepSeek-V3. Its GGUF files are those of GLM-4.5."""

from __future__ import annotations

from freedive.families.config import Config
from freedive.families.deepseek import decoder, first_dense, unbiased_router
from freedive.families.family import Family
from freedive.families.parts import attention
from freedive.model.spec import ModelSpec


def _solar_open(config: Config) -> ModelSpec:
    attn = attention(config, qkv_bias=config.flag("attention_bias"))
    return decoder("solar_open", config, attn, unbiased_router(config), first_dense(config))


SOLAR_OPEN = Family(
    name="solar_open",
    models="Solar-Open-100B",
    architectures=("SolarOpenForCausalLM",),
    spec=_solar_open,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
    },
    fixed={"first_k_dense_replace": 0, "use_qk_norm": False},
)
