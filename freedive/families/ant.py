"""Ant's Ling 2 and 3, and Sarvam's model of 30B, which has the code of Ling 2.

Ling 3 has five layers of Kimi Delta Attention to one of latent attention, whose heads have gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rules import Rule, Rules
from freedive.families.config import Config
from freedive.families.deepseek import decoder, first_dense, unbiased_router
from freedive.families.family import Family, last_with_attention
from freedive.families.gguf import Gguf
from freedive.families.moonshot import (
    GGUF_KEYS,
    GGUF_NAMES,
    SPELLINGS,
    delta_rules,
    gguf_delta_rules,
    gguf_implied,
    hybrid,
)
from freedive.families.names import Naming, latent_rules
from freedive.families.parts import FULL, LINEAR, attention, clamped, latent_attention, num_layers
from freedive.families.rope import rope
from freedive.model.spec import DeltaRule, Experts, LatentAttention, Layer, ModelSpec


def _bailing_hybrid(config: Config) -> ModelSpec:
    spec = _unclamped(config)
    limits = [_limits(config, key) for key in ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list")]
    return replace(spec, layers=tuple(map(_clamped, spec.layers, *limits)))


def _unclamped(config: Config) -> ModelSpec:
    config.respell({**SPELLINGS, "score_function": "scoring_func"})
    config.section("rope_parameters").number("partial_rotary_factor", 1.0)  # qk_rope_head_dim says what rotates
    config.choice("scoring_func", ("sigmoid",))
    latent = latent_attention(config, interleaved=True, output_gate=True)
    mixers: dict[str, LatentAttention | DeltaRule] = {FULL: latent, LINEAR: _delta_rule(config)}
    config.choice("moe_shared_expert_intermediate_size", (config.count("moe_intermediate_size"),))
    return hybrid("bailing_hybrid", config, mixers, _layer_types(config))


def _mtp_layer(config: Config, spec: ModelSpec) -> Layer:
    """Returns a layer with latent attention and experts without limits, which are listed for the other layers only."""
    return last_with_attention(config, _unclamped(config))


def _limits(config: Config, key: str) -> list[float]:
    """Returns the limit of each layer, 0 for none."""
    total = num_layers(config)
    return config.numbers(key, total, least=0, most=1e4) or [0.0] * total


def _clamped(layer: Layer, limit: float, shared_limit: float) -> Layer:
    if not isinstance(layer.ffn, Experts):
        return layer
    moe = replace(layer.ffn, expert=clamped(layer.ffn.expert, limit))
    return replace(layer, ffn=replace(moe, shared=moe.shared and clamped(moe.shared, shared_limit)))


def _delta_rule(config: Config) -> DeltaRule:
    """Reads the derived keys such as ``linear_head_dim`` that transformers adds when it saves a configuration, and then
    not those that they replace.
    """
    heads = config.count(config.first("linear_num_heads", "num_attention_heads"), most=4096)
    dim = config.count(config.first("linear_head_dim", "head_dim"), most=4096)
    kernel = config.count(config.first("linear_conv_kernel_dim", "short_conv_kernel_size"), least=2, most=16)
    bound = config.number("kda_lower_bound", least=-100, most=-1e-3)
    return DeltaRule(
        heads,
        heads,
        key_dim=dim,
        value_dim=dim,
        kernel=kernel,
        decay="channel",
        decay_rank=0,
        gate_rank=0,
        gate_activation="sigmoid",
        decay_bound=bound if config.flag("kda_safe_gate", True) else 0.0,
    )


def _layer_types(config: Config) -> Sequence[str]:
    """Returns the type of each layer; groups end with full attention, and so is what is left after whole groups."""
    total, size = num_layers(config), config.count("layer_group_size", 6)
    listed = config.choices("layer_types", total, (FULL, LINEAR))
    return listed or [LINEAR if (i + 1) % size and i < total // size * size else FULL for i in range(total)]


def _bailing_moe_v2(config: Config) -> ModelSpec:
    return _grouped("bailing_moe_v2", config)


def _sarvam_moe(config: Config) -> ModelSpec:
    return _grouped("sarvam_moe", config)


def _grouped(family: str, config: Config) -> ModelSpec:
    """Returns a decoder with norms of heads, a part of which rotates, and experts in groups."""
    config.respell({**SPELLINGS, "use_qkv_bias": "attention_bias", "score_function": "scoring_func"})
    attn = attention(config, qkv_bias=config.flag("attention_bias"), qk_norm="head", rope=None)
    attn = replace(attn, rope=rope(config, attn.head_dim, partial=True))
    return decoder(family, config, attn, unbiased_router(config), first_dense(config))


_ATTN, _OWN = "model.layers.{}.attention", "model.layers.{}.self_attn"
_LINEARS = {"in_decay": "f_proj", "in_gate": "g_proj"}


def _hub_rules(spec: ModelSpec) -> Rules:
    """Returns the rules; what transformers saves has other names of outputs, and in its own form of modules."""
    names: dict[str, Sequence[str]] = {
        "out": (f"{_ATTN}.o_proj", f"{_ATTN}.dense", f"{_OWN}.o_proj"),
        "gate": (f"{_ATTN}.g_proj", f"{_OWN}.g_proj"),
    }
    return [
        *delta_rules(spec, _ATTN, (0,), _LINEARS),
        *latent_rules(spec, f"{_ATTN}.kv_b_proj.weight"),
        *(Rule(f"{theirs}.weight", (f"layers.{{}}.attn.{ours}",)) for ours in names for theirs in names[ours]),
    ]


_RENAMES = {
    "embed": "model.word_embeddings.weight",
    "layers.{}.attn.q": f"{_ATTN}.q_proj.weight",
    "layers.{}.attn.q_a": f"{_ATTN}.q_a_proj.weight",
    "layers.{}.attn.q_a_norm": f"{_ATTN}.q_a_layernorm.weight",
    "layers.{}.attn.q_b": f"{_ATTN}.q_b_proj.weight",
    "layers.{}.attn.kv_a": f"{_ATTN}.kv_a_proj_with_mqa.weight",
    "layers.{}.attn.kv_a_norm": f"{_ATTN}.kv_a_layernorm.weight",
    "layers.{}.attn.o": f"{_ATTN}.dense.weight",
    "layers.{}.ffn.choice_bias": "model.layers.{}.mlp.gate.expert_bias",
    "layers.{}.mtp.norm": "model.layers.{}.final_layernorm.weight",
}

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "n_shared_experts": 1,
    "num_local_experts": 512,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 2,
    "max_position_embeddings": 262144,
    "rope_theta": 6e6,
    "short_conv_kernel_size": 4,
    "kda_lower_bound": -5.0,
}

_FIXED: Mapping[str, Any] = {
    "gated_attention_proj_granularity_type": "head_wise",
    "group_norm_size": 1,
    "linear_silu": True,
    "moe_router_enable_expert_bias": True,
    "mtp_use_kda": False,
    "no_kda_lora": True,
    "num_kv_heads_for_linear_attn": 0,
    "rope_interleave": True,
    "use_qk_norm": True,
    **dict.fromkeys(("scale_router_input", "up_proj_norm", "use_kda_lora", "use_mla_nope", "use_nGPT"), False),
    **dict.fromkeys(("use_qkv_bias", "value_norm"), False),
}


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns what is said by block, blocks of multi-token prediction among them, by layer."""
    blocks, total = config.count("num_blocks"), num_layers(config)
    limits = {"expert_swiglu_limit_list": "block_limits", "share_expert_swiglu_limit_list": "block_limits_shared"}
    found = {ours: config.numbers(theirs, blocks, least=0, most=1e4) for ours, theirs in limits.items()}
    return {**gguf_implied(config), **{key: values[:total] for key, values in found.items() if values}}


