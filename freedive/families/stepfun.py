"""StepFun's Step 3.5 and 3.7 Flash: gated attention with more heads in windows, and experts that are clamped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rule_steps import Add
from freedive.checkpoint.rules import Ignore, Rule, Rules
from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, HUB, SHARED, Naming, feed_forward_names
from freedive.families.parts import FULL, SLIDING, attention, clamped, feed_forward, model, num_layers, router, window
from freedive.families.rope import plain_rope, rope
from freedive.model.spec import Attention, Experts, Layer, ModelSpec, Rope


def _step3p7(config: Config) -> ModelSpec:
    config.respell({"moe_top_k": "num_experts_per_tok", "moe_num_experts": "n_routed_experts"})
    config.respell({"share_expert_dims": "share_expert_dim", "num_attention_groups": "num_key_value_heads"})
    config.respell({"moe_router_activation": "scoring_func", "norm_expert_weight": "norm_topk_prob"})
    layers = _blocks(config)[: num_layers(config)]
    return model("step3p7", config, layers, mtp_normed=False)


def _mtp_layer(config: Config, spec: ModelSpec) -> Layer:
    """Returns the first of the blocks of multi-token prediction, usually three, which drafts one token."""
    return _blocks(config)[len(spec.layers)]


def _blocks(config: Config) -> list[Layer]:
    """Returns all layers, and then those of multi-token prediction."""
    config.choice("scoring_func", ("sigmoid",))
    gate = router(
        config,
        "n_routed_experts",
        score="sigmoid",
        choice_bias=True,
        renormalise=True,
        scale=config.number("moe_router_scaling_factor", 1.0),
    )
    limits, shared_limits = (_limits(config, key) for key in ("swiglu_limits", "swiglu_limits_shared"))
    dense, expert, shared = (
        feed_forward(config, key, bias=config.flag("mlp_bias"))
        for key in ("intermediate_size", "moe_intermediate_size", "share_expert_dim")
    )
    layers = []
    for attn, kind, limit, shared_limit in zip(
        _attentions(config), _feeders(config), limits, shared_limits, strict=True
    ):
        moe = Experts(gate, clamped(replace(expert, bias=False), limit), clamped(shared, shared_limit))
        layers.append(Layer(attn, moe if kind == SPARSE else clamped(dense, shared_limit)))
    return layers


def _num_mtp(config: Config) -> int:
    return config.count("num_nextn_predict_layers", 0, least=0, most=64)


def _kinds(config: Config, key: str, known: tuple[str, str], otherwise: list[str]) -> list[str]:
    """Returns one of ``known`` for each block: the maker's list goes on beyond the layers, transformers has another."""
    total, apart = num_layers(config), f"mtp_{key}"
    listed = config.choices(key, max(total, config.length(key)), known) or otherwise
    further = config.choices(apart, max(_num_mtp(config), config.length(apart)), known) or listed[total:]
    kinds = [*listed[:total], *further]
    return [*kinds, *otherwise[len(kinds) :]][: len(otherwise)]


def _limits(config: Config, key: str) -> list[float]:
    """Returns the limit of each block, 0 for none."""
    total, num_mtp = num_layers(config), _num_mtp(config)
    listed = config.numbers(key, max(total, config.length(key)), least=0, most=1e4) or [0.0] * total
    return [*listed, *[0.0] * num_mtp][: total + num_mtp]


def _feeders(config: Config) -> list[str]:
    """Returns DENSE or SPARSE for each block; ``moe_layers_enum`` lists the sparse ones, which are the last layers."""
    total = num_layers(config)
    enumerations = tuple(",".join(map(str, range(first, total))) for first in range(total))
    first = enumerations.index(config.choice("moe_layers_enum", enumerations)) if "moe_layers_enum" in config else 3
    plain = [SPARSE if first <= i < total else DENSE for i in range(total + _num_mtp(config))]
    return _kinds(config, "mlp_layer_types", (DENSE, SPARSE), plain)


def _attentions(config: Config) -> list[Attention]:
    bias = config.flag("attention_bias")
    full = attention(
        config,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        output_gate=True,
        gate_by_head=config.choice("gating", (True, "per-head")) in (True, "per-head"),
        rope=None,
    )
    full = replace(full, scale=config.number("query_pre_attn_scalar", full.head_dim) ** -0.5)
    other = config.section("attention_other_setting")
    other.choice("attention_type", (SLIDING,))
    for key, value in {
        "num_attention_groups": full.num_kv_heads,
        "head_dim": full.head_dim,
        "true_head_dim": full.head_dim,
    }.items():
        other.choice(key, (value,))
    heads = config.count("num_sliding_attention_heads", other.count("num_attention_heads", full.num_heads), most=4096)
    if heads % full.num_kv_heads:
        raise config.refusal("num_sliding_attention_heads", f"({heads}) is no multiple of {full.num_kv_heads}")
    kinds = {FULL: full, SLIDING: replace(full, num_heads=heads, window=window(config))}
    types = _kinds(config, "layer_types", (FULL, SLIDING), [FULL] * (num_layers(config) + _num_mtp(config)))
    ropes = _ropes(config, full.head_dim, types)
    return [replace(kinds[kind], rope=ropes[kind]) for kind in types]


