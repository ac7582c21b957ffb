"""The text part of Google's Gemma 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from freedive.checkpoint.rule_steps import Scale
from freedive.checkpoint.rules import Ignore, Rule, Rules
from freedive.errors import UserError
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, SHARED, Naming, feed_forward_names
from freedive.families.parts import FULL, SLIDING, attention, layer_types, model, num_layers, router, window
from freedive.families.rope import rope
from freedive.model.spec import Attention, Experts, FeedForward, Layer, ModelSpec


def _gemma4(config: Config) -> ModelSpec:
    return _decoder("gemma4", config)


def _gemma4_unified(config: Config) -> ModelSpec:
    return _decoder("gemma4_unified", config)


def _decoder(family: str, config: Config) -> ModelSpec:
    types, num_shared = _types(config), _num_shared(config)
    first_shared = len(types) - num_shared
    layers = [
        Layer(_mixer(config, index, types, first_shared), _feeder(config, index >= first_shared), True, out_scale=True)
        for index in range(len(types))
    ]
    config.choice("use_bidirectional_attention", ("vision",))  # tokens of text attend to earlier ones only
    config.choice("hidden_activation", ("gelu_pytorch_tanh",))
    return model(
        family,
        config,
        layers,
        embed_scale=config.count("hidden_size") ** 0.5,
        logit_softcap=config.number("final_logit_softcapping", 0.0, least=0),
        token_input=_token_input(config),
    )


def _types(config: Config) -> Sequence[str]:
    """Returns the type of each layer; transformers makes the last one full, whatever its type is in the list."""
    total = num_layers(config)
    return [*layer_types(config, [SLIDING if (i + 1) % 6 else FULL for i in range(total)])[:-1], FULL]


def _num_shared(config: Config) -> int:
    """Returns the number of last layers that attend to keys and values of earlier layers."""
    return config.count("num_kv_shared_layers", 0, least=0, most=num_layers(config) - 1)


def _mixer(config: Config, index: int, types: Sequence[str], first_shared: int) -> Attention:
    """Returns the attention of a layer; a shared one has the keys and values of the last own layer of its type."""
    attn = _attention(config, index, types[index])
    if index < first_shared:
        return attn
    own = [i for i in range(first_shared) if types[i] == types[index]]
    if not own:
        raise config.refusal("num_kv_shared_layers", f"leaves no layer with keys and values of type {types[index]}")
    return replace(attn, kv_layer=own[-1], values="own", v_norm=False)


def _attention(config: Config, index: int, kind: str) -> Attention:
    head_dim, num_kv_heads = _heads(config, index, kind)
    bias, shares = config.flag("attention_bias"), config.flag("attention_k_eq_v") and kind == FULL
    return replace(
        attention(config, rope=rope(config, head_dim, kind=kind), qk_norm="head", qkv_bias=bias, out_bias=bias),
        head_dim=head_dim,
        num_kv_heads=num_kv_heads,
        scale=1.0,
        window=window(config) * (kind == SLIDING),
        values="keys" if shares else "own",
        v_norm=True,
    )


def _heads(config: Config, index: int, kind: str) -> tuple[int, int]:
    """Returns the dimension of a head and the number of key-value heads of a layer.

    Newer releases of transformers write the differences of each layer, earlier ones those of full layers.
    """
    head_dim, num_kv_heads = config.count("head_dim", most=4096), config.count("num_key_value_heads", most=4096)
    full_dim = config.count("global_head_dim", 512, most=4096)
    num_full = config.count("num_global_key_value_heads", num_kv_heads, most=4096)
    if "per_layer_config" in config:
        own = config.section("per_layer_config").section(str(index))
        return own.count("head_dim", head_dim, most=4096), own.count("num_key_value_heads", num_kv_heads, most=4096)
    if kind != FULL:
        return head_dim, num_kv_heads
    return full_dim, num_full if config.flag("attention_k_eq_v") else num_kv_heads


def _feeder(config: Config, is_shared: bool) -> FeedForward | Experts:
    wide = config.flag("use_double_wide_mlp") and is_shared
    dense = FeedForward(config.count("intermediate_size") * (2 if wide else 1), "gelu_tanh")
    if not config.flag("enable_moe_block"):
        return dense
    config.respell({"top_k_experts": "num_experts_per_tok"})
    expert = FeedForward(config.count("moe_intermediate_size"), "gelu_tanh")
    return Experts(router(config, renormalise=True, expert_scale=True), expert, shared=dense, branch_norms=True)


def _token_input(config: Config) -> int:
    dim = config.count("hidden_size_per_layer_input", 0, least=0, most=1 << 16)
    vocab = config.count("vocab_size", most=1 << 22)
    if config.count("vocab_size_per_layer_input", vocab, least=0, most=1 << 22) != vocab and dim:
        raise config.refusal("vocab_size_per_layer_input", f"differs from a vocabulary of {vocab} tokens")
    return dim


_ATTN, _FFN, _INPUT = "layers.{}.attn", "layers.{}.ffn", "layers.{}.input"
_GATE_UP = (f"{EXPERT}.gate", f"{EXPERT}.up")
_LAYER = "model.layers.{}"
_RENAMES = {
    f"{_ATTN}.post_norm": f"{_LAYER}.post_attention_layernorm.weight",
    f"{_FFN}.norm": f"{_LAYER}.pre_feedforward_layernorm.weight",
    f"{_FFN}.post_norm": f"{_LAYER}.post_feedforward_layernorm.weight",
    f"{_FFN}.shared_post_norm": f"{_LAYER}.post_feedforward_layernorm_1.weight",
    f"{_FFN}.experts_norm": f"{_LAYER}.pre_feedforward_layernorm_2.weight",
    f"{_FFN}.experts_post_norm": f"{_LAYER}.post_feedforward_layernorm_2.weight",
    f"{_FFN}.router": f"{_LAYER}.router.proj.weight",
    f"{_FFN}.expert_scale": f"{_LAYER}.router.per_expert_scale",
    **feed_forward_names(SHARED, f"{_LAYER}.mlp."),
    f"{_INPUT}.gate": f"{_LAYER}.per_layer_input_gate.weight",
    f"{_INPUT}.proj": f"{_LAYER}.per_layer_projection.weight",
    f"{_INPUT}.post_norm": f"{_LAYER}.post_per_layer_input_norm.weight",
    "layers.{}.out_scale": f"{_LAYER}.layer_scalar",
    "inputs.embed": "model.embed_tokens_per_layer.weight",
    "inputs.proj": "model.per_layer_model_projection.weight",
    "inputs.norm": "model.per_layer_projection_norm.weight",
}
_GGUF_RENAMES = {
    f"{_FFN}.shared_post_norm": "blk.{}.post_ffw_norm_1.weight",
    f"{_FFN}.experts_norm": "blk.{}.pre_ffw_norm_2.weight",
    f"{_FFN}.experts_post_norm": "blk.{}.post_ffw_norm_2.weight",
    f"{_FFN}.expert_scale": "blk.{}.ffn_down_exps.scale",
    **feed_forward_names(SHARED, "blk.{}.", ("ffn_gate", "ffn_up", "ffn_down")),
    f"{_INPUT}.gate": "blk.{}.inp_gate.weight",
    f"{_INPUT}.proj": "blk.{}.proj.weight",
    f"{_INPUT}.post_norm": "blk.{}.post_norm.weight",
    "layers.{}.out_scale": "blk.{}.layer_output_scale.weight",
    "inputs.embed": "per_layer_token_embd.weight",
    "inputs.proj": "per_layer_model_proj.weight",
    "inputs.norm": "per_layer_proj_norm.weight",
}


def _rules(spec: ModelSpec) -> Rules:
    return [
        _router_norm(spec, f"{_LAYER}.router.scale"),
        Rule(f"{_LAYER}.experts.gate_up_proj", _GATE_UP),
        Rule(f"{_LAYER}.experts.down_proj", (f"{EXPERT}.down",)),
        *_single_experts(),
        *_unused(spec, "model.layers.{}.self_attn.{}", ("k_proj", "v_proj", "k_norm", "v_norm")),
    ]


def _single_experts() -> list[Rule]:
    """Returns the rules of experts that are not stacked, as quantised files have them under either name."""
    prefixes = (f"{_LAYER}.experts.{{}}.", f"{_LAYER}.moe.experts.{{}}.")
    named = [feed_forward_names(EXPERT, prefix) for prefix in prefixes]
    return [Rule(theirs, (ours,)) for names in named for ours, theirs in names.items()]


def _gguf_rules(spec: ModelSpec) -> Rules:
    return [
        _router_norm(spec, "blk.{}.ffn_gate_inp.scale"),
        Rule("blk.{}.ffn_gate_up_exps.weight", _GATE_UP),
        *_unused(spec, "blk.{}.{}", ("attn_k.", "attn_v.", "attn_k_norm.")),
    ]


def _router_norm(spec: ModelSpec, theirs: str) -> Rule:
    """Returns the rule of the norm of the router, whose result is also multiplied by hidden_dim^-0.5."""
    return Rule(theirs, (f"{_FFN}.router_norm",), (Scale(spec.hidden_dim**-0.5),))


def _unused(spec: ModelSpec, theirs: str, names: Sequence[str]) -> list[Ignore]:
    """Returns the tensors that files have for layers with the keys and values of other layers."""
    mixers = [layer.mixer for layer in spec.layers]
    shared = [index for index, mixer in enumerate(mixers) if isinstance(mixer, Attention) and mixer.kv_layer >= 0]
    return [Ignore(f"{theirs.format(index, name)}*") for index in shared for name in names]


def _implied(config: Config) -> dict[str, Any]:
    """Returns the keys of config.json that follow from lists by layer and from the factors of the rotary embedding."""
    total = num_layers(config)
    types = _types(config)
    heads = config.counts("heads_by_layer", total, most=4096)
    widths = config.counts("widths_by_layer", total)
    head_dim = config.count("global_head_dim", most=4096)
    divisors = config.numbers("rope_divisors", head_dim // 2, least=1e-3, most=1e31)
    if divisors is None:  # llama.cpp needs it too; nothing else says which part of a head rotates
        raise UserError("The tensor rope_freqs.weight is missing", "The file is incomplete: fetch the model again")
    turned = len(list(takewhile(lambda divisor: divisor < 1e29, divisors)))
    return {
        "num_key_value_heads": heads[types.index(SLIDING)] if SLIDING in types else heads[-1],
        "num_global_key_value_heads": heads[types.index(FULL)],
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] > widths[0],
        "enable_moe_block": "num_experts" in config,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": config.number("rope_theta_swa", 1e4)},
            FULL: {
                "rope_type": "proportional",
                "rope_theta": config.number("rope_theta", 1e6),
                "partial_rotary_factor": 2 * turned / head_dim,
            },
        },
    }


_GGUF_KEYS: Mapping[str, str | None] = {
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "layer_types",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "attention.head_count_kv": "heads_by_layer",
    "feed_forward_length": "widths_by_layer",
    "embedding_length_per_layer_input": "hidden_size_per_layer_input",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.key_length": "global_head_dim",
    "attention.key_length_swa": "head_dim",
    "rope.freq_base_swa": "rope_theta_swa",
    # llama.cpp refuses values of other widths than keys; heads rotate whole, by the factors in a tensor
    **dict.fromkeys(("attention.value_length", "attention.value_length_swa")),
    **dict.fromkeys(("rope.dimension_count", "rope.dimension_count_swa")),
}
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262144,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    },
}
_IGNORABLE = ("num_experts", "top_k_experts", "moe_intermediate_size")

GEMMA4 = Family(
    name="gemma4",
    models="Gemma 4 26B-A4B, 31B, E2B and E4B (text)",
    architectures=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM", "gemma4_text"),
    spec=_gemma4,
    defaults={**_DEFAULTS, "hidden_size_per_layer_input": 256},
    ignorable=_IGNORABLE,
    hub=Naming(_RENAMES, _rules),
    gguf=Gguf(_GGUF_RENAMES, _gguf_rules, architecture="gemma4", keys=_GGUF_KEYS, implied=_implied),
)
GEMMA4_UNIFIED = Family(
    name="gemma4_unified",
    models="Gemma 4 12B (text)",
    architectures=("Gemma4UnifiedForConditionalGeneration", "Gemma4UnifiedForCausalLM", "gemma4_unified_text"),
    spec=_gemma4_unified,
    defaults={**_DEFAULTS, "max_position_embeddings": 262144, "sliding_window": 1024},
    hub=Naming(_RENAMES, _rules),
)
