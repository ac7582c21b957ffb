"""ByteDance's Seed-OSS: Llama with biases on queries, keys and values only."""

from __future__ import annotations

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.parts import attention, feed_forward, model, num_layers
from freedive.model.spec import Layer, ModelSpec


def _seed_oss(config: Config) -> ModelSpec:
    layer = Layer(
        attention(config, qkv_bias=config.flag("attention_bias"), out_bias=config.flag("attention_out_bias")),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    return model("seed_oss", config, [layer] * num_layers(config))


SEED_OSS = Family(
    name="seed_oss",
    models="Seed-OSS-36B (Doubao)",
    architectures=("SeedOssForCausalLM",),
    spec=_seed_oss,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
    },
    ignorable=("residual_dropout",),
    gguf=Gguf({"layers.{}.ffn.norm": "blk.{}.post_attention_norm.weight"}, architecture="seed_oss"),
)