BAILING_HYBRID = Family(
    name="bailing_hybrid",
    models="Ling 3.0: tiny, Flash",
    architectures=("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"),
    spec=_bailing_hybrid,
    defaults=_DEFAULTS,
    ignorable=(
        *("embedding_dropout", "max_window_layers", "mtp_loss_scaling_factor", "num_mtp_layers", "output_dropout"),
        *("head_dim", "partial_rotary_factor", "qk_head_dim", "rotary_dim", "router_dtype", "short_conv_kernel_size"),
    ),
    fixed=_FIXED,
    mtp_layer=_mtp_layer,
    hub=Naming(_RENAMES, _hub_rules),
    gguf=Gguf(
        {
            **GGUF_NAMES,
            "layers.{}.attn.in_decay": "blk.{}.ssm_f_a.weight",
            "layers.{}.attn.in_gate": "blk.{}.ssm_g_a.weight",
            "layers.{}.attn.gate": "blk.{}.attn_gate.weight",
            "layers.{}.mtp.norm": "blk.{}.layer_output_norm.weight",
        },
        gguf_delta_rules,
        architecture="bailingmoe3",
        keys={
            **GGUF_KEYS,
            "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
            "kda.safe_gate": "kda_safe_gate",
            "kda.gate_lower_bound": "kda_lower_bound",
            "swiglu_clamp_exp": "block_limits",
            "swiglu_clamp_shexp": "block_limits_shared",
        },
        implied=_gguf_implied,
    ),
)


