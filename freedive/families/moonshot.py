"""Moonshot's Kimi-Linear: three layers of Kimi Delta Attention to one of latent attention without positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freedive.checkpoint.rule_steps import Exp, Flatten, Scale, Step, Taps
from freedive.checkpoint.rules import Rule, Rules
from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, SHARED, Naming, feed_forward_names
from freedive.families.parts import (
    FULL,
    LINEAR,
    feed_forward,
    groups,
    latent_attention,
    model,
    num_layers,
    router,
    with_shared,
)
from freedive.model.spec import DeltaRule, Experts, FeedForward, LatentAttention, Layer, ModelSpec, Router

SPELLINGS = {
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}
"""Key of published files -> key of transformers."""


def _kimi_linear(config: Config) -> ModelSpec:
    config.respell(SPELLINGS)
    latent = latent_attention(config, interleaved=False, rope=None)
    mixers: dict[str, LatentAttention | DeltaRule] = {FULL: latent, LINEAR: _delta_rule(config)}
    config.choice(config.first("moe_router_activation_func", "scoring_func"), ("sigmoid",))
    return hybrid("kimi_linear", config, mixers, _layer_types(config))


def hybrid(
    family: str, config: Config, mixers: Mapping[str, LatentAttention | DeltaRule], types: Sequence[str]
) -> ModelSpec:
    """Returns a decoder with a mixer of ``mixers`` for each of ``types``, and dense layers before sparse ones."""
    moe = Experts(_router(config), feed_forward(config, "moe_intermediate_size"))
    moe = with_shared(moe, config.count("n_shared_experts", least=0, most=64))
    ffns: dict[str, FeedForward | Experts] = {DENSE: feed_forward(config), SPARSE: moe}
    kinds = zip(types, _feeder_types(config), strict=True)
    return model(family, config, [Layer(mixers[mixer], ffns[ffn]) for mixer, ffn in kinds])


def _delta_rule(config: Config) -> DeltaRule:
    section = config.section("linear_attn_config")
    num_heads = section.count("num_heads", config.count("linear_num_heads", most=4096), most=4096)
    head_dim = section.count("head_dim", config.count("linear_head_dim", most=4096), most=4096)
    kernel = config.count("linear_conv_kernel_dim", least=2, most=16)
    return DeltaRule(
        num_heads,
        num_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        kernel=section.count("short_conv_kernel_size", kernel, least=2, most=16),
        decay="channel",
        decay_rank=head_dim,
        gate_rank=head_dim,
        gate_activation="sigmoid",
    )


def _router(config: Config) -> Router:
    config.choice("topk_method", ("noaux_tc",))
    renormalise, scale = config.flag("norm_topk_prob", True), config.number("routed_scaling_factor")
    gate = router(config, "num_local_experts", score="sigmoid", choice_bias=True, renormalise=renormalise, scale=scale)
    return groups(config, gate, "top2")


def _layer_types(config: Config) -> Sequence[str]:
    """Returns the type of each layer; published files number layers from 1."""
    total, section = num_layers(config), config.section("linear_attn_config")
    listed = config.choices("layer_types", total, (FULL, LINEAR))
    full, linear = (section.indices(name, total + 1) for name in ("full_attn_layers", "kda_layers"))
    if full and sorted(full + linear) != list(range(1, total + 1)):
        raise config.refusal("linear_attn_config", f"does not list each of {total} layers once")
    if listed:
        return listed
    return [FULL if i + 1 in full or (not full and i and i % 4 == 0) else LINEAR for i in range(total)]


def _feeder_types(config: Config) -> Sequence[str]:
    total = num_layers(config)
    first, step = config.count("first_k_dense_replace", 1, least=0), config.count("moe_layer_freq", 1)
    listed = config.choices("mlp_layer_types", total, (DENSE, SPARSE))
    return listed or [SPARSE if i >= first and i % step == 0 else DENSE for i in range(total)]


def delta_rules(spec: ModelSpec, theirs: str, rate_shape: Sequence[int], linears: Mapping[str, str]) -> list[Rule]:
    """Returns the rules for the tensors of Kimi Delta Attention; ``theirs`` is the name of its module.

    ``linears`` are those of decay and gate. In transformers' own form the forget gate is a module of its own, and one
    convolution is that of q, k and v. In ``rate_shape`` 0 stands for the number of heads.
    """
    delta = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, DeltaRule)), None)
    if delta is None:
        return []
    taps, own = (Taps(delta.kernel, (1,)),), "model.layers.{}.self_attn"
    rate = Flatten(tuple(size or delta.num_value_heads for size in rate_shape)), Exp()
    rules = [Rule(f"{theirs}.{name}_conv1d.weight", _ours(f"{name}_conv"), taps) for name in "qkv"]
    rules.append(Rule(f"{own}.conv1d.weight", _ours("q_conv", "k_conv", "v_conv"), taps, blocks=delta.kernel))
    for module, gate in ((theirs, theirs), (own, f"{own}.forget_gate")):
        rules += [Rule(f"{module}.{name}_proj.weight", _ours(f"in_{name}")) for name in "qkv"]
        rules += [Rule(f"{module}.b_proj.weight", _ours("in_beta")), Rule(f"{module}.o_norm.weight", _ours("out_norm"))]
        rules += [Rule(f"{gate}.A_log", _ours("rate"), rate), Rule(f"{gate}.dt_bias", _ours("dt_bias"))]
        for name, linear in linears.items():
            rules.append(Rule(f"{gate if 'decay' in name else module}.{linear}.weight", _ours(name)))
    return rules


def _ours(*names: str) -> tuple[str, ...]:
    return tuple(f"layers.{{}}.attn.{name}" for name in names)


_SELF, _MOE = "model.layers.{}.self_attn", "model.layers.{}.block_sparse_moe."
_LINEARS = {"in_decay_a": "f_a_proj", "in_decay_b": "f_b_proj", "in_gate_a": "g_a_proj", "in_gate_b": "g_b_proj"}


def _hub_rules(spec: ModelSpec) -> Rules:
    return delta_rules(spec, _SELF, (1, 1, 0, 1), _LINEARS)


def gguf_implied(config: Config) -> dict[str, Any]:
    """Returns the layer types; llama.cpp lists key-value heads by block, 0 for blocks without latent attention."""
    heads = config.numbers("kv_heads_by_layer", config.count("num_blocks"), least=0, most=1) or []
    head_dim, rope_dim = config.count("mla_key_length"), config.count("qk_rope_head_dim")
    return {
        "layer_types": [FULL if count else LINEAR for count in heads[: num_layers(config)]],
        "linear_num_heads": config.count("num_attention_heads", most=4096),
        "qk_nope_head_dim": max(head_dim - rope_dim, 0),
    }


def gguf_delta_rules(spec: ModelSpec, *rate_steps: Step) -> Rules:
    """Returns the rules of convolutions and rates, to which ``rate_steps`` apply."""
    delta = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, DeltaRule)), None)
    if delta is None:
        return []
    taps, rate = (Taps(delta.kernel, (1,)),), (Flatten((delta.num_value_heads, 1)), *rate_steps)
    convs = [Rule(f"blk.{{}}.ssm_conv1d_{name}.weight", _ours(f"{name}_conv"), taps) for name in "qkv"]
    return [*convs, Rule("blk.{}.ssm_a", _ours("rate"), rate)]


GGUF_NAMES = {
    **{f"layers.{{}}.attn.in_{name}": f"blk.{{}}.attn_{name}.weight" for name in "qkv"},
    "layers.{}.attn.in_beta": "blk.{}.ssm_beta.weight",
    "layers.{}.attn.dt_bias": "blk.{}.ssm_dt.bias",
    "layers.{}.attn.out_norm": "blk.{}.ssm_norm.weight",
    "layers.{}.attn.out": "blk.{}.attn_output.weight",
}
GGUF_KEYS: Mapping[str, str | None] = {
    "attention.head_count_kv": "kv_heads_by_layer",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.key_length": None,
    "attention.value_length": None,
    "attention.key_length_mla": "mla_key_length",
    "attention.value_length_mla": "v_head_dim",
    "rope.dimension_count": "qk_rope_head_dim",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "kda.head_dim": "linear_head_dim",
}
_GGUF_LINEARS = {
    f"layers.{{}}.attn.{name}": f"blk.{{}}.ssm_{linear.removesuffix('_proj')}.weight"
    for name, linear in _LINEARS.items()
}

_RENAMES = {
    "layers.{}.attn.out": f"{_SELF}.o_proj.weight",
    "layers.{}.ffn.router": f"{_MOE}gate.weight",
    "layers.{}.ffn.choice_bias": f"{_MOE}gate.e_score_correction_bias",
    **feed_forward_names(EXPERT, f"{_MOE}experts.{{}}.", ("w1", "w3", "w2")),
    **feed_forward_names(SHARED, f"{_MOE}shared_experts."),
    **feed_forward_names("layers.{}.ffn", _MOE),  # as transformers writes it: makers have the common names
}

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_shared_experts": 1,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.446,
    "max_position_embeddings": 1 << 20,
    "linear_num_heads": 32,
    "linear_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}

KIMI_LINEAR = Family(
    name="kimi_linear",
    models="Kimi-Linear-48B-A3B",
    architectures=("KimiLinearForCausalLM",),
    spec=_kimi_linear,
    defaults=_DEFAULTS,
    ignorable=("head_dim", "qk_head_dim", "rope_theta", "rope_parameters", "rope_scaling"),
    fixed={"mla_use_nope": True, "use_grouped_topk": True},
    hub=Naming(_RENAMES, _hub_rules),
    gguf=Gguf(
        {**GGUF_NAMES, **_GGUF_LINEARS},
        lambda spec: gguf_delta_rules(spec, Scale(-1.0)),
        architecture="kimi-linear",
        keys=GGUF_KEYS,
        implied=gguf_implied,
    ),
)
