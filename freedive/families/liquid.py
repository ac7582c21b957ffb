"""Liquid AI's LFM2: gated short convolutions in most layers, attention in some; dense, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freedive.checkpoint.rule_steps import Taps
from freedive.checkpoint.rules import Rule, Rules
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, Naming, feed_forward_names
from freedive.families.parts import ACTIVATIONS, FULL, attention, feed_forward, model, num_layers, router
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec, ShortConv

CONV = "conv"
"""Name in ``layer_types`` of a layer with a short convolution."""


def _lfm2(config: Config) -> ModelSpec:
    ffn = FeedForward(_dense_width(config), ACTIVATIONS[config.choice("hidden_act", tuple(ACTIVATIONS))])
    return model("lfm2", config, [Layer(mixer, ffn) for mixer in _mixers(config)])


def _lfm2_moe(config: Config) -> ModelSpec:
    config.choice("scoring_func", ("sigmoid",))
    routes = router(
        config,
        score="sigmoid",
        renormalise=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
        choice_bias=config.flag(config.first("use_expert_bias", "moe_use_aux_free"), True),
    )
    dense, moe = feed_forward(config), Experts(routes, feed_forward(config, "moe_intermediate_size"))
    num_dense = config.count("num_dense_layers", least=0)
    layers = [Layer(mixer, dense if index < num_dense else moe) for index, mixer in enumerate(_mixers(config))]
    return model("lfm2_moe", config, layers)


def _mixers(config: Config) -> list[Attention | ShortConv]:
    width = config.count("hidden_size")
    for key in ("conv_dim", "conv_dim_out"):
        if config.count(key, width) != width:
            raise config.refusal(key, f"differs from the hidden size of {width}")
    conv = ShortConv(width, config.count("conv_L_cache", least=2, most=16), config.flag("conv_bias"))
    attn = attention(config, qk_norm="head")
    return [attn if kind == FULL else conv for kind in _layer_types(config)]


def _layer_types(config: Config) -> list[str]:
    total = num_layers(config)
    listed = config.choices("layer_types", total, (FULL, CONV))
    if listed is not None:
        config.indices("full_attn_idxs", total)
        return listed
    full = config.indices("full_attn_idxs", total) if "full_attn_idxs" in config else range(total)
    return [FULL if index in full else CONV for index in range(total)]


def _dense_width(config: Config) -> int:
    """Returns the width as Lfm2MLP of transformers: two thirds of the key, times a factor, rounded up to a multiple."""
    width = config.count(config.first("block_ff_dim", "intermediate_size"))
    multiple, factor = config.count("block_multiple_of", 256), config.number("block_ffn_dim_multiplier", 1.0)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    return -(-int(factor * int(2 * width / 3)) // multiple) * multiple


def _implied(config: Config) -> Mapping[str, Any]:
    """Returns the layer types from the GGUF list of key-value heads, in which layers with a convolution have 0."""
    heads = config.numbers("kv_heads_by_layer", num_layers(config), least=0, most=4096) or []
    counts = {int(count) for count in heads if count}
    if len(counts) > 1:
        raise config.refusal("kv_heads_by_layer", "has more than one number of heads")
    return {
        "layer_types": [FULL if count else CONV for count in heads],
        "num_key_value_heads": max(counts, default=None),
        "block_auto_adjust_ff_dim": False,
    }


def _hub_rules(spec: ModelSpec) -> Rules:
    stack = "model.layers.{}.feed_forward.experts"
    return [
        *_taps(spec, "model.layers.{}.conv.conv.weight", 1),
        Rule(f"{stack}.{{}}.w1.weight", (f"{EXPERT}.gate",)),
        Rule(f"{stack}.{{}}.w3.weight", (f"{EXPERT}.up",)),
        Rule(f"{stack}.{{}}.w2.weight", (f"{EXPERT}.down",)),
        Rule(f"{stack}.gate_up_proj", (f"{EXPERT}.gate", f"{EXPERT}.up")),
        Rule(f"{stack}.down_proj", (f"{EXPERT}.down",)),
    ]


def _gguf_rules(spec: ModelSpec) -> Rules:
    return _taps(spec, "blk.{}.shortconv.conv.weight")


def _taps(spec: ModelSpec, theirs: str, *middle: int) -> Rules:
    kernels = [layer.mixer.kernel for layer in spec.layers if isinstance(layer.mixer, ShortConv)]
    return [Rule(theirs, ("layers.{}.attn.conv",), (Taps(kernels[0], middle),))] if kernels else []


_HUB = Naming(
    {
        "layers.{}.attn.norm": "model.layers.{}.operator_norm.weight",
        "layers.{}.attn.o": "model.layers.{}.self_attn.out_proj.weight",
        "layers.{}.attn.q_norm": "model.layers.{}.self_attn.q_layernorm.weight",
        "layers.{}.attn.k_norm": "model.layers.{}.self_attn.k_layernorm.weight",
        "layers.{}.attn.in": "model.layers.{}.conv.in_proj.weight",
        "layers.{}.attn.conv_bias": "model.layers.{}.conv.conv.bias",
        "layers.{}.attn.out": "model.layers.{}.conv.out_proj.weight",
        "layers.{}.ffn.norm": "model.layers.{}.ffn_norm.weight",
        **feed_forward_names("layers.{}.ffn", "model.layers.{}.feed_forward.", ("w1", "w3", "w2")),
        "layers.{}.ffn.router": "model.layers.{}.feed_forward.gate.weight",
        "layers.{}.ffn.choice_bias": "model.layers.{}.feed_forward.expert_bias",
        "norm": "model.embedding_norm.weight",
    },
    _hub_rules,
)

_GGUF_NAMES = {
    "layers.{}.attn.in": "blk.{}.shortconv.in_proj.weight",
    "layers.{}.attn.conv_bias": "blk.{}.shortconv.conv.bias",
    "layers.{}.attn.out": "blk.{}.shortconv.out_proj.weight",
    "norm": "token_embd_norm.weight",
}
_GGUF_KEYS: Mapping[str, str | None] = {
    "attention.head_count_kv": "kv_heads_by_layer",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "shortconv.l_cache": "conv_L_cache",
    "leading_dense_block_count": "num_dense_layers",
}
_DEFAULTS = {
    "norm_eps": 1e-5,
    "max_position_embeddings": 128_000,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "conv_L_cache": 3,
    "num_key_value_heads": 8,
}

LFM2 = Family(
    name="lfm2",
    models="LFM2 350M to 2.6B, LFM2.5",
    architectures=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    spec=_lfm2,
    defaults=_DEFAULTS,
    ignorable=(
        *("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_xavier_init"),
        *("conv_use_xavier_init", "num_heads", "theta"),
    ),
    fixed={"block_use_swiglu": True, "use_pos_enc": True},
    hub=_HUB,
    gguf=Gguf(_GGUF_NAMES, _gguf_rules, architecture="lfm2", keys=_GGUF_KEYS, implied=_implied),
)

LFM2_MOE = Family(
    name="lfm2_moe",
    models="LFM2 8B-A1B, 24B-A2B",
    architectures=("Lfm2MoeForCausalLM",),
    spec=_lfm2_moe,
    defaults=_DEFAULTS,
    hub=_HUB,
    gguf=Gguf(_GGUF_NAMES, _gguf_rules, architecture="lfm2moe", keys=_GGUF_KEYS, implied=_implied),
)
