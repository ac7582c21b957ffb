"""Tiny models as GGUF files, with the metadata that llama.cpp's converter writes (its folder `conversion`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_configs import LOCAL_ROPE, YARN_ROPE
from tiny_models import float_tensor, maker_model

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.families import FAMILIES, describe
from freedive.families.names import gguf_rules
from freedive.model.spec import DeltaRule, ModelSpec

Settings = Mapping[str, Any]

ONE_BASE: Settings = {**LOCAL_ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
"""llama.cpp has one base for all layers of OLMo 3 and Mellum, as the published models do."""

ARCHITECTURES: dict[str, tuple[str, Settings]] = {
    "llama": ("llama", {}),
    "llama2": ("llama", {}),
    "mistral": ("llama", {"sliding_window": None}),
    "mixtral": ("llama", {"sliding_window": None}),
    "ministral3": ("mistral3", {}),
    "mistral4": ("mistral4", {}),
    "mistral4_grouped": ("mistral4", {"q_lora_rank": 24}),
    "minimax_m2": ("minimax-m2", {}),
    "phi3": ("phi3", {}),
    "phi4_mini": ("phi3", {}),
    "llama4": ("llama4", {"attention_chunk_size": 8192, "floor_scale": 8192}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen2_moe": ("qwen2moe", {"mlp_only_layers": []}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3moe", {"mlp_only_layers": []}),
    "olmoe": ("olmoe", {"clip_qkv": None, "num_key_value_heads": 4}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo2", {"rope_parameters": ONE_BASE}),
    "exaone4": ("exaone4", {"head_dim": 16, "num_hidden_layers": 64}),  # llama.cpp recognises windows by it
    "exaone4_full": ("exaone4", {}),
    "exaone_moe": ("exaone-moe", {}),
    "dots1": ("dots1", {"sliding_window": None, "num_key_value_heads": 4}),
    "solar_open": ("glm4moe", {}),
    "mellum": ("mellum", {"mlp_layer_types": ["sparse"] * 4, "rope_parameters": ONE_BASE}),
    "afmoe": ("afmoe", {}),
    "step3p7": ("step35", {}),
    "mimo_v2_flash": ("mimo2", {"routed_scaling_factor": 1.0}),
    "laguna": ("laguna", {}),
    "muse_glimmer": ("muse-glimmer", {"post_norm_eps": 1e-8}),
    "bailing_moe_v2": ("bailingmoe2", {"head_dim": 16}),
    "deepseek_v2": ("deepseek2", {"rope_parameters": {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    "deepseek_v2_lite": ("deepseek2", {"num_hidden_layers": 27}),  # llama.cpp recognises it by the number of layers
    "deepseek_v3": ("deepseek2", {}),
    "moonlight": ("deepseek2", {"num_hidden_layers": 27}),
    "glm4_moe_lite": ("deepseek2", {}),
    "gpt_oss": ("gpt-oss", {"swiglu_limit": 7.0}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4moe", {}),
    "ernie4_5": ("ernie4_5", {"use_bias": False}),
    "ernie4_5_moe": ("ernie4_5-moe", {"intermediate_size": 128}),
    "hunyuan_dense": ("hunyuan-dense", {}),
    "hunyuan_moe": ("hunyuan-moe", {}),
    "hy_v3": ("hy_v3", {}),
    "seed_oss": ("seed_oss", {}),
    "pangu_embedded": ("pangu-embedded", {}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", {}),
    "granitemoeshared": ("granitemoe", {}),
    "granitemoehybrid": ("granitemoe", {"position_embedding_type": "rope"}),
    "granitemoehybrid_dense": ("granite", {"num_experts_per_tok": 0}),
    "granite_swa": ("granite_swa", {"layer_rope_theta": [0, 1e4, 1e4, 1e4]}),
    "granitemoe_swa": ("granite_swa", {"layer_rope_theta": [0, 1e4, 1e4, 1e4]}),
    "lfm2": ("lfm2", {"conv_bias": False}),
    "lfm2_moe": ("lfm2moe", {"routed_scaling_factor": 1.0}),
    "kimi_linear": ("kimi-linear", {"linear_num_heads": 4}),
    "bailing_hybrid": ("bailingmoe3", {}),
    "qwen3_next": ("qwen3next", {"mlp_only_layers": [], "linear_value_head_dim": 16}),
    "qwen3_5": ("qwen35", {}),
    "qwen3_5_moe": ("qwen35moe", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32}),
    "gemma4": ("gemma4", {}),
    "gemma4_inputs": ("gemma4", {}),
    "gemma4_unified": ("gemma4", {}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window_pattern": 6}),
}
"""llama.cpp's name of a tiny configuration, and the changes for traits that it fixes or lacks."""

