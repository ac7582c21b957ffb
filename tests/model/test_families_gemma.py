"""Gemma: published configurations, and published facts about these models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import total_billions
from tiny_models import save

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.spec import Attention, ModelSpec

GEMMA_2B: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA_7B: dict[str, Any] = {
    **GEMMA_2B,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
}
GEMMA2_2B: dict[str, Any] = {
    **GEMMA_2B,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "model_type": "gemma2",
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA2_9B: dict[str, Any] = {
    **GEMMA2_2B,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "sliding_window_size": 4096,
}
GEMMA2_27B: dict[str, Any] = {
    **GEMMA2_2B,
    "head_dim": 128,
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
}
GEMMA3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
    "vocab_size": 262144,
}
GEMMA3_270M: dict[str, Any] = {
    **{key: value for key, value in GEMMA3_1B.items() if key != "sliding_window_pattern"},
    "_sliding_window_pattern": 6,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "num_hidden_layers": 18,
    "use_bidirectional_attention": False,
}
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
GEMMA3_27B: dict[str, Any] = {
    **GEMMA3_4B,
    "text_config": {
        **GEMMA3_4B["text_config"],
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
    },
}

PUBLISHED = {
    "gemma-2b": (GEMMA_2B, 2.51),
    "gemma-7b": (GEMMA_7B, 8.54),
    "gemma-2-2b": (GEMMA2_2B, 2.61),
    "gemma-2-9b": (GEMMA2_9B, 9.24),
    "gemma-2-27b": (GEMMA2_27B, 27.2),
    "gemma-3-270m": (GEMMA3_270M, 0.268),
    "gemma-3-1b": (GEMMA3_1B, 1.0),
    "gemma-3-4b": (GEMMA3_4B, 3.88),
    "gemma-3-27b": (GEMMA3_27B, 27.0),
}
"""config.json, and the parameters of the technical reports in 1e9; of Gemma 3 those of the text part."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    config, total = PUBLISHED[name]
    assert total_billions(describe_config(config)) == pytest.approx(total, rel=0.01)


def attentions(model: ModelSpec) -> list[Attention]:
    attns = [layer.mixer for layer in model.layers]
    assert all(isinstance(attn, Attention) for attn in attns)
    return attns  # type: ignore[return-value]


def test_windows_follow_the_pattern() -> None:
    assert [attn.window for attn in attentions(describe_config(GEMMA2_2B))] == [4096, 0] * 13
    for config, width in ((GEMMA3_270M, 512), (GEMMA3_1B, 512), (GEMMA3_4B, 1024)):
        windows = [attn.window for attn in attentions(describe_config(config))]
        assert windows == [0 if index % 6 == 5 else width for index in range(len(windows))]


def test_full_and_sliding_layers_rotate_at_their_own_pace_in_either_shape_of_settings() -> None:
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    full = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}
    old = {**GEMMA3_1B, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    new = {key: value for key, value in GEMMA3_1B.items() if "rope" not in key}
    new["rope_parameters"] = {"sliding_attention": sliding, "full_attention": full}
    assert describe_config(old) == describe_config(new)
    attns = attentions(describe_config(new))
    for index, theta, factor in ((0, 1e4, 1), (5, 1e6, 8)):
        attn_rope = attns[index].rope
        assert attn_rope is not None
        assert attn_rope.inv_freq[1] == pytest.approx(theta ** (-2 / 256) / factor)


def test_scores_are_scaled_as_the_configuration_says() -> None:
    assert describe_config(GEMMA2_27B).layers[0].mixer.scale == pytest.approx(1 / 12)
    assert describe_config(GEMMA_7B).layers[0].mixer.scale == pytest.approx(1 / 16)


def test_norms_are_stored_less_one(tmp_path: Path) -> None:
    save("gemma3", tmp_path)
    saved = open_checkpoint(tmp_path)
    spec, rules = describe(saved)
    ours = canonical_tensors(saved, spec, rules)
    for name, theirs in (
        ("norm", "model.norm"),
        ("layers.1.attn.norm", "model.layers.1.input_layernorm"),
        ("layers.1.attn.post_norm", "model.layers.1.post_attention_layernorm"),
        ("layers.1.attn.q_norm", "model.layers.1.self_attn.q_norm"),
        ("layers.1.ffn.norm", "model.layers.1.pre_feedforward_layernorm"),
        ("layers.1.ffn.post_norm", "model.layers.1.post_feedforward_layernorm"),
    ):
        np.testing.assert_array_equal(dequantize(ours[name]), dequantize(saved.tensors[f"{theirs}.weight"]) + 1)
    for name, tensor in maker_tensors(ours, rules).items():
        np.testing.assert_allclose(dequantize(tensor), dequantize(saved.tensors[name]), atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (GEMMA_2B, {"hidden_act": "silu"}, "hidden_act"),
        (GEMMA_2B, {"sliding_window": 5}, "sliding_window = 5, unknown"),
        (GEMMA2_2B, {"hidden_activation": "relu"}, "hidden_activation"),
        (GEMMA2_2B, {"layer_types": ["full_attention"]}, "layer_types"),
        (GEMMA2_2B, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        (GEMMA2_2B, {"attn_logit_softcapping": -1}, "attn_logit_softcapping"),
        (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0, unknown"),
        (GEMMA3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3_1B, {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        (GEMMA3_1B, {"rope_local_base_freq": 1}, "rope_local_base_freq"),
        (GEMMA3_1B, {"rope_parameters": {"rope_theta": 1e4}}, r"lacks rope_parameters\.full_attention\.rope_theta"),
        (GEMMA3_1B, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"lacks \S+sliding_attention"),
        (GEMMA3_4B, {"text_config": {**GEMMA3_4B["text_config"], "num_experts": 4}}, "num_experts = 4, unknown"),
        (GEMMA3_1B, {"architectures": ["Gemma3nForCausalLM"]}, "does not run Gemma3nForCausalLM yet"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**config, **changes})
