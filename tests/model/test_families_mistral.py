"""Ministral 3 and Mistral Small 4 as their configurations and cards say."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Attention, AttentionTemperature, LatentAttention

MINISTRAL_8B: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 262144,
        "model_type": "ministral3",
        "num_attention_heads": 32,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
            "type": "yarn",
        },
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": 131072,
    },
    "vision_config": {"model_type": "pixtral"},
    "vision_feature_layer": -1,
}
MISTRAL_SMALL_4: dict[str, Any] = {
    "architectures": ["Mistral4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "kv_lora_rank": 256,
    "max_position_embeddings": 1048576,
    "model_type": "mistral4",
    "moe_intermediate_size": 2048,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 32,
    "q_lora_rank": 1024,
    "qk_head_dim": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_interleave": True,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "v_head_dim": 128,
    "vocab_size": 131072,
}
"""The values of transformers' configuration class, which are those of the model. It has rope settings of its own."""


def test_ministral_8b_is_what_its_card_says() -> None:
    model = describe_config(MINISTRAL_8B)
    assert total_billions(model) == pytest.approx(8.4, abs=0.1)
    attn = model.layers[0].mixer
    assert isinstance(attn, Attention)
    assert (attn.temperature, attn.rope.factor) == (AttentionTemperature(16384.0, 0.1, offset=0), 1.0)
    assert model.max_context == 262144


def test_mistral_small_4_is_what_its_card_says() -> None:
    model = describe_config(MISTRAL_SMALL_4)
    assert total_billions(model) == pytest.approx(119, abs=0.5)
    assert active_billions(model) == pytest.approx(6.5, abs=0.5)
    attn = model.layers[0].mixer
    assert isinstance(attn, LatentAttention)
    assert (attn.q_rank, attn.kv_rank, attn.rope.dim, attn.rope.interleaved) == (1024, 256, 64, True)
    assert attn.temperature == AttentionTemperature(8192.0, 0.1, offset=0)
    assert model.max_context == 1 << 20


def test_a_temperature_is_unknown_to_families_without_one() -> None:
    text = {**MINISTRAL_8B["text_config"], "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    with pytest.raises(UserError, match="llama_4_scaling_beta"):
        describe_config(text)


def test_a_model_without_scaling_has_no_temperature() -> None:
    text = {**MINISTRAL_8B["text_config"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert describe_config(text).layers[0].mixer.temperature is None
