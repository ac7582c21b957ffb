"""Meta's Muse Glimmer: gated attention, norms around both branches, normed embeddings, and positions only in layers
with a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rule_steps import Add
from freedive.checkpoint.rules import Ignore, Rule, Rules
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import HUB, Naming, interleaved_heads
from freedive.families.parts import FULL, SLIDING, attention, layer_types, model, num_layers, window
from freedive.families.rope import rope
from freedive.model.spec import Attention, FeedForward, Layer, ModelSpec


def _muse_glimmer(config: Config) -> ModelSpec:
    config.choice("hidden_activation", ("silu",))
    ffn = FeedForward(config.count("intermediate_size"))
    return model(
        "muse_glimmer",
        config,
        [Layer(attn, ffn, post_norms=True) for attn in _attentions(config)],
        embed_norm=True,
        post_norm_eps=config.number("post_norm_eps", most=1),
        logit_scale=config.number("output_multiplier"),
        logit_softcap=config.number("final_logit_softcapping", 0.0, least=0),
    )


def _attentions(config: Config) -> Sequence[Attention]:
    """Returns attention of each layer; one layer in four, counted from the last, has no window and no positions."""
    total = num_layers(config)
    types = layer_types(config, [SLIDING if (total - 1 - i) % 4 else FULL for i in range(total)])
    plain = attention(config, rope=None, qk_norm="l2", output_gate=True)
    turning = rope(config, plain.head_dim)
    plain = replace(plain, scale=plain.scale * config.number("qk_scale_factor"))
    thetas = config.numbers("layer_rope_theta", total, least=0, most=1e12)
    turns = [bool(theta) for theta in thetas] if thetas else [bool((total - 1 - i) % 4) for i in range(total)]
    return [
        replace(plain, rope=turning if turn else None, window=window(config) if kind == SLIDING else 0)
        for kind, turn in zip(types, turns, strict=True)
    ]


_LAYER = "model.layers.{}."
_RENAMES = {
    "layers.{}.attn.gate": f"{_LAYER}self_attn.gate_proj.weight",
    "layers.{}.attn.post_norm": f"{_LAYER}post_attention_layernorm.weight",
    "layers.{}.ffn.norm": f"{_LAYER}pre_feedforward_layernorm.weight",
    "layers.{}.ffn.post_norm": f"{_LAYER}post_feedforward_layernorm.weight",
}


def _hub_rules(spec: ModelSpec) -> Rules:
    """Returns the rules of the norms in layers, which multiply by 1 + weight."""
    norms = {ours: theirs for ours, theirs in {**HUB, **_RENAMES}.items() if ours.endswith((".norm", ".post_norm"))}
    return [Rule(theirs, (ours,), (Add(1.0),)) for ours, theirs in norms.items() if ours.startswith("layers.")]


def _gguf_rules(spec: ModelSpec) -> Rules:
    """Returns the rules of rotated rows; norms of queries and keys only have the factor of queries."""
    return [*interleaved_heads(spec), *(Ignore(f"blk.{{}}.attn_{name}_norm.weight") for name in "qk")]


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns what llama.cpp has in its code: the layers with a window are those with positions."""
    types = layer_types(config, [FULL] * num_layers(config))
    return {"post_norm_eps": 1e-8, "layer_rope_theta": [1e4 if kind == SLIDING else 0.0 for kind in types]}


MUSE_GLIMMER = Family(
    name="muse_glimmer",
    models="Muse Glimmer 30B (text)",
    architectures=("MuseGlimmerForConditionalGeneration", "MuseGlimmerForCausalLM", "muse_glimmer_text"),
    spec=_muse_glimmer,
    defaults={
        "rms_norm_eps": 1e-5,
        "post_norm_eps": 1e-8,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "sliding_window": 2048,
        "qk_scale_factor": 3.87,
        "output_multiplier": 0.19611613513818404,
        "final_logit_softcapping": 20.0,
    },
    fixed={"attention_bias": False},
    hub=Naming(_RENAMES, _hub_rules),
    gguf=Gguf(
        {"layers.{}.attn.gate": "blk.{}.attn_gate.weight"},
        _gguf_rules,
        architecture="muse-glimmer",
        keys={
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "layer_types",
            "final_logit_softcapping": "final_logit_softcapping",
            "logit_scale": "output_multiplier",
        },
        implied=_gguf_implied,
    ),
)
