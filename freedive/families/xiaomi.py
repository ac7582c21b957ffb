"""Xiaomi's MiMo-V2-Flash: values narrower than keys, sinks in windows, and experts as in DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rules import Ignore, Rule
from freedive.families.config import Config
from freedive.families.deepseek import DENSE, SPARSE, decoder, unbiased_router
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import GGUF, MtpModule, Naming
from freedive.families.parts import FULL, SLIDING, attention, num_layers, window
from freedive.families.rope import plain_rope, rope
from freedive.model.spec import Attention, FeedForward, Layer, ModelSpec, Rope


def _mimo_v2_flash(config: Config) -> ModelSpec:
    config.respell({"layernorm_epsilon": "rms_norm_eps"})
    total = num_layers(config)
    attns = _attentions(config, total)
    kinds = config.choices("mlp_layer_types", total, (DENSE, SPARSE))
    kinds = kinds or _by_number(config, "moe_layer_freq", (DENSE, SPARSE)) or [DENSE] + [SPARSE] * (total - 1)
    gate = unbiased_router(config)
    return replace(decoder("mimo_v2_flash", config, attns, gate, list(kinds)), mtp_normed=False)


def _attentions(config: Config, total: int) -> Sequence[Attention]:
    full = attention(
        config,
        qkv_bias=config.flag("attention_bias"),
        value_dim=config.count("v_head_dim", most=4096),
        result_scale=config.number("attention_value_scale", 1.0),
        rope=None,
    )
    full = replace(full, rope=rope(config, full.head_dim, partial=True))
    assert full.rope
    slides = replace(full, window=_window(config), rope=_local_rope(config, full.head_dim, full.rope.dim), sinks=True)
    heads = config.count("swa_num_key_value_heads", 2 * full.num_kv_heads, most=4096)
    if full.num_heads % heads:
        raise config.refusal("swa_num_key_value_heads", f"({heads}) does not divide {full.num_heads} heads")
    kinds = {FULL: full, SLIDING: replace(slides, num_kv_heads=heads)}
    types = config.choices("layer_types", total, (FULL, SLIDING)) or _by_number(config, "hybrid_layer_pattern", _TYPES)
    types = types or [SLIDING if i and (i + 1) % 6 else FULL for i in range(total)]
    return [kinds[kind] for kind in types]


_TYPES = (FULL, SLIDING)


def _by_number(config: Config, key: str, kinds: tuple[str, str]) -> list[str]:
    """Returns the kind of each layer from the list ``key`` of 0 and 1; nothing if it is absent."""
    listed = config.numbers(key, num_layers(config), least=0, most=1)
    return [kinds[int(number)] for number in listed or ()]


def _window(config: Config) -> int:
    """Returns the window, which in published files has one position more than ``sliding_window_size``: a token attends
    to that many before its own.
    """
    before = config.count("sliding_window_size", 0, least=0, most=1 << 29)
    width = window(config)
    return before + 1 if before else width


def _local_rope(config: Config, head_dim: int, dim: int) -> Rope:
    if SLIDING in config.section("rope_parameters"):
        return rope(config, head_dim, kind=SLIDING, partial=True)
    return plain_rope(config.number("swa_rope_theta", 1e4, least=2), dim)


def _mtp_layer(config: Config, spec: ModelSpec) -> Layer:
    """Returns a layer with a window and a dense network, which its three MTP layers are; the first one is read."""
    slides = (layer for layer in spec.layers if isinstance(layer.mixer, Attention) and layer.mixer.window)
    dense = (layer.ffn for layer in spec.layers if isinstance(layer.ffn, FeedForward))
    return replace(next(slides, spec.layers[-1]), ffn=next(dense, spec.layers[-1].ffn))


def _gguf_implied(config: Config) -> Mapping[str, Any]:
    """Returns what the metadata say by block, blocks of MTP among them; the first layer is dense."""
    blocks = config.count("num_blocks")
    heads = config.counts("num_key_value_heads_per_block", blocks, most=4096)
    types = config.choices("block_types", blocks, _TYPES) or [FULL] * blocks
    by_kind = dict(zip(reversed(types), reversed(heads), strict=True))
    return {
        "num_key_value_heads": by_kind.get(FULL, heads[0]),
        "swa_num_key_value_heads": by_kind.get(SLIDING, heads[0]),
        "layer_types": types[: config.count("num_hidden_layers")],
    }


_MTP = "model.mtp.layers.0."
_QKV = tuple(f"layers.{{}}.attn.{name}" for name in "qkv")

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "sliding_window": 129,
    "attention_value_scale": 0.707,
    "rope_theta": 5e6,
    "partial_rotary_factor": 0.334,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
}

MIMO_V2_FLASH = Family(
    name="mimo_v2_flash",
    models="MiMo-V2-Flash 309B-A15B",
    architectures=("MiMoV2FlashForCausalLM",),
    spec=_mimo_v2_flash,
    defaults=_DEFAULTS,
    ignorable=(
        "hybrid_block_size",
        "swa_head_dim",
        "swa_num_attention_heads",
        "swa_v_head_dim",
        "attention_chunk_size",
    ),
    fixed={
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "n_shared_experts": None,
    },
    mtp_layer=_mtp_layer,
    hub=Naming(
        rules=lambda spec: [
            Rule("model.layers.{}.self_attn.attention_sink_bias", ("layers.{}.attn.sinks",)),
            Ignore("model.mtp.*"),
        ],
        mtp_module=MtpModule(
            _MTP, {"shared_head.norm": f"{_MTP}final_layernorm", "post_attention_layernorm": f"{_MTP}pre_mlp_layernorm"}
        ),
    ),
    gguf=Gguf(
        {"layers.{}.mtp.norm": "blk.{}.layer_output_norm.weight"},
        lambda spec: [
            *(Rule(GGUF[name], (name,)) for name in _QKV),
            Rule("blk.{}.attn_qkv.weight", _QKV),  # files whose drafting layers llama.cpp runs
        ],
        architecture="mimo2",
        keys={
            "attention.head_count_kv": "num_key_value_heads_per_block",
            "attention.sliding_window": "sliding_window_size",
            "attention.sliding_window_pattern": "block_types",
            "attention.value_scale": "attention_value_scale",
            "rope.freq_base_swa": "swa_rope_theta",
        },
        implied=_gguf_implied,
    ),
)
