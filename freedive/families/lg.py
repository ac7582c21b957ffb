"""LG's EXAONE 4 (dense) and K-EXAONE (experts): layers with windows rotate, and layers without do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE, decoder, first_dense, unbiased_router
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.families.olmo import BRANCH_NORMS
from freedive.families.parts import FULL, SLIDING, attention, feed_forward, layer_types, model, num_layers, window
from freedive.model.spec import Attention, Layer, ModelSpec


def _exaone4(config: Config) -> ModelSpec:
    ffn = feed_forward(config)
    layers = [Layer(attn, ffn, post_norms=True, pre_norms=False) for attn in _attentions(config)]
    return model("exaone4", config, layers)


def _exaone_moe(config: Config) -> ModelSpec:
    config.respell({"num_shared_experts": "n_shared_experts"})
    first = first_dense(config)
    types = config.choices("mlp_layer_types", len(first), (DENSE, SPARSE)) or first
    return decoder("exaone_moe", config, _attentions(config), unbiased_router(config), types)


def _attentions(config: Config) -> Sequence[Attention]:
    """Returns the attention of each layer. If no layer has a window, all rotate."""
    full, width = attention(config, qk_norm="head"), window(config)
    if not width:
        return [full] * num_layers(config)
    kinds = {FULL: replace(full, rope=None), SLIDING: replace(full, window=width)}
    return [kinds[kind] for kind in _types(config)]


def _types(config: Config) -> Sequence[str]:
    """Returns the type of each layer; ``sliding_window_pattern`` may be letters, which are not read."""
    period = 4 if "layer_types" in config else config.count("sliding_window_pattern", 4)
    return layer_types(config, [SLIDING if (i + 1) % period else FULL for i in range(num_layers(config))])


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns the window that llama.cpp gives to the model with 64 layers."""
    return {"sliding_window": 4096} if config.count("num_hidden_layers") == 64 else {}


_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
}
_IGNORABLE = ("sliding_window_pattern",)
_GGUF_KEYS = {"attention.sliding_window": "sliding_window", "attention.sliding_window_pattern": "layer_types"}

EXAONE4 = Family(
    name="exaone4",
    models="EXAONE 4.0 1.2B, 32B",
    architectures=("Exaone4ForCausalLM",),
    spec=_exaone4,
    defaults=_DEFAULTS,
    ignorable=_IGNORABLE,
    hub=BRANCH_NORMS,
    gguf=Gguf(architecture="exaone4", keys=_GGUF_KEYS, implied=_gguf_implied),
)

EXAONE_MOE = Family(
    name="exaone_moe",
    models="K-EXAONE-236B-A23B",
    architectures=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    spec=_exaone_moe,
    defaults={
        **_DEFAULTS,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1024,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
    },
    ignorable=(*_IGNORABLE, "first_last_k_dense_replace", "is_moe_layer"),
    runs_mtp=False,
    hub=Naming({"layers.{}.ffn.choice_bias": "model.layers.{}.mlp.e_score_correction_bias"}),
    gguf=Gguf(
        architecture="exaone-moe",
        keys={**_GGUF_KEYS, "expert_shared_feed_forward_length": None},  # follows from the number of shared experts
    ),
)
