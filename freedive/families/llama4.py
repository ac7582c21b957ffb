"""The text part of Meta's Llama 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freedive.checkpoint.rule_steps import Transpose
from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, SHARED, Naming, feed_forward_names
from freedive.families.parts import FULL, attention, feed_forward, model, rotated_layers, router
from freedive.families.rope import rope
from freedive.model.spec import Attention, AttentionTemperature, Experts, Layer, ModelSpec

_CHUNKED = "chunked_attention"


def _llama4(config: Config) -> ModelSpec:
    """Returns the specification: every ``interleave_moe_layer_step``-th layer has experts unless ``moe_layers`` lists
    them; dense layers are wider.
    """
    attns = _attentions(config)
    expert, plain = feed_forward(config), feed_forward(config, "intermediate_size_mlp")
    moe = Experts(router(config, "num_local_experts", score="sigmoid", weighs_input=True), expert, shared=expert)
    step = config.count("interleave_moe_layer_step", 1)
    sparse = config.indices("moe_layers", len(attns)) or range(step - 1, len(attns), step)
    return model("llama4", config, [Layer(attn, moe if i in sparse else plain) for i, attn in enumerate(attns)])


def _attentions(config: Config) -> list[Attention]:
    """Returns the attention of each layer: chunked with rotary embedding, or full with an attention temperature."""
    rotated = rotated_layers(config)
    types = config.choices("layer_types", len(rotated), (FULL, _CHUNKED))
    types = types or [_CHUNKED if rotates else FULL for rotates in rotated]
    bias, chunk = config.flag("attention_bias"), config.count("attention_chunk_size", 0, least=0, most=1 << 30)
    plain = attention(config, rope=None, qkv_bias=bias, out_bias=bias)
    with_rope = replace(
        plain,
        rope=rope(config, plain.head_dim, interleaved=True),
        qk_norm="l2" if config.flag("use_qk_norm", True) else "",
        norm_after_rope=True,
    )
    plain = replace(plain, temperature=_temperature(config))
    return [
        replace(with_rope if rotates else plain, chunk=chunk if kind == _CHUNKED else 0)
        for rotates, kind in zip(rotated, types, strict=True)
    ]


def _temperature(config: Config) -> AttentionTemperature | None:
    temperature = AttentionTemperature(config.number("floor_scale"), config.number("attn_scale"))
    # The first published files have 4 instead of true.
    return temperature if config.choice("attn_temperature_tuning", (True, False, 4)) else None


def _rules(spec: ModelSpec) -> list[Rule]:
    """Returns rules for stacked experts, whose matrices are stored as [in, out]."""
    experts = "model.layers.{}.feed_forward.experts"
    return [
        Rule(f"{experts}.gate_up_proj", (f"{EXPERT}.gate", f"{EXPERT}.up"), (Transpose(),)),
        Rule(f"{experts}.down_proj", (f"{EXPERT}.down",), (Transpose(),)),
    ]


_TEMPERATURE = {"floor_scale": 8192, "attn_scale": 0.1}


def _gguf_implied(config: Config) -> dict[str, Any]:
    """Returns constants of the family; Maverick, which has 128 experts, has no norms of queries and keys."""
    return {"attention_chunk_size": 8192, "use_qk_norm": config.count("num_experts") != 128, **_TEMPERATURE}


LLAMA4 = Family(
    name="llama4",
    models="Llama 4 Scout, Maverick (text)",
    architectures=("Llama4ForConditionalGeneration", "Llama4ForCausalLM", "llama4_text"),
    spec=_llama4,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 5e5,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 16384,
        "attention_chunk_size": 8192,
        **_TEMPERATURE,
    },
    ignorable=("for_llm_compressor",),
    hub=Naming(
        {
            "layers.{}.ffn.router": "model.layers.{}.feed_forward.router.weight",
            **feed_forward_names("layers.{}.ffn", "model.layers.{}.feed_forward."),
            **feed_forward_names(EXPERT, "model.layers.{}.feed_forward.experts.{}."),
            **feed_forward_names(SHARED, "model.layers.{}.feed_forward.shared_expert."),
        },
        _rules,
    ),
    gguf=Gguf(
        architecture="llama4",
        keys={
            "feed_forward_length": "intermediate_size_mlp",
            "expert_feed_forward_length": "intermediate_size",
            "interleave_moe_layer_step": "interleave_moe_layer_step",
        },
        implied=_gguf_implied,
    ),
)
