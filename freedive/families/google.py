"""Google's Gemma 1, Gemma 2 and the text part of Gemma 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from freedive.checkpoint.rule_steps import Add
from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import HUB, Naming
from freedive.families.parts import FULL, SLIDING, attention, layer_types, model, num_layers, window
from freedive.families.rope import plain_rope, rope
from freedive.model.spec import Attention, FeedForward, Layer, ModelSpec


def _gemma(config: Config) -> ModelSpec:
    # The first files have "gelu", but mean its tanh approximation.
    config.choice("hidden_act", ("gelu_pytorch_tanh", "gelu"))
    return _decoder("gemma", config, [_attention(config)] * num_layers(config))


def _gemma2(config: Config) -> ModelSpec:
    softcap = config.number("attn_logit_softcapping", 0.0, least=0)
    attn = replace(_attention(config), scale=_scale(config), softcap=softcap)
    kinds = {FULL: attn, SLIDING: replace(attn, window=window(config))}
    return _decoder("gemma2", config, [kinds[kind] for kind in _types(config, 2)], post_norms=True)


def _gemma3(config: Config) -> ModelSpec:
    attn = replace(_attention(config), scale=_scale(config), qk_norm="head")
    if "rope_parameters" in config:
        for kind in (FULL, SLIDING):  # each kind must have its own rope_theta
            config.section("rope_parameters").section(kind).number("rope_theta")
        local = rope(config, attn.head_dim, kind=SLIDING)
    else:
        local = plain_rope(config.number("rope_local_base_freq", 1e4, least=2), attn.head_dim)
    kinds = {FULL: attn, SLIDING: replace(attn, window=window(config), rope=local)}
    period = config.count("sliding_window_pattern", 6)
    return _decoder("gemma3", config, [kinds[kind] for kind in _types(config, period)], post_norms=True)


def _attention(config: Config) -> Attention:
    bias = config.flag("attention_bias")
    return attention(config, qkv_bias=bias, out_bias=bias)


def _scale(config: Config) -> float:
    return float(config.number("query_pre_attn_scalar") ** -0.5)


def _types(config: Config, period: int) -> Sequence[str]:
    """Returns the type of each layer: every ``period``-th has no window, unless ``layer_types`` lists the types."""
    return layer_types(config, [SLIDING if (i + 1) % period else FULL for i in range(num_layers(config))])


def _decoder(family: str, config: Config, attns: Sequence[Attention], *, post_norms: bool = False) -> ModelSpec:
    config.choice("hidden_activation", ("gelu_pytorch_tanh",))
    ffn = FeedForward(config.count("intermediate_size"), "gelu_tanh")
    return model(
        family,
        config,
        [Layer(attn, ffn, post_norms) for attn in attns],
        embed_scale=config.count("hidden_size") ** 0.5,
        logit_softcap=config.number("final_logit_softcapping", 0.0, least=0),
    )


_SANDWICH = {
    "layers.{}.attn.post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.ffn.norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.ffn.post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}


def _naming(renames: dict[str, str]) -> Naming:
    """Returns the naming of Gemma, whose norms multiply by 1 + weight."""
    norms = {ours: theirs for ours, theirs in {**HUB, **renames}.items() if ours.endswith("norm")}
    rules = [Rule(theirs, (ours,), (Add(1.0),)) for ours, theirs in norms.items()]
    return Naming(renames, lambda spec: rules)


def _gguf_scale(config: Config, num_layers_27b: int) -> dict[str, int]:
    """Returns the scale of queries; 27B models have another one, and their number of layers identifies them."""
    if config.count("num_hidden_layers") == num_layers_27b:
        return {"query_pre_attn_scalar": config.count("hidden_size") // config.count("num_attention_heads")}
    return {"query_pre_attn_scalar": config.count("head_dim")}


_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_IGNORABLE = ("hidden_act",)
_FIXED = {"use_bidirectional_attention": False}  # true in encoders
_GGUF_KEYS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

GEMMA = Family(
    name="gemma",
    models="Gemma 1",
    architectures=("GemmaForCausalLM",),
    spec=_gemma,
    defaults={**_DEFAULTS, "num_key_value_heads": 16},
    fixed=_FIXED,
    hub=_naming({}),
    gguf=Gguf(architecture="gemma"),
)

GEMMA2 = Family(
    name="gemma2",
    models="Gemma 2",
    architectures=("Gemma2ForCausalLM",),
    spec=_gemma2,
    defaults={**_DEFAULTS, **_SOFTCAPS},
    ignorable=(*_IGNORABLE, "sliding_window_size"),
    fixed=_FIXED,
    hub=_naming(_SANDWICH),
    gguf=Gguf(
        architecture="gemma2",
        keys=_GGUF_KEYS,
        implied=lambda config: {"sliding_window": 4096, **_SOFTCAPS, **_gguf_scale(config, 46)},
    ),
)

GEMMA3 = Family(
    name="gemma3",
    models="Gemma 3 (text)",
    architectures=("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM", "gemma3_text"),
    spec=_gemma3,
    defaults={
        **_DEFAULTS,
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
    },
    ignorable=(*_IGNORABLE, "_sliding_window_pattern"),
    fixed=_FIXED,
    hub=_naming(_SANDWICH),
    gguf=Gguf(
        architecture="gemma3",
        keys={**_GGUF_KEYS, "rope.freq_base_swa": "rope_local_base_freq"},
        implied=lambda config: _gguf_scale(config, 62),
    ),
)
