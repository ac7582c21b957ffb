"""Hugging Face's SmolLM3: Llama with some layers without position embeddings."""

from __future__ import annotations

from dataclasses import replace

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import interleaved_heads
from freedive.families.parts import (
    FULL,
    SLIDING,
    attention,
    feed_forward,
    layer_types,
    model,
    rotated_layers,
    window,
)
from freedive.model.spec import Layer, ModelSpec


def _smollm3(config: Config) -> ModelSpec:
    """Returns the specification. If windows are used, layers without position embeddings have them by default."""
    bias, rotated = config.flag("attention_bias"), rotated_layers(config)
    attn = attention(config, qkv_bias=bias, out_bias=bias)
    ffn = feed_forward(config, bias=config.flag("mlp_bias"))
    width = window(config) * config.flag("use_sliding_window")
    types = layer_types(config, [FULL if rotates else SLIDING for rotates in rotated])
    layers = [
        Layer(replace(attn, rope=attn.rope if rotates else None, window=width if kind == SLIDING else 0), ffn)
        for rotates, kind in zip(rotated, types, strict=True)
    ]
    return model("smollm3", config, layers)


SMOLLM3 = Family(
    name="smollm3",
    models="SmolLM3-3B",
    architectures=("SmolLM3ForCausalLM",),
    spec=_smollm3,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
    ignorable=("max_window_layers",),
    gguf=Gguf(architecture="smollm3", rules=interleaved_heads),
)
