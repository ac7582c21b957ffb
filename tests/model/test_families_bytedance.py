"""Seed-OSS is described as ByteDance publishes it."""

from __future__ import annotations

from typing import Any

from published import total_billions

from freedive.families import describe_config

SEED_OSS_36B: dict[str, Any] = {
    "architectures": ["SeedOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.1,
    "attention_out_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 27648,
    "max_position_embeddings": 524288,
    "mlp_bias": False,
    "model_type": "seed_oss",
    "num_attention_heads": 80,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "pad_token_id": 1,
    "residual_dropout": 0.1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"rope_type": "default"},
    "rope_theta": 10000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0",
    "use_cache": True,
    "vocab_size": 155136,
}


def test_seed_oss_is_as_its_card_says() -> None:
    spec = describe_config(SEED_OSS_36B)
    attn = spec.layers[0].mixer
    assert (attn.q_dim, attn.qkv_bias, attn.out_bias, attn.rope.dim) == (80 * 128, True, False, 128)
    assert round(total_billions(spec), 1) == 36.2
