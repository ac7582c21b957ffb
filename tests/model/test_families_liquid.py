"""Liquid AI's LFM2 as its configurations and model cards describe it."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.size import cache_dim, state_bytes
from freedive.model.spec import Attention, Experts, ShortConv

LFM2_1_2B: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 2048,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0,
    "block_use_swiglu": True,
    "block_use_xavier_init": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 2048,
    "conv_dim_out": 2048,
    "conv_use_xavier_init": True,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_pos_enc": True,
    "vocab_size": 65536,
}

FULL_LAYERS = (2, 6, 10, 14, 18, 21)
LFM2_8B_A1B: dict[str, Any] = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": 7,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 7168,
    "layer_types": ["full_attention" if index in FULL_LAYERS else "conv" for index in range(24)],
    "max_position_embeddings": 128000,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 1792,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "routed_scaling_factor": 1.0,
    "tie_embedding": True,
    "use_cache": True,
    "use_expert_bias": True,
    "vocab_size": 65536,
}


def test_lfm2_1_2b_is_what_its_card_says() -> None:
    model = describe_config(LFM2_1_2B)
    assert total_billions(model) == pytest.approx(1.17, abs=0.005)
    assert [isinstance(layer.mixer, Attention) for layer in model.layers].count(True) == 6
    assert model.tied
    assert {layer.ffn.dim for layer in model.layers if not isinstance(layer.ffn, Experts)} == {8192}


def test_lfm2_8b_a1b_is_what_its_card_says() -> None:
    model = describe_config(LFM2_8B_A1B)
    assert total_billions(model) == pytest.approx(8.3, abs=0.05)
    assert active_billions(model) == pytest.approx(1.5, abs=0.06)
    assert sum(isinstance(layer.ffn, Experts) for layer in model.layers) == 22
    assert model.layers[0].mixer == ShortConv(2048, 3)


def test_a_sequence_costs_its_convolutions_once_and_attention_for_each_token() -> None:
    model = describe_config(LFM2_8B_A1B)
    assert cache_dim(model) == 6 * 2 * 8 * 64
    assert state_bytes(model) == 18 * 2 * 2048 * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv_dim": 1024}, "conv_dim differs from the hidden size of 2048"),
        ({"conv_L_cache": 1}, "conv_L_cache is 1"),
        ({"full_attn_idxs": [16]}, "full_attn_idxs"),
        ({"layer_types": ["conv"] * 15 + ["mamba"]}, "layer_types"),
        ({"block_use_swiglu": False}, "block_use_swiglu = False, unknown"),
    ],
)
def test_unsupported_configurations_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**LFM2_1_2B, **changes})
