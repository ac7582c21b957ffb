"""Baidu's ERNIE 4.5: Llama with interleaved rotary embeddings; dense, or with experts in all but the first layers."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rule_steps import Row
from freedive.checkpoint.rules import Ignore, Rule, Rules
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.families.parts import attention, feed_forward, model, num_layers, router, with_shared
from freedive.families.rope import rope
from freedive.model.spec import Attention, Experts, Layer, ModelSpec


def _ernie(config: Config) -> ModelSpec:
    layer = Layer(_attention(config), feed_forward(config, bias=config.flag("use_bias")))
    return model("ernie4_5", config, [layer] * num_layers(config))


def _ernie_moe(config: Config) -> ModelSpec:
    total, bias = num_layers(config), config.flag("use_bias")
    dense = Layer(_attention(config), feed_forward(config, bias=bias))
    sparse = replace(dense, ffn=_experts(config))
    first, last = config.count("moe_layer_start_index", least=0), config.count("moe_layer_end_index", -1, least=-1)
    among = range(first, total if last == -1 else last + 1)
    period = config.count("moe_layer_interval")
    layers = [sparse if i in among and (i + 1) % period == 0 else dense for i in range(total)]
    return model("ernie4_5_moe", config, layers, head_bias=bias)


def _attention(config: Config) -> Attention:
    bias = config.flag("use_bias")
    attn = attention(config, qkv_bias=bias, out_bias=bias)
    return replace(attn, rope=rope(config, attn.head_dim, interleaved=True))


def _experts(config: Config) -> Experts:
    """Returns the experts. ``moe_norm_min`` is a lower bound of sums of weights, which softmax scores always exceed."""
    config.number("moe_norm_min", most=1e-6)
    config.choice("moe_gate", ("topk", "topk_fused"))
    choice_bias = config.flag("moe_use_aux_free", True)
    expert = feed_forward(config, "moe_intermediate_size")
    moe = Experts(router(config, "moe_num_experts", renormalise=True, choice_bias=choice_bias), expert)
    return with_shared(moe, config.count("moe_num_shared_experts", least=0), bias=config.flag("use_bias"))


_CHOICE_BIAS = "layers.{}.ffn.choice_bias"


def _published(spec: ModelSpec) -> Rules:
    """Returns rules for names in published files that differ from transformers, and ignores MTP layers."""
    return [
        Rule("model.layers.{}.mlp.moe_statics.e_score_correction_bias", (_CHOICE_BIAS,), (Row(),)),
        Ignore("model.mtp_*"),
    ]


_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
}

ERNIE_4_5 = Family(
    name="ernie4_5",
    models="ERNIE 4.5 0.3B",
    architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    spec=_ernie,
    defaults={**_DEFAULTS, "num_key_value_heads": 2, "head_dim": 128},
    gguf=Gguf(architecture="ernie4_5"),
)

ERNIE_4_5_MOE = Family(
    name="ernie4_5_moe",
    models="ERNIE 4.5 21B-A3B, 300B-A47B",
    architectures=("Ernie4_5_MoeForCausalLM",),
    spec=_ernie_moe,
    defaults={
        **_DEFAULTS,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
    },
    ignorable=("moe_capacity",),
    hub=Naming(
        {"layers.{}.ffn.choice_bias": "model.layers.{}.mlp.gate.moe_statics.e_score_correction_bias"}, _published
    ),
    gguf=Gguf(
        architecture="ernie4_5-moe",
        keys={
            "leading_dense_block_count": "moe_layer_start_index",
            "interleave_moe_layer_step": "moe_layer_interval",
            "expert_shared_count": "moe_num_shared_experts",
            "expert_shared_feed_forward_length": None,  # wrong in most published files; the count is used instead
        },
        implied=lambda config: {"moe_norm_min": 1e-12},
    ),
)
