"""Alibaba's Qwen3-Next, 3.5 and 3.6: three layers of gated delta rule to one of gated attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freedive.checkpoint.rule_steps import Add, Exp, Scale, Taps
from freedive.checkpoint.rules import Rule, Rules
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import HUB, SHARED, MtpModule, Naming, feed_forward_names
from freedive.families.parts import FULL, LINEAR, attention, feed_forward, model, num_layers, router
from freedive.families.rope import rope
from freedive.model.spec import Attention, DeltaRule, Experts, FeedForward, Layer, ModelSpec


def _qwen3_next(config: Config) -> ModelSpec:
    moe, total, step = _experts(config), num_layers(config), config.count("decoder_sparse_step", 1)
    plain = config.indices("mlp_only_layers", total)
    ffns = [feed_forward(config) if i in plain or (i + 1) % step else moe for i in range(total)]
    return _decoder("qwen3_next", config, ffns)


def _qwen3_5(config: Config) -> ModelSpec:
    return _decoder("qwen3_5", config, [feed_forward(config)] * num_layers(config))


def _qwen3_5_moe(config: Config) -> ModelSpec:
    return _decoder("qwen3_5_moe", config, [_experts(config)] * num_layers(config))


def _decoder(family: str, config: Config, ffns: Sequence[FeedForward | Experts]) -> ModelSpec:
    kinds: dict[str, Attention | DeltaRule] = {FULL: _attention(config), LINEAR: _delta_rule(config)}
    layers = [Layer(kinds[kind], ffn) for kind, ffn in zip(_layer_types(config), ffns, strict=True)]
    return model(family, config, layers)


def _attention(config: Config) -> Attention:
    for key in ("rope_parameters", "rope_scaling"):  # of text the three positions of a token are one
        config.section(key).flag("mrope_interleaved")
        config.section(key).numbers("mrope_section", 3, least=0, most=4096)
    bias, head_dim = config.flag("attention_bias"), config.count("head_dim", most=4096)
    turns = rope(config, head_dim, partial=True)
    return attention(config, rope=turns, qk_norm="head", qkv_bias=bias, out_bias=bias, output_gate=True)


def _delta_rule(config: Config) -> DeltaRule:
    num_key_heads, num_value_heads = (config.count(f"linear_num_{name}_heads", most=4096) for name in ("key", "value"))
    if num_value_heads % num_key_heads:
        raise config.refusal("linear_num_key_heads", f"({num_key_heads}) does not divide {num_value_heads} value heads")
    return DeltaRule(
        num_key_heads,
        num_value_heads,
        key_dim=config.count("linear_key_head_dim", most=4096),
        value_dim=config.count("linear_value_head_dim", most=4096),
        kernel=config.count("linear_conv_kernel_dim", least=2, most=16),
        decay="head",
        decay_rank=0,
        gate_rank=0,
        tiled=config.flag("tiled_value_heads") and 1 < num_key_heads < num_value_heads,  # else the orders are the same
    )


def _layer_types(config: Config) -> Sequence[str]:
    """Returns the type of each layer; the list of a GGUF file ends with its MTP layers."""
    total, interval = num_layers(config), config.count("full_attention_interval", 4)
    listed = config.choices("layer_types", total + config.count("num_nextn_predict_layers", 0, least=0), (FULL, LINEAR))
    return listed[:total] if listed else [LINEAR if (i + 1) % interval else FULL for i in range(total)]


def _experts(config: Config) -> Experts:
    return Experts(
        router(config, renormalise=config.flag("norm_topk_prob", True)),
        feed_forward(config, "moe_intermediate_size"),
        shared=feed_forward(config, "shared_expert_intermediate_size"),
        shared_gate=True,
    )


_ATTN, _SELF, _DELTA = "layers.{}.attn", "model.layers.{}.self_attn", "model.layers.{}.linear_attn"
_RENAMES = {
    f"{_ATTN}.dt_bias": f"{_DELTA}.dt_bias",
    f"{_ATTN}.out_norm": f"{_DELTA}.norm.weight",
    f"{_ATTN}.out": f"{_DELTA}.out_proj.weight",
    f"{_ATTN}.in_gate": f"{_DELTA}.in_proj_z.weight",
    f"{_ATTN}.in_beta": f"{_DELTA}.in_proj_b.weight",
    f"{_ATTN}.in_decay": f"{_DELTA}.in_proj_a.weight",
    **feed_forward_names(SHARED, "model.layers.{}.mlp.shared_expert."),
}
_NORMS = (
    *(f"layers.{{}}.{name}" for name in ("attn.norm", "attn.q_norm", "attn.k_norm", "ffn.norm")),
    *(f"layers.{{}}.mtp.{name}" for name in ("embed_norm", "state_norm", "norm")),
    "norm",
)
"""Norms that multiply by 1 + weight."""


def _implied(config: Config) -> dict[str, Any]:
    """Returns keys that GGUF metadata lack; llama.cpp gives the width of all value heads together."""
    num_heads, width = config.count("linear_num_value_heads", most=4096), config.count("linear_inner_size")
    if width % num_heads:
        raise config.refusal("linear_inner_size", f"({width}) is no multiple of {num_heads} heads")
    return {"linear_value_head_dim": width // num_heads, "norm_topk_prob": True}


def _implied_tiled(config: Config) -> dict[str, Any]:
    return {**_implied(config), "tiled_value_heads": True}


def _hub_rules(spec: ModelSpec) -> Rules:
    qkv = Rule(f"{_DELTA}.in_proj_qkv.weight", _parts("in_q", "in_k", "in_v"))
    both = _shared_rules(spec, f"{_SELF}.q_proj", f"{_DELTA}.conv1d.weight")
    rate = Rule(f"{_DELTA}.A_log", _parts("rate"), (Exp(),))
    return [*both, qkv, rate, *(Rule(HUB[name], (name,), (Add(1.0),)) for name in _NORMS)]


def _next_rules(spec: ModelSpec) -> Rules:
    """Returns the rules of Qwen3-Next, whose projections contain all rows of one key head, then of the next."""
    return [*_by_key_head(spec, f"{_DELTA}.in_proj_qkvz.weight", f"{_DELTA}.in_proj_ba.weight"), *_hub_rules(spec)]


def _gguf_rules(spec: ModelSpec) -> Rules:
    return [
        *_shared_rules(spec, "blk.{}.attn_q", "blk.{}.ssm_conv1d.weight"),
        Rule("blk.{}.attn_qkv.weight", _parts("in_q", "in_k", "in_v")),
        Rule("blk.{}.ssm_a", _parts("rate"), (Scale(-1.0),)),
    ]


def _gguf_next_rules(spec: ModelSpec) -> Rules:
    """Returns the rules of Qwen3-Next; files of the first converter have q, k, v and gate in one tensor."""
    qkvz, ba = _by_key_head(spec, "blk.{}.ssm_in.weight", "blk.{}.ssm_ba.weight")
    gate = Rule("blk.{}.attn_gate.weight", _parts("in_gate"))
    return [ba, *_gguf_rules(spec), gate, qkvz]


def _by_key_head(spec: ModelSpec, qkvz: str, ba: str) -> list[Rule]:
    heads = next((layer.mixer.num_key_heads for layer in spec.layers if isinstance(layer.mixer, DeltaRule)), 1)
    return [
        Rule(qkvz, _parts("in_q", "in_k", "in_v", "in_gate"), blocks=heads),
        Rule(ba, _parts("in_beta", "in_decay"), blocks=heads),
    ]


def _shared_rules(spec: ModelSpec, q: str, conv: str) -> list[Rule]:
    """Returns the rules of joint tensors: queries and gates alternate by head; one convolution is of q, k and v."""
    rules = []
    for mixer in dict.fromkeys(layer.mixer for layer in spec.layers):
        if isinstance(mixer, DeltaRule):
            taps = Taps(mixer.kernel, (1,) if conv.endswith("linear_attn.conv1d.weight") else ())
            rules.append(Rule(conv, _parts("q_conv", "k_conv", "v_conv"), (taps,), blocks=mixer.kernel))
        elif isinstance(mixer, Attention):
            rules.append(Rule(f"{q}.weight", _parts("q", "gate"), blocks=mixer.num_heads))
            rules.append(Rule(f"{q}.bias", _parts("q_bias", "gate_bias"), blocks=mixer.num_heads))
    return rules


def _parts(*names: str) -> tuple[str, ...]:
    return tuple(f"{_ATTN}.{name}" for name in names)


_GGUF_NAMES = {
    f"{_ATTN}.dt_bias": "blk.{}.ssm_dt.bias",
    f"{_ATTN}.out_norm": "blk.{}.ssm_norm.weight",
    f"{_ATTN}.out": "blk.{}.ssm_out.weight",
    f"{_ATTN}.in_gate": "blk.{}.attn_gate.weight",
    f"{_ATTN}.in_beta": "blk.{}.ssm_beta.weight",
    f"{_ATTN}.in_decay": "blk.{}.ssm_alpha.weight",
    "layers.{}.ffn.norm": "blk.{}.post_attention_norm.weight",
}
_GGUF_KEYS: Mapping[str, str | None] = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "linear_inner_size",
    "attention.recurrent_layers": "layer_types",
    "full_attention_interval": "full_attention_interval",
    "rope.dimension_sections": None,  # of text the three positions of a token are one
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_MOE_DEFAULTS = {**_DEFAULTS, "shared_expert_intermediate_size": 512, "moe_intermediate_size": 512}
_IGNORABLE = ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
_FIXED = {"attn_output_gate": True}

_MTP = MtpModule(
    "mtp.layers.0.",
    {
        "eh_proj": "mtp.fc",
        "enorm": "mtp.pre_fc_norm_embedding",
        "hnorm": "mtp.pre_fc_norm_hidden",
        "shared_head.norm": "mtp.norm",
    },
)

QWEN3_NEXT = Family(
    name="qwen3_next",
    models="Qwen3-Next-80B-A3B, Qwen3-Coder-Next",
    architectures=("Qwen3NextForCausalLM",),
    spec=_qwen3_next,
    defaults={**_MOE_DEFAULTS, "num_experts_per_tok": 10, "num_experts": 512, "intermediate_size": 5632},
    ignorable=(*_IGNORABLE, "intermediate_size"),
    fixed=_FIXED,
    hub=Naming(_RENAMES, _next_rules, mtp_module=_MTP),
    gguf=Gguf(_GGUF_NAMES, _gguf_next_rules, architecture="qwen3next", keys=_GGUF_KEYS, implied=_implied),
)
QWEN3_5 = Family(
    name="qwen3_5",
    models="Qwen3.5 and 3.6, dense: 0.8B to 27B",
    architectures=("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM", "qwen3_5_text"),
    spec=_qwen3_5,
    defaults={**_DEFAULTS, "num_key_value_heads": 4},
    ignorable=_IGNORABLE,
    fixed=_FIXED,
    hub=Naming(_RENAMES, _hub_rules, mtp_module=_MTP),
    gguf=Gguf(_GGUF_NAMES, _gguf_rules, architecture="qwen35", keys=_GGUF_KEYS, implied=_implied_tiled),
)
QWEN3_5_MOE = Family(
    name="qwen3_5_moe",
    models="Qwen3.5 and 3.6-35B-A3B, 122B-A10B, 397B-A17B",
    architectures=("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text"),
    spec=_qwen3_5_moe,
    defaults={**_MOE_DEFAULTS, "num_experts_per_tok": 8, "num_experts": 256},
    ignorable=(*_IGNORABLE, "intermediate_size"),
    fixed={**_FIXED, "mlp_only_layers": []},
    hub=Naming(_RENAMES, _hub_rules, mtp_module=_MTP),
    gguf=Gguf(_GGUF_NAMES, _gguf_rules, architecture="qwen35moe", keys=_GGUF_KEYS, implied=_implied_tiled),
)
