"""IBM's Granite 3 (dense or with experts), Granite 4 without recurrent layers, and Granite SWA.

Granite SWA has windows, sinks and a rotary embedding per layer. The configuration has scales for embeddings, attention,
every branch and logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, SHARED, Naming, interleaved_heads
from freedive.families.parts import (
    FULL,
    SLIDING,
    attention,
    feed_forward,
    layer_types,
    model,
    num_layers,
    router,
    window,
)
from freedive.families.refused import refusal
from freedive.families.rope import DEFAULT_THETA, rope
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec

_ATTENTION, _RECURRENT = ("attention", FULL), ("mamba", "linear_attention")


def _granite(config: Config) -> ModelSpec:
    return _decoder("granite", config, _equal_attentions(config), _plain(config))


def _granitemoe(config: Config) -> ModelSpec:
    return _decoder("granitemoe", config, _equal_attentions(config), _experts(config))


def _granitemoehybrid(config: Config) -> ModelSpec:
    """Returns the specification; a model without experts has only the shared feed-forward network."""
    shared = feed_forward(config, "shared_intermediate_size")
    ffn = _experts(config) if config.count("num_local_experts", least=0) else shared
    return _decoder("granitemoehybrid", config, _unrecurrent(config), ffn)


def _granite_swa(config: Config) -> ModelSpec:
    return _decoder("granite_swa", config, _swash(config), _plain(config))


def _granitemoe_swa(config: Config) -> ModelSpec:
    return _decoder("granitemoe_swa", config, _swash(config), _experts(config))


def _decoder(family: str, config: Config, attns: Sequence[Attention], ffn: FeedForward | Experts) -> ModelSpec:
    return model(
        family,
        config,
        [Layer(attn, ffn) for attn in attns],
        embed_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )


def _equal_attentions(config: Config) -> list[Attention]:
    bias, scale = config.flag("attention_bias"), config.number("attention_multiplier", 1.0)
    return [attention(config, qkv_bias=bias, out_bias=bias, scale=scale)] * num_layers(config)


def _unrecurrent(config: Config) -> list[Attention]:
    types = config.choices("layer_types", num_layers(config), (*_ATTENTION, *_RECURRENT))
    if not types or not set(_ATTENTION).issuperset(types):
        raise refusal("granitemoehybrid with recurrent layers", "Mamba layers")
    rotated = config.choice("position_embedding_type", ("nope", "rope")) == "rope"
    return [attn if rotated else replace(attn, rope=None) for attn in _equal_attentions(config)]


def _swash(config: Config) -> list[Attention]:
    """Returns the attention of each layer of Granite SWA.

    By default all layers but every fourth have a window. A layer whose theta is 0 has no position embedding.
    """
    total, width = num_layers(config), window(config)
    types = layer_types(config, [SLIDING if i % 4 else FULL for i in range(total)])
    attns = [
        replace(attn, window=width if kind == SLIDING else 0, sinks=True)
        for attn, kind in zip(_equal_attentions(config), types, strict=True)
    ]
    thetas = config.numbers("layer_rope_theta", total, least=0, most=1e12)
    if not thetas:
        return attns
    if any(0 < theta < 2 for theta in thetas):
        raise config.refusal("layer_rope_theta", "has a number between 0 and 2")
    ropes = {theta: rope(config, attns[0].head_dim, theta=theta) if theta else None for theta in thetas}
    return [replace(attn, rope=ropes[theta]) for attn, theta in zip(attns, thetas, strict=True)]


def _plain(config: Config) -> FeedForward:
    return feed_forward(config, bias=config.flag("mlp_bias"))


def _experts(config: Config) -> Experts:
    expert, shared_dim = feed_forward(config), config.count("shared_intermediate_size", 0, least=0)
    shared = replace(expert, dim=shared_dim) if shared_dim else None
    return Experts(router(config, "num_local_experts", renormalise=True), expert, shared)


_HUB = ("input_linear.weight", "output_linear.weight", "router.layer.weight")
_TRANSFORMERS = ("experts.gate_up_proj", "experts.down_proj", "router.weight")


def _naming(*spellings: tuple[str, str, str]) -> Naming:
    """Returns naming rules for stacked experts, whose gate and up are one tensor.

    ``spellings`` are alternative names; the first one is preferred.
    """

    def rules(spec: ModelSpec) -> list[Rule]:
        moe, shared = "model.layers.{}.block_sparse_moe", "model.layers.{}.shared_mlp"
        sole = "layers.{}.ffn" if isinstance(spec.layers[0].ffn, FeedForward) else SHARED
        ours = (f"{EXPERT}.gate", f"{EXPERT}.up"), (f"{EXPERT}.down",), ("layers.{}.ffn.router",)
        return [
            *(Rule(f"{moe}.{name}", parts) for names in spellings for name, parts in zip(names, ours, strict=True)),
            Rule(f"{shared}.input_linear.weight", (f"{sole}.gate", f"{sole}.up")),
            Rule(f"{shared}.output_linear.weight", (f"{sole}.down",)),
        ]

    return Naming(rules=rules)


def _rotated(config: Config) -> dict[str, Any]:
    """Refuses files without rotary embeddings, which are those of Granite 4 with recurrent layers."""
    config.choice("rotated", (True,))
    return {}


def _layer_ropes(config: Config) -> dict[str, Any]:
    """Returns the theta of each layer; in GGUF files all layers with rotary embeddings have the same theta."""
    rotated = config.numbers("rotated_layers", config.count("num_hidden_layers"), least=0, most=1)
    theta = config.number("rope_theta", DEFAULT_THETA)
    return {"layer_rope_theta": [theta * rotates for rotates in rotated]} if rotated else {}


def _swash_rules(spec: ModelSpec) -> list[Rule]:
    """Returns rules for GGUF files, in which gate and up are one tensor, for shared experts under the name of up."""
    return [
        *interleaved_heads(spec),
        Rule("blk.{}.ffn_gate_up_exps.weight", (f"{EXPERT}.gate", f"{EXPERT}.up")),
        Rule("blk.{}.ffn_up_shexp.weight", (f"{SHARED}.gate", f"{SHARED}.up")),
    ]


_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
_MOE_DEFAULTS = {**_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}
_SWA_DEFAULTS = {"sliding_window": 128}
_MAMBA = ("chunk_size", "conv_bias", "d_conv", "d_head", "d_state", "expand", "n_groups", "n_heads", "proj_bias")

_SHARED_DIM = "expert_shared_feed_forward_length"
_GGUF_KEYS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_PLAIN_KEYS = {
    **_GGUF_KEYS,
    "rope.scaling.finetuned": "rotated",
    **{f"ssm.{name}": None for name in ("conv_kernel", "group_count", "inner_size", "state_size", "time_step_rank")},
}
_SWASH_KEYS = {
    **_GGUF_KEYS,
    "attention.rope_pattern": "rotated_layers",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "layer_types",
}

GRANITE = Family(
    name="granite",
    models="Granite 3 dense",
    architectures=("GraniteForCausalLM",),
    spec=_granite,
    defaults=_DEFAULTS,
    gguf=Gguf(
        architecture="granite",
        keys={**_PLAIN_KEYS, **dict.fromkeys(("expert_count", "expert_used_count", _SHARED_DIM))},
        rules=interleaved_heads,
        implied=_rotated,
    ),
)

GRANITE_MOE = Family(
    name="granitemoe",
    models="Granite 3 1B-A400M, 3B-A800M",
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", "granitemoeshared"),
    spec=_granitemoe,
    defaults=_MOE_DEFAULTS,
    hub=_naming(_HUB, _TRANSFORMERS),
    gguf=Gguf(
        architecture="granitemoe",
        keys={**_PLAIN_KEYS, _SHARED_DIM: "shared_intermediate_size"},
        rules=interleaved_heads,
        implied=_rotated,
    ),
)

GRANITE_HYBRID = Family(
    name="granitemoehybrid",
    models="Granite 4 without recurrent layers",
    architectures=("GraniteMoeHybridForCausalLM",),
    spec=_granitemoehybrid,
    defaults={**_MOE_DEFAULTS, "shared_intermediate_size": 1024},
    ignorable=(
        "init_method",
        "normalization_function",
        "intermediate_size",
        "num_experts_per_tok",
        "time_step_limit",
        *(f"mamba_{name}" for name in _MAMBA),
    ),
    hub=_naming(_HUB, _TRANSFORMERS),
)

GRANITE_SWA = Family(
    name="granite_swa",
    models="Granite SWA",
    architectures=("GraniteSWAForCausalLM",),
    spec=_granite_swa,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        **_SWA_DEFAULTS,
    },
    gguf=Gguf(architecture="granite_swa", keys=_SWASH_KEYS, rules=interleaved_heads, implied=_layer_ropes),
)

GRANITE_MOE_SWA = Family(
    name="granitemoe_swa",
    models="Granite MoE SWA",
    architectures=("GraniteMoeSWAForCausalLM",),
    spec=_granitemoe_swa,
    defaults={**_MOE_DEFAULTS, **_SWA_DEFAULTS},
    hub=_naming(_TRANSFORMERS, _HUB),
    gguf=Gguf(
        architecture="granite_swa",
        mark="granite_swa.expert_count",
        keys={**_SWASH_KEYS, _SHARED_DIM: "shared_intermediate_size"},
        rules=_swash_rules,
        implied=_layer_ropes,
    ),
)
