"""Granite: published configurations, and published facts about these models."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Attention, FeedForward

GRANITE33_2B: dict[str, Any] = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
    "use_cache": True,
    "vocab_size": 49159,
}
GRANITE33_8B: dict[str, Any] = {
    **GRANITE33_2B,
    "attention_multiplier": 0.0078125,
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "logits_scaling": 16.0,
}
GRANITE31_1B: dict[str, Any] = {
    **{key: value for key, value in GRANITE33_2B.items() if key != "mlp_bias"},
    "architectures": ["GraniteMoeForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 512,
    "logits_scaling": 6.0,
    "model_type": "granitemoe",
    "num_attention_heads": 16,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "output_router_logits": False,
    "rope_theta": 1500000,
    "router_aux_loss_coef": 0.0,
    "vocab_size": 49155,
}
GRANITE31_3B: dict[str, Any] = {
    **GRANITE31_1B,
    "hidden_size": 1536,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_local_experts": 40,
}
GRANITE4_MICRO: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "bos_token_id": 100257,
    "embedding_multiplier": 12,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "init_method": "mup",
    "initializer_range": 0.1,
    "intermediate_size": 8192,
    "layer_types": ["attention"] * 40,
    "logits_scaling": 10,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 256,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 80,
    "mamba_proj_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "granitemoehybrid",
    "normalization_function": "rmsnorm",
    "num_attention_heads": 40,
    "num_experts_per_tok": 0,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "output_router_logits": False,
    "pad_token_id": 100256,
    "position_embedding_type": "rope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.01,
    "shared_intermediate_size": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.56.0",
    "use_cache": True,
    "vocab_size": 100352,
}

PUBLISHED = {
    "granite-3.3-2b": (GRANITE33_2B, 2.53, 2.53),
    "granite-3.3-8b": (GRANITE33_8B, 8.17, 8.17),
    "granite-3.1-1b-a400m": (GRANITE31_1B, 1.33, 0.43),
    "granite-3.1-3b-a800m": (GRANITE31_3B, 3.3, 0.88),
    "granite-4.0-micro": (GRANITE4_MICRO, 3.4, 3.4),
}
"""config.json, and the total and active parameters of the model card, in 1e9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    config, total, active = PUBLISHED[name]
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.02)
    assert active_billions(model) == pytest.approx(active, rel=0.02)


def test_scales_are_those_of_the_configuration() -> None:
    model = describe_config(GRANITE33_2B)
    assert (model.embed_scale, model.residual_scale, model.logit_scale) == (12, 0.22, 1 / 8)
    assert model.layers[0].mixer.scale == 1 / 64


def test_swash_has_windows_sinks_and_a_rope_for_each_layer() -> None:
    changes = {"architectures": ["GraniteSWAForCausalLM"], "layer_rope_theta": [0, 1e4] * 20}
    attns = [layer.mixer for layer in describe_config({**GRANITE33_2B, **changes}).layers]
    plain = describe_config(GRANITE33_2B).layers[0].mixer
    for index, attn in enumerate(attns):
        assert isinstance(attn, Attention)
        assert attn.sinks
        assert attn.window == (128 if index % 4 else 0)
        assert (attn.rope is None) == (index % 2 == 0)
        assert attn.rope != plain.rope


def test_a_hybrid_without_experts_or_recurrence_is_a_plain_decoder() -> None:
    model = describe_config(GRANITE4_MICRO)
    assert {type(layer.ffn) for layer in model.layers} == {FeedForward}
    assert model.layers[0].mixer.rope is not None
    nope = describe_config({**GRANITE4_MICRO, "position_embedding_type": "nope"})
    assert nope.layers[0].mixer.rope is None


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (GRANITE33_2B, {"logits_scaling": 0}, "logits_scaling"),
        (GRANITE33_2B, {"num_local_experts": 8}, "num_local_experts = 8, unknown"),
        (GRANITE31_1B, {"num_local_experts": 0}, "num_local_experts"),
        (GRANITE31_1B, {"num_experts_per_tok": 33}, "num_experts_per_tok"),
        (GRANITE31_1B, {"shared_intermediate_size": -1}, "shared_intermediate_size"),
        (GRANITE4_MICRO, {"layer_types": ["mamba"] * 40}, "needs Mamba layers"),
        (GRANITE4_MICRO, {"layer_types": ["attention"] * 39 + ["linear_attention"]}, "needs Mamba layers"),
        (GRANITE4_MICRO, {"layer_types": None}, "needs Mamba layers"),
        (GRANITE4_MICRO, {"layer_types": ["attention"]}, "layer_types"),
        (GRANITE4_MICRO, {"position_embedding_type": "alibi"}, "position_embedding_type"),
        (GRANITE33_2B, {"architectures": ["GraniteSWAForCausalLM"], "layer_rope_theta": [1e4]}, "layer_rope_theta"),
        (
            GRANITE33_2B,
            {"architectures": ["GraniteSWAForCausalLM"], "layer_rope_theta": ["x"] * 40},
            "layer_rope_theta",
        ),
        (
            GRANITE33_2B,
            {"architectures": ["GraniteSWAForCausalLM"], "layer_rope_theta": [1e-9] * 40},
            "layer_rope_theta",
        ),
        (GRANITE33_2B, {"architectures": ["GraniteSWAForCausalLM"], "layer_rope_theta": 1e4}, "layer_rope_theta"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**config, **changes})
