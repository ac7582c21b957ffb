"""Huawei's openPangu: Embedded, which is Llama with biases; Pro MoE, which chooses one expert of each group (MoGE)."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rule_steps import Row
from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import SHARED, Naming, feed_forward_names
from freedive.families.parts import attention, feed_forward, model, num_layers, router
from freedive.model.spec import Attention, Experts, Layer, ModelSpec


def _embedded(config: Config) -> ModelSpec:
    return model("PanguEmbedded", config, [Layer(_biased(config), feed_forward(config))] * num_layers(config))


def _pro_moe(config: Config) -> ModelSpec:
    """Returns a mixture of grouped experts (Tang et al. 2025): the number of groups is that of experts per token."""
    moge = router(config, group_choice="each", expert_scale=True)
    if moge.num_experts % moge.num_chosen:
        raise config.refusal("num_experts", f"({moge.num_experts}) does not make {moge.num_chosen} equal groups")
    expert, shared = (feed_forward(config, f"{part}_intermediate_size") for part in ("moe", "shared_expert"))
    layer = Layer(_biased(config), Experts(replace(moge, num_groups=moge.num_chosen), expert, shared))
    return model("PanguProMoE", config, [layer] * num_layers(config))


def _biased(config: Config) -> Attention:
    bias = config.flag(config.first("attention_bias", "bias"), True)
    return attention(config, qkv_bias=bias, out_bias=bias)


_DEFAULTS = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 16_000_000.0}

PANGU_EMBEDDED = Family(
    name="PanguEmbedded",
    models="openPangu Embedded 1B, 7B",
    architectures=("PanguEmbeddedForCausalLM",),
    spec=_embedded,
    defaults={**_DEFAULTS, "max_position_embeddings": 32768},
    fixed={"mlp_bias": False},
    gguf=Gguf(architecture="pangu-embedded"),
)

PANGU_PRO_MOE = Family(
    name="PanguProMoE",
    models="openPangu Pro MoE 72B",
    architectures=("PanguProMoEForCausalLM",),
    spec=_pro_moe,
    defaults={**_DEFAULTS, "max_position_embeddings": 131072},
    ignorable=("intermediate_size",),  # no layer is dense
    fixed={"mlp_bias": False},
    hub=Naming(
        feed_forward_names(SHARED, "model.layers.{}.mlp.shared_expert."),
        lambda spec: [Rule("model.layers.{}.mlp.router_scale", ("layers.{}.ffn.expert_scale",), (Row(),))],
    ),
)
