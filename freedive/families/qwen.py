"""Alibaba's Qwen: 1.5, 2 and 2.5 (`qwen2`), 3 (`qwen3`), and their mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import SHARED, Naming, feed_forward_names
from freedive.families.parts import (
    FULL,
    SLIDING,
    attention,
    feed_forward,
    late_windows,
    layer_types,
    model,
    num_layers,
    router,
    window,
)
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec


def _qwen2(config: Config) -> ModelSpec:
    return _decoder("qwen2", config, attention(config, qkv_bias=True), late_windows(config), _dense(config))


def _qwen2_moe(config: Config) -> ModelSpec:
    attn = attention(config, qkv_bias=config.flag("qkv_bias", True))
    shared = feed_forward(config, "shared_expert_intermediate_size")
    moe = replace(_experts(config), shared=shared, shared_gate=True)
    return _decoder("qwen2_moe", config, attn, _even_windows(config), _sparse(config, moe))


def _qwen3(config: Config) -> ModelSpec:
    return _decoder("qwen3", config, _normed_attention(config), late_windows(config), _dense(config))


def _qwen3_moe(config: Config) -> ModelSpec:
    windows = [SLIDING] * num_layers(config)
    return _decoder("qwen3_moe", config, _normed_attention(config), windows, _sparse(config, _experts(config)))


def _decoder(
    family: str, config: Config, attn: Attention, types: Sequence[str], ffns: Sequence[FeedForward | Experts]
) -> ModelSpec:
    """Returns the specification; layers of type SLIDING have a window if the configuration uses windows."""
    width = window(config) * config.flag("use_sliding_window")
    layers = [
        Layer(replace(attn, window=width if kind == SLIDING else 0), ffn) for kind, ffn in zip(types, ffns, strict=True)
    ]
    return model(family, config, layers)


def _normed_attention(config: Config) -> Attention:
    bias = config.flag("attention_bias")
    return attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head")


def _even_windows(config: Config) -> Sequence[str]:
    """Returns the type of each layer: layers 0, 2, 4, ... before ``max_window_layers`` have a window."""
    last = config.count("max_window_layers", 0, least=0)
    return layer_types(config, [SLIDING if i % 2 == 0 and i < last else FULL for i in range(num_layers(config))])


def _dense(config: Config) -> list[FeedForward]:
    return [feed_forward(config)] * num_layers(config)


def _experts(config: Config) -> Experts:
    return Experts(
        router(config, renormalise=config.flag("norm_topk_prob")),
        feed_forward(config, "moe_intermediate_size"),
    )


def _sparse(config: Config, moe: Experts) -> list[FeedForward | Experts]:
    """Returns ``moe`` for every ``decoder_sparse_step``-th layer except those in ``mlp_only_layers``, else dense."""
    step, dense = config.count("decoder_sparse_step", 1), feed_forward(config)
    plain = config.indices("mlp_only_layers", num_layers(config))
    return [dense if i in plain or (i + 1) % step else moe for i in range(num_layers(config))]


_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_MOE_DEFAULTS = {
    **_DEFAULTS,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 4,
    "shared_expert_intermediate_size": 5632,
}

QWEN2 = Family(
    name="qwen2",
    models="Qwen1.5, 2, 2.5; DeepSeek-R1-Distill-Qwen",
    architectures=("Qwen2ForCausalLM",),
    spec=_qwen2,
    defaults=_DEFAULTS,
    fixed={"use_mrope": False},
    gguf=Gguf(architecture="qwen2"),
)
QWEN3 = Family(
    name="qwen3",
    models="Qwen3 0.6B to 32B",
    architectures=("Qwen3ForCausalLM",),
    spec=_qwen3,
    defaults={**_DEFAULTS, "head_dim": 128},
    gguf=Gguf(architecture="qwen3"),
)
QWEN2_MOE = Family(
    name="qwen2_moe",
    models="Qwen1.5-MoE, Qwen2-57B-A14B",
    architectures=("Qwen2MoeForCausalLM",),
    spec=_qwen2_moe,
    defaults=_MOE_DEFAULTS,
    hub=Naming(feed_forward_names(SHARED, "model.layers.{}.mlp.shared_expert.")),
    gguf=Gguf(architecture="qwen2moe", keys={"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}),
)
QWEN3_MOE = Family(
    name="qwen3_moe",
    models="Qwen3-30B-A3B, 235B-A22B, Coder",
    architectures=("Qwen3MoeForCausalLM",),
    spec=_qwen3_moe,
    defaults={**_DEFAULTS, "num_key_value_heads": 4, "num_experts_per_tok": 8},
    ignorable=("max_window_layers",),
    fixed={"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True},
    gguf=Gguf(architecture="qwen3moe", implied=lambda config: {"norm_topk_prob": True}),
)
