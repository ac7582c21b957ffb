"""rednote's dots.llm1: experts as in DeepSeek-V3, and attention as in Qwen3."""

from __future__ import annotations

from dataclasses import replace

from freedive.families.config import Config
from freedive.families.deepseek import decoder, first_dense, unbiased_router
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.parts import SLIDING, attention, late_windows, window
from freedive.model.spec import ModelSpec


def _dots1(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias")
    full, width = attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head"), window(config)
    attns = [replace(full, window=width if kind == SLIDING else 0) for kind in late_windows(config)]
    gate = unbiased_router(config, "noaux_tc")  # which the published file has in place of the score
    return decoder("dots1", config, attns, gate, first_dense(config))


DOTS1 = Family(
    name="dots1",
    models="dots.llm1 142B-A14B",
    architectures=("Dots1ForCausalLM",),
    spec=_dots1,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "norm_topk_prob": False,
    },
    gguf=Gguf(architecture="dots1"),
)
