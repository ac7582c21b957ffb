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
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.moonshot import SPELLINGS, delta_rules, hybrid
from freedive.families.names import Naming, latent_rules
from freedive.families.parts import FULL, LINEAR, attention, latent_attention, num_layers
from freedive.families.rope import rope
from freedive.model.spec import DeltaRule, LatentAttention, ModelSpec


def _bailing_hybrid(config: Config) -> ModelSpec:
    config.respell(SPELLINGS)
    latent = latent_attention(config, interleaved=True, output_gate=True)
    mixers: dict[str, LatentAttention | DeltaRule] = {FULL: latent, LINEAR: _delta_rule(config)}
    return hybrid("bailing_hybrid", config, mixers, _layer_types(config))


def _delta_rule(config: Config) -> DeltaRule:
    """Reads the derived keys such as ``linear_head_dim`` that transformers adds when it saves a configuration."""
    heads = config.count("linear_num_heads", config.count("num_attention_heads", most=4096), most=4096)
    dim = config.count("linear_head_dim", config.count("head_dim", most=4096), most=4096)
    kernel = config.count("linear_conv_kernel_dim", config.count("short_conv_kernel_size", least=2), least=2, most=16)
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
    total, size = num_layers(config), config.count("layer_group_size", 6)
    listed = config.choices("layer_types", total, (FULL, LINEAR))
    return listed or [LINEAR if (i + 1) % size else FULL for i in range(total)]


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
    """Returns the rules; outputs and gates have one name in both kinds of layers, another in transformers."""
    ends = {"out": "dense", "gate": "g_proj"}
    return [
        *delta_rules(spec, _ATTN, (0,), _LINEARS),
        *latent_rules(spec, f"{_ATTN}.kv_b_proj.weight"),
        *(Rule(f"{_ATTN}.{theirs}.weight", (f"layers.{{}}.attn.{ours}",)) for ours, theirs in ends.items()),
        Rule(f"{_OWN}.o_proj.weight", ("layers.{}.attn.out",)),
        Rule(f"{_OWN}.g_proj.weight", ("layers.{}.attn.gate",)),
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

BAILING_HYBRID = Family(
    name="bailing_hybrid",
    models="Ling-3.0-Flash",
    architectures=("BailingHybridForCausalLM",),
    spec=_bailing_hybrid,
    defaults=_DEFAULTS,
    ignorable=("qk_head_dim", "mtp_loss_scaling_factor", "num_mtp_layers"),
    hub=Naming(_RENAMES, _hub_rules),
    runs_mtp=False,
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
