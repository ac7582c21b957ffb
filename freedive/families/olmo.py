"""Ai2's OLMoE: a mixture of experts with norms of whole query and key projections."""

from __future__ import annotations

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.parts import attention, feed_forward, model, num_layers, router
from freedive.model.spec import Experts, Layer, ModelSpec


def _olmoe(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias")
    clip = config.number("clip_qkv") if "clip_qkv" in config else 0.0
    layer = Layer(
        attention(config, qkv_bias=bias, out_bias=bias, qk_norm="full", clip=clip),
        Experts(router(config, renormalise=config.flag("norm_topk_prob")), feed_forward(config)),
    )
    return model("olmoe", config, [layer] * num_layers(config))


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