def _fused(theirs: str) -> Callable[[ModelSpec], Rules]:
    return lambda spec: [Rule(theirs, tuple(f"layers.{{}}.attn.{name}" for name in "qkv"))]


_GROUPED_HUB = Naming(
    {
        "embed": "model.word_embeddings.weight",
        "layers.{}.attn.o": f"{_ATTN}.dense.weight",
        "layers.{}.attn.q_norm": f"{_ATTN}.query_layernorm.weight",
        "layers.{}.attn.k_norm": f"{_ATTN}.key_layernorm.weight",
        "layers.{}.mtp.norm": "model.layers.{}.final_layernorm.weight",
        "layers.{}.ffn.choice_bias": "model.layers.{}.mlp.gate.expert_bias",
    },
    _fused(f"{_ATTN}.query_key_value.weight"),
)
_GROUPED_FIXED: Mapping[str, Any] = {
    "moe_router_enable_expert_bias": True,
    "norm_head": False,
    "use_qk_norm": True,
    "use_sliding_window": False,
}
_GROUPED_IGNORABLE = (
    *("embedding_dropout", "max_window_layers", "mtp_loss_scaling_factor", "num_mtp_layers", "output_dropout"),
    *("router_dtype", "use_rmsnorm"),
    "moe_shared_expert_intermediate_size",  # a copy of moe_intermediate_size
)
_GROUPED_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}

BAILING_MOE_V2 = Family(
    name="bailing_moe_v2",
    models="Ling 2.0 and Ring 2.0: mini, flash, 1T",
    architectures=("BailingMoeV2ForCausalLM",),
    spec=_bailing_moe_v2,
    defaults={**_GROUPED_DEFAULTS, "max_position_embeddings": 32768, "rope_theta": 6e5, "n_group": 8, "topk_group": 4},
    ignorable=_GROUPED_IGNORABLE,
    fixed=_GROUPED_FIXED,
    hub=_GROUPED_HUB,
    gguf=Gguf(
        {"layers.{}.mtp.norm": "blk.{}.layer_output_norm.weight"},
        rules=_fused("blk.{}.attn_qkv.weight"),
        architecture="bailingmoe2",
        keys={"expert_shared_feed_forward_length": None},  # follows from the number of shared experts
    ),
)

SARVAM_MOE = Family(
    name="sarvam_moe",
    models="sarvam-30b",
    architectures=("SarvamMoEForCausalLM",),
    spec=_sarvam_moe,
    defaults={
        **_GROUPED_DEFAULTS,
        "max_position_embeddings": 131072,
        "head_dim": 64,
        "rope_theta": 8e6,
        "num_local_experts": 128,
        "num_experts_per_tok": 6,
    },
    ignorable=_GROUPED_IGNORABLE,
    fixed=_GROUPED_FIXED,
    hub=_GROUPED_HUB,
    runs_mtp=False,
)