def _ropes(config: Config, head_dim: int, types: Sequence[str]) -> Mapping[str, Rope]:
    """Returns the rotary embedding of each type of layer; the maker lists the settings by layer."""
    table = config.section("rope_parameters")
    if any(kind in table for kind in types):
        return {kind: rope(config, head_dim, kind=kind, partial=True) for kind in dict.fromkeys(types)}
    thetas, parts = (
        config.numbers(key, max(len(types), config.length(key)), least=least, most=most) or [default] * len(types)
        for key, least, most, default in (("rope_theta", 2, 1e12, 1e4), ("partial_rotary_factors", 1e-3, 1, 1.0))
    )
    config.choices("yarn_only_types", 1, (FULL,))
    found = {}
    for kind in dict.fromkeys(types):
        theta, dim = thetas[types.index(kind)], int(head_dim * parts[types.index(kind)])
        config.supply({"rotary_dim": dim} if kind == FULL else {})
        found[kind] = rope(config, head_dim, partial=True, theta=theta) if kind == FULL else plain_rope(theta, dim)
    return found


_LAYER = "model.layers.{}."
_MTP_NORMS = ("mtp.embed_norm", "mtp.state_norm", "mtp.norm")
_NORMS = (
    *(f"layers.{{}}.{name}" for name in ("attn.norm", "attn.q_norm", "attn.k_norm", "ffn.norm", *_MTP_NORMS)),
    "norm",
)
"""Norms that multiply by 1 + weight."""


def _hub_rules(spec: ModelSpec) -> Rules:
    """Returns the rules of norms, and those of stacked experts under the maker's names."""
    experts = feed_forward_names(EXPERT, f"{_LAYER}moe.")
    return [
        Rule(f"{_LAYER}transformer.shared_head.norm.weight", ("layers.{}.mtp.norm",), (Add(1.0),)),
        *(Rule(HUB[name], (name,), (Add(1.0),)) for name in _NORMS),
        *(Rule(theirs, (ours,)) for ours, theirs in experts.items()),
        *(Rule(theirs, (ours,)) for ours, theirs in feed_forward_names(SHARED, f"{_LAYER}share_expert.").items()),
        Rule(f"{_LAYER}moe.gate.weight", ("layers.{}.ffn.router",)),
        Rule(f"{_LAYER}moe.router_bias", ("layers.{}.ffn.choice_bias",)),
        Ignore("vit_large_projector.*"),
    ]


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns what the metadata say by block, blocks of MTP among them, and the halved rotation of full attention."""
    blocks, total = config.count("num_blocks"), config.count("num_hidden_layers")
    types = config.choices("block_types", blocks, (FULL, SLIDING)) or [FULL] * blocks
    heads, kv_heads = (config.counts(key, blocks, most=4096) for key in ("block_heads", "block_kv_heads"))
    by_kind = dict(zip(reversed(types), reversed(heads), strict=True))
    theta = config.number("rope_theta", 1e4, least=2)
    first = config.count("first_k_dense_replace", 0, least=0)
    return {
        "num_attention_heads": by_kind.get(FULL, heads[0]),
        "num_sliding_attention_heads": by_kind.get(SLIDING, heads[0]),
        "num_key_value_heads": kv_heads[0],
        "layer_types": types,
        "mlp_layer_types": [SPARSE if first <= i < total else DENSE for i in range(blocks)],
        "rope_parameters": {
            FULL: {"rope_theta": theta, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_theta": config.number("rope_local_base_freq", theta, least=2)},
        },
    }


_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128000,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 288,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1280,
    "share_expert_dim": 1280,
}

STEP3P7 = Family(
    name="step3p7",
    models="Step 3.5 and 3.7 Flash 196B-A11B (text)",
    architectures=("Step3p5ForCausalLM", "Step3p7ForCausalLM", "Step3p7ForConditionalGeneration", "step3p5"),
    spec=_step3p7,
    defaults=_DEFAULTS,
    ignorable=(*("max_seq_len", "moe_every_n_layer", "need_fp32_gate", "num_mtp_layers", "per_layer_config"),),
    fixed={
        "att_impl_type": "GQA",
        "norm_topk_prob": True,
        "sink": False,
        "use_bidirectional_attention": False,
        "use_head_wise_attn_gate": True,
        "use_mfa": False,
        "use_moe": True,
        "use_moe_router_bias": True,
        "use_qk_norm": True,
        "use_rope_layers": [],
        "zero_centered": True,
    },
    mtp_layer=_mtp_layer,
    hub=Naming({"layers.{}.attn.gate": f"{_LAYER}self_attn.g_proj.weight"}, _hub_rules),
    gguf=Gguf(
        {"layers.{}.attn.gate": "blk.{}.attn_gate.weight"},
        architecture="step35",
        keys={
            "attention.head_count": "block_heads",
            "attention.head_count_kv": "block_kv_heads",
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "block_types",
            "expert_shared_feed_forward_length": "share_expert_dim",
            "expert_weights_scale": "moe_router_scaling_factor",
            "moe_every_n_layers": None,
            "rope.freq_base_swa": "rope_local_base_freq",
            "swiglu_clamp_exp": "swiglu_limits",
            "swiglu_clamp_shexp": "swiglu_limits_shared",
        },
        implied=_gguf_implied,
    ),
)