READ_AS = {"mistral": "llama", "glm4_moe_lite": "deepseek_v3", "solar_open": "glm4_moe", "gemma4_unified": "gemma4"}
READ_AS |= {"granitemoehybrid": "granitemoe", "granitemoehybrid_dense": "granite"}
"""The family that reads a tiny configuration whose own family has no architecture in llama.cpp."""

TILED = {"qwen3_5", "qwen3_5_moe"}
"""Tiny configurations of which llama.cpp's converter moves the value heads."""


def save_both(name: str, folder: Path) -> Path:
    """Writes the tiny model ``name`` into ``folder`` in its maker's format, and as a GGUF file whose path
    is returned."""
    model = maker_model(name, **ARCHITECTURES[name][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    spec, rules = describe(checkpoint)
    canonical = with_tiled_heads(spec, canonical_tensors(checkpoint, spec, rules)) if name in TILED else None
    tensors = maker_tensors(canonical or canonical_tensors(checkpoint, spec, rules), _gguf_rules(name, spec))
    path = folder / "gguf" / "model.gguf"
    path.parent.mkdir()
    write_gguf(path, metadata(name, checkpoint.config), {**_rope_factors(model), **_query_factors(model), **tensors})
    return path


def with_tiled_heads(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with the value heads of a key head as far apart as there are key heads."""
    moved = dict(tensors)
    for index, layer in enumerate(spec.layers):
        if isinstance(delta := layer.mixer, DeltaRule):
            order = np.arange(delta.num_value_heads).reshape(delta.num_key_heads, -1).T.ravel()
            rows = dict.fromkeys(("in_v", "in_gate", "in_beta", "in_decay", "rate", "dt_bias"), 0)
            for name, axis in {**rows, "v_conv": 1, "out": 1}.items():
                key = f"layers.{index}.attn.{name}"
                values = dequantize(tensors[key])
                matrix = values.reshape(delta.kernel, -1) if name == "v_conv" else values
                heads = np.stack(np.split(matrix, delta.num_value_heads, axis))[order]
                moved[key] = float_tensor(key, np.concatenate(heads, axis).reshape(values.shape))
    return moved


def metadata(name: str, config: Settings) -> dict[str, Any]:
    """Returns the metadata that the converter makes of config.json."""
    architecture = ARCHITECTURES[name][0]
    values = _common(config) | EXTRA.get(architecture, lambda config: {})(config)
    given = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture, **given}


def _gguf_rules(name: str, spec: ModelSpec) -> list[Any]:
    (family,) = (family for family in FAMILIES if family.name == READ_AS.get(name, spec.family))
    assert family.gguf.architecture == ARCHITECTURES[name][0]
    return gguf_rules(spec, family.gguf)


def _rope_factors(model: Any) -> dict[str, Tensor]:
    """Returns the factor by which Llama 3 slows each frequency, Gemma 4's for full attention, or both of LongRoPE."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", {})
    if rope.get("full_attention", {}).get("rope_type") == "proportional":
        turns = model.model.rotary_emb.full_attention_inv_freq.numpy() > 0
        return {"rope_freqs.weight": float_tensor("rope_freqs.weight", np.where(turns, 1, 1e30).astype(np.float32))}
    if rope.get("full_attention", {}).get("rope_type") == "llama3":
        dim = model.config.head_dim
        turns = model.model.rotary_emb.full_attention_inv_freq.numpy()
        plain = rope["full_attention"]["rope_theta"] ** -(np.arange(len(turns)) / len(turns))
        factors = np.concatenate([plain / turns, np.ones(dim // 2 - len(turns))]).astype(np.float32)
        return {"rope_freqs.weight": float_tensor("rope_freqs.weight", factors)}
    if rope.get("rope_type") == "longrope":
        lists = {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("short", "long")}
        return {name: float_tensor(name, np.array(factors, np.float32)) for name, factors in lists.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    plain = rope["rope_theta"] ** -(np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    return {"rope_freqs.weight": float_tensor("rope_freqs.weight", factors.astype(np.float32))}


def _query_factors(model: Any) -> dict[str, Tensor]:
    """Returns the norms of queries and keys by which the converter writes Muse Glimmer's factor of queries."""
    config = model.config
    if not hasattr(config, "qk_scale_factor"):
        return {}
    numbers = {
        f"blk.{index}.attn_{name}_norm.weight": np.full(config.head_dim, number, np.float32)
        for index in range(config.num_hidden_layers)
        for name, number in (("q", config.qk_scale_factor), ("k", 1.0))
    }
    return {name: float_tensor(name, values) for name, values in numbers.items()}


COMMON = (
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.value_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("expert_count", "num_experts"),
    ("expert_count", "num_local_experts"),
    ("expert_count", "n_routed_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
)


def _common(config: Settings) -> dict[str, Any]:
    return {**_present(config, COMMON), **_rope(config.get("rope_parameters") or {})}


def _present(config: Settings, keys: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {key: config[theirs] for key, theirs in keys if config.get(theirs) is not None}


def _rope(rope: Settings) -> dict[str, Any]:
    if "full_attention" in rope:
        return {**_rope(rope["full_attention"]), "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"]}
    if rope.get("rope_type") not in ("linear", "yarn"):
        return _present(rope, (("rope.freq_base", "rope_theta"),))
    keys = (
        ("rope.freq_base", "rope_theta"),
        ("rope.scaling.type", "rope_type"),
        ("rope.scaling.factor", "factor"),
        ("rope.scaling.original_context_length", "original_max_position_embeddings"),
        ("rope.scaling.yarn_attn_factor", "attention_factor"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    )
    return _present(rope, keys)


def _llama(config: Settings) -> dict[str, Any]:
    return {"vocab_size": config["vocab_size"], "rope.dimension_count": _head_dim(config)}


def _head_dim(config: Settings) -> int:
    head_dim: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return head_dim


def _llama4(config: Settings) -> dict[str, Any]:
    return {
        **_llama(config),
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
    }


def _qwen_moe(config: Settings) -> dict[str, Any]:
    keys = (
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    )
    return _present(config, keys)


def _deepseek(config: Settings) -> dict[str, Any]:
    kv_rank, rope_dim = config["kv_lora_rank"], config["qk_rope_head_dim"]
    log_multiplier = 0.1 * config["rope_parameters"].get("mscale_all_dim", 0)
    return {
        **_first_dense(config),
        "attention.head_count_kv": 1,
        "vocab_size": config["vocab_size"],
        **_present(config, (("attention.q_lora_rank", "q_lora_rank"),)),
        "attention.kv_lora_rank": kv_rank,
        "attention.key_length": kv_rank + rope_dim,
        "attention.value_length": kv_rank,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope_dim,
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": rope_dim,
        **({"rope.scaling.yarn_log_multiplier": log_multiplier} if log_multiplier else {}),
        # published configurations of sigmoid routers contain scoring_func
        **({"expert_gating_func": 2} if config["model_type"] != "deepseek_v2" else {}),
    }


def _ministral3(config: Settings) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {
        **_llama(config),
        "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
        "attention.temperature_scale": rope["llama_4_scaling_beta"],
    }


def _mistral4(config: Settings) -> dict[str, Any]:
    """The converter writes no temperature, and no score, which is softmax."""
    return {**_deepseek(config), "expert_gating_func": None}


def _minimax_m2(config: Settings) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["intermediate_size"],
        "expert_gating_func": 2,
        "rope.dimension_count": config["head_dim"] // 2,
    }


def _phi3(config: Settings) -> dict[str, Any]:
    rope, longest = config["rope_parameters"], config["max_position_embeddings"]
    original = config["original_max_position_embeddings"]
    magnitude = (1 + np.log(longest / original) / np.log(original)) ** 0.5
    return {
        "rope.scaling.original_context_length": original,
        **({"rope.scaling.attn_factor": float(magnitude)} if "long_factor" in rope else {}),
        "rope.dimension_count": int(_head_dim(config) * rope.get("partial_rotary_factor", 1.0)),
        "attention.sliding_window": config.get("sliding_window") or 0,
    }


def _windows(config: Settings) -> dict[str, Any]:
    """Returns the window, and which layers have it."""
    if not config.get("sliding_window"):
        return {}
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
    }


def _exaone4(config: Settings) -> dict[str, Any]:
    return {**_windows(config), "vocab_size": config["vocab_size"]}


def _exaone_moe(config: Settings) -> dict[str, Any]:
    shared = config["num_shared_experts"]
    return {
        **_first_dense(config),
        **_exaone4(config),
        "expert_gating_func": 2,
        "expert_shared_count": shared,
        "expert_shared_feed_forward_length": shared * config["moe_intermediate_size"],
        "nextn_predict_layers": 0,
        "rope.scaling.type": "none",
    }


def _first_dense(config: Settings) -> dict[str, Any]:
    keys = (
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_count", "n_shared_experts"),
        ("expert_weights_scale", "routed_scaling_factor"),
        ("leading_dense_block_count", "first_k_dense_replace"),
    )
    normed = {"expert_weights_norm": True} if config.get("norm_topk_prob") else {}
    return {"leading_dense_block_count": 1, **_present(config, keys), **normed}


def _glm4(config: Settings) -> dict[str, Any]:
    fraction = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    return {"rope.dimension_count": int(_head_dim(config) * fraction)}


def _glm4_moe(config: Settings) -> dict[str, Any]:
    return {
        **_first_dense(config),
        **_glm4(config),
        "leading_dense_block_count": config.get("first_k_dense_replace"),
        "expert_gating_func": 2,
        "nextn_predict_layers": 0,
    }


def _dots1(config: Settings) -> dict[str, Any]:
    return {**_first_dense(config), "expert_gating_func": 2}


def _bailing_moe_v2(config: Settings) -> dict[str, Any]:
    width = config["moe_intermediate_size"] * config["n_shared_experts"]
    return {**_glm4_moe(config), "vocab_size": config["vocab_size"], "expert_shared_feed_forward_length": width}


def _mellum(config: Settings) -> dict[str, Any]:
    return {**_windows(config), "expert_feed_forward_length": config["moe_intermediate_size"]}


def _afmoe(config: Settings) -> dict[str, Any]:
    """The converter does not write which layers have the window."""
    keys = (
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_count", "num_shared_experts"),
        ("expert_weights_scale", "route_scale"),
        ("leading_dense_block_count", "num_dense_layers"),
        ("attention.sliding_window", "sliding_window"),
    )
    return {**_llama(config), **_present(config, keys), "expert_gating_func": 2, "expert_weights_norm": True}


def _muse_glimmer(config: Settings) -> dict[str, Any]:
    keys = (("final_logit_softcapping", "final_logit_softcapping"), ("logit_scale", "output_multiplier"))
    return {**_windows(config), **_present(config, keys)}


def _laguna(config: Settings) -> dict[str, Any]:
    keys = (
        ("vocab_size", "vocab_size"),
        ("attention.head_count", "num_attention_heads_per_layer"),
        ("attention.sliding_window", "sliding_window"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ("expert_weights_scale", "moe_routed_scaling_factor"),
    )
    rope, dim = config["rope_parameters"], config["head_dim"]
    return {
        **_present(config, keys),
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "leading_dense_block_count": config["mlp_layer_types"].count("dense"),
        "rope.dimension_count": int(dim * rope["full_attention"]["partial_rotary_factor"]),
        "rope.dimension_count_swa": int(dim * rope["sliding_attention"]["partial_rotary_factor"]),
    }


def _mimo2(config: Settings) -> dict[str, Any]:
    """Windows are of the positions before a token's own; three blocks of MTP are announced."""
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    heads = config["num_key_value_heads"]
    rotated = config["rope_parameters"]["full_attention"]["partial_rotary_factor"]
    return {
        "attention.head_count_kv": [heads * 2 if each else heads for each in slides],
        "attention.sliding_window": config["sliding_window"] - 1,
        "attention.sliding_window_pattern": slides,
        "attention.value_length": config["v_head_dim"],
        "attention.value_scale": config["attention_value_scale"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_gating_func": 2,
        "rope.dimension_count": int(config["head_dim"] * rotated),
    }


def _step35(config: Settings) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    heads = config["num_attention_heads"], config["num_sliding_attention_heads"]
    keys = (
        ("attention.sliding_window", "sliding_window"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "share_expert_dim"),
        ("expert_weights_scale", "moe_router_scaling_factor"),
        ("swiglu_clamp_exp", "swiglu_limits"),
        ("swiglu_clamp_shexp", "swiglu_limits_shared"),
    )
    return {
        **_present(config, keys),
        "attention.head_count": [heads[each] for each in slides],
        "attention.head_count_kv": [config["num_key_value_heads"]] * len(slides),
        "attention.sliding_window_pattern": slides,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "leading_dense_block_count": config["mlp_layer_types"].count("dense"),
        "moe_every_n_layers": 1,
    }


def _gpt_oss(config: Settings) -> dict[str, Any]:
    window, width = config["sliding_window"], config["intermediate_size"]
    return {"attention.sliding_window": window, "expert_feed_forward_length": width}


def _ernie_moe(config: Settings) -> dict[str, Any]:
    keys = (
        ("expert_count", "moe_num_experts"),
        ("expert_used_count", "moe_k"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_count", "moe_num_shared_experts"),
        ("interleave_moe_layer_step", "moe_layer_interval"),
        ("leading_dense_block_count", "moe_layer_start_index"),
    )
    shared_width = config["intermediate_size"] // config["num_key_value_heads"]
    return {**_present(config, keys), "expert_shared_feed_forward_length": shared_width}


def _hunyuan(config: Settings) -> dict[str, Any]:
    """The context of 256 k tokens is set by the converter itself."""
    rope, dim = config["rope_parameters"], config["head_dim"]
    return {
        "rope.freq_base": rope["rope_theta"] * rope["alpha"] ** (dim / (dim - 2)),
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.original_context_length": 1 << 18,
        "context_length": 1 << 18,
    }


def _hunyuan_moe(config: Settings) -> dict[str, Any]:
    width = config["intermediate_size"]
    return {
        **_hunyuan(config),
        "expert_used_count": config["moe_topk"][0],
        "expert_feed_forward_length": width,
        "expert_shared_feed_forward_length": width,
        "expert_shared_count": 1,
    }


def _hy3(config: Settings) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config["moe_intermediate_size"] * config["num_shared_experts"],
        "expert_weights_norm": True,
        "expert_weights_scale": config["router_scaling_factor"],
        "expert_gating_func": 2,
    }


def _pangu(config: Settings) -> dict[str, Any]:
    dim = _head_dim(config)
    return {**_llama(config), "attention.key_length": dim, "attention.value_length": dim}


def _granite(config: Settings) -> dict[str, Any]:
    keys = (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    )
    shared = {"expert_shared_feed_forward_length": config.get("shared_intermediate_size") or None}
    unrecurrent = _unrecurrent(config) if "mamba_d_conv" in config else {}
    return {**_llama(config), **_present(config, keys), **shared, **unrecurrent}


def _unrecurrent(config: Settings) -> dict[str, Any]:
    """Returns metadata of Granite 4's recurrent layers, which the converter writes even if there are none."""
    return {
        "attention.head_count_kv": [config["num_key_value_heads"]] * config["num_hidden_layers"],
        "rope.scaling.finetuned": True,
        "ssm.conv_kernel": config["mamba_d_conv"],
        "ssm.state_size": config["mamba_d_state"],
        "ssm.group_count": config["mamba_n_groups"],
        "ssm.inner_size": config["mamba_expand"] * config["hidden_size"],
        "ssm.time_step_rank": config["mamba_n_heads"],
    }


def _granite_swa(config: Settings) -> dict[str, Any]:
    return {
        **_granite(config),
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
        "attention.rope_pattern": [theta > 0 for theta in config["layer_rope_theta"]],
    }


def _gemma(config: Settings) -> dict[str, Any]:
    return {"rope.freq_base": None}


def _gemma2(config: Settings) -> dict[str, Any]:
    keys = (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    )
    return {**_gemma(config), **_present(config, keys)}


def _gemma3(config: Settings) -> dict[str, Any]:
    return {"attention.sliding_window": config["sliding_window"]}


def _gemma4(config: Settings) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    last, width = str(len(slides) - 1), config["intermediate_size"]
    full, shared = config["per_layer_config"][last], config["num_kv_shared_layers"]
    given = _present(
        config,
        (
            ("attention.key_length_swa", "head_dim"),
            ("attention.value_length_swa", "head_dim"),
            ("attention.shared_kv_layers", "num_kv_shared_layers"),
            ("attention.sliding_window", "sliding_window"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_used_count", "top_k_experts"),
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("rope.dimension_count_swa", "head_dim"),
        ),
    )
    heads = [config["num_key_value_heads"] if each else full.get("num_key_value_heads") for each in slides]
    wide = [width] * (len(slides) - shared) + [2 * width] * shared
    return {
        **given,
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
        "attention.sliding_window_pattern": slides,
        **({"attention.head_count_kv": heads} if None not in heads else {}),
        "attention.key_length": full["head_dim"],
        "attention.value_length": full["head_dim"],
        "rope.dimension_count": full["head_dim"],
        **({"feed_forward_length": wide} if config["use_double_wide_mlp"] else {}),
    }


def _lfm2(config: Settings) -> dict[str, Any]:
    heads = [config["num_key_value_heads"] if kind != "conv" else 0 for kind in config["layer_types"]]
    width, multiple = int(2 * config["intermediate_size"] / 3), config.get("block_multiple_of", 1)
    dense = -(-width // multiple) * multiple if config.get("block_auto_adjust_ff_dim") else config["intermediate_size"]
    return {
        "vocab_size": config["vocab_size"],
        "attention.layer_norm_rms_epsilon": config["norm_eps"],
        "attention.head_count_kv": heads,
        "feed_forward_length": dense,
        "shortconv.l_cache": config["conv_L_cache"],
    }


def _lfm2_moe(config: Settings) -> dict[str, Any]:
    return {
        **_lfm2(config),
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "leading_dense_block_count": config["num_dense_layers"],
        "expert_gating_func": 2,
    }


def _qwen_next(config: Settings) -> dict[str, Any]:
    return {
        **_qwen_moe(config),
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_value_head_dim"] * config["linear_num_value_heads"],
        "attention.recurrent_layers": [kind == "linear_attention" for kind in config["layer_types"]],
        "full_attention_interval": 4,
        "rope.dimension_count": config["head_dim"] // 4,
    }


def _qwen3_5(config: Settings) -> dict[str, Any]:
    return {**_qwen_next(config), "rope.dimension_sections": [11, 11, 10, 0]}


def _kimi_linear(config: Settings) -> dict[str, Any]:
    """Key-value heads are those of the one latent, by layer."""
    kv_rank, rope_dim = config["kv_lora_rank"], config["qk_rope_head_dim"]
    keys = (
        ("context_length", "model_max_length"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_used_count", "num_experts_per_token"),
        ("expert_shared_count", "num_shared_experts"),
        ("expert_weights_scale", "routed_scaling_factor"),
        ("ssm.conv_kernel", "linear_conv_kernel_dim"),
        ("kda.head_dim", "linear_head_dim"),
        ("attention.kv_lora_rank", "kv_lora_rank"),
        ("attention.value_length_mla", "v_head_dim"),
        ("rope.dimension_count", "qk_rope_head_dim"),
    )
    return {
        **_present(config, keys),
        "vocab_size": config["vocab_size"],
        "attention.head_count_kv": [int(kind != "linear_attention") for kind in config["layer_types"]],
        "attention.key_length": kv_rank + rope_dim,
        "attention.value_length": None,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope_dim,
        "leading_dense_block_count": config["mlp_layer_types"].count("dense"),
        "expert_gating_func": 2,
    }


def _bailing_moe_v3(config: Settings) -> dict[str, Any]:
    keys = (
        ("attention.q_lora_rank", "q_lora_rank"),
        ("expert_group_count", "num_expert_group"),
        ("expert_shared_feed_forward_length", "moe_intermediate_size"),
        ("expert_weights_norm", "moe_renormalize"),
        ("kda.safe_gate", "kda_safe_gate"),
        ("kda.gate_lower_bound", "kda_lower_bound"),
    )
    return {**_kimi_linear(config), **_present(config, keys)}


EXTRA: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "llama": _llama,
    "smollm3": _llama,
    "llama4": _llama4,
    "mistral3": _ministral3,
    "mistral4": _mistral4,
    "minimax-m2": _minimax_m2,
    "phi3": _phi3,
    "olmo2": _windows,
    "dots1": _dots1,
    "bailingmoe2": _bailing_moe_v2,
    "mellum": _mellum,
    "afmoe": _afmoe,
    "laguna": _laguna,
    "muse-glimmer": _muse_glimmer,
    "mimo2": _mimo2,
    "step35": _step35,
    "exaone4": _exaone4,
    "exaone-moe": _exaone_moe,
    "qwen2moe": _qwen_moe,
    "qwen3moe": _qwen_moe,
    "deepseek2": _deepseek,
    "gpt-oss": _gpt_oss,
    "glm4": _glm4,
    "glm4moe": _glm4_moe,
    "ernie4_5-moe": _ernie_moe,
    "hunyuan-dense": _hunyuan,
    "hunyuan-moe": _hunyuan_moe,
    "hy_v3": _hy3,
    "pangu-embedded": _pangu,
    "granite": _granite,
    "granitemoe": _granite,
    "granite_swa": _granite_swa,
    "lfm2": _lfm2,
    "lfm2moe": _lfm2_moe,
    "kimi-linear": _kimi_linear,
    "bailingmoe3": _bailing_moe_v3,
    "qwen3next": _qwen_next,
    "qwen35": _qwen3_5,
    "qwen35moe": _qwen3_5,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
}
"""Metadata of single architectures in addition to COMMON, or instead of it."""
