"""JetBrains' Mellum 2: a mixture as Qwen3's, with windows in most layers and rope settings for both kinds."""

from __future__ import annotations

from dataclasses import replace

from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE, decoder
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.parts import FULL, SLIDING, attention, layer_types, num_layers, router, window
from freedive.families.rope import local_rope, supply_rope
from freedive.model.spec import ModelSpec


def _mellum(config: Config) -> ModelSpec:
    config.respell({"num_local_experts": "num_experts"})
    supply_rope(config, {"rope_theta": 5e5, "rope_local_base_freq": 1e4})
    total, bias = num_layers(config), config.flag("attention_bias")
    full = attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head")
    kinds = {FULL: full, SLIDING: replace(full, window=window(config), rope=local_rope(config, full.head_dim))}
    attns = [kinds[kind] for kind in layer_types(config, [FULL] * total)]
    types = config.choices("mlp_layer_types", total, (SPARSE, DENSE)) or [SPARSE] * total
    gate = router(config, renormalise=config.flag("norm_topk_prob", True))
    return decoder("mellum", config, attns, gate, types)


MELLUM = Family(
    name="mellum",
    models="Mellum2-12B-A2.5B",
    architectures=("MellumForCausalLM",),
    spec=_mellum,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sliding_window": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    ignorable=("mtp_layer_types", "mtp_mlp_layer_types", "num_mtp_layers"),
    runs_mtp=False,
    gguf=Gguf(
        architecture="mellum",
        keys={
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "layer_types",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
    ),
)
