"""Alibaba's Qwen: 1.5, 2 and 2.5 (`qwen2`), 3 dense (`qwen3`)."""

from __future__ import annotations

from dataclasses import replace

from freedive.model.families.config import Config
from freedive.model.families.family import Family
from freedive.model.families.parts import attention, feed_forward, model, num_layers
from freedive.model.spec import Attention, Layer, Model

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _windows(config: Config) -> list[int]:
    """Each layer's window: with ``use_sliding_window``, layers from ``max_window_layers`` on, unless listed."""
    total = num_layers(config)
    first = config.count("max_window_layers", total, least=0)
    width = config.count("sliding_window", 0, least=0, most=1 << 30)
    types = config.choices("layer_types", total, (_FULL, _SLIDING))
    if not config.flag("use_sliding_window"):
        return [0] * total
    return [width if kind == _SLIDING else 0 for kind in types or [_FULL] * first + [_SLIDING] * (total - first)]


def _decoder(family: str, config: Config, attn: Attention) -> Model:
    ffn = feed_forward(config)
    return model(family, config, [Layer(replace(attn, window=window), ffn) for window in _windows(config)])


def _qwen2(config: Config) -> Model:
    return _decoder("qwen2", config, attention(config, qkv_bias=True))


def _qwen3(config: Config) -> Model:
    bias = config.flag("attention_bias")
    return _decoder("qwen3", config, attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head"))


_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), _qwen2, _DEFAULTS)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), _qwen3, {**_DEFAULTS, "head_dim": 128})
