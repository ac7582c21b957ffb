"""Ling 2 and sarvam-30b as their configurations and cards say."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, hollow, total_billions

from freedive.checkpoint.rules import maker_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import describe, describe_config

LING_MINI: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "max_window_layers": 20,
    "model_type": "bailing_moe",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 512,
    "mtp_loss_scaling_factor": 0,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "vocab_size": 157184,
}
"""From memory, with the keys of its maker's configuration class."""
SARVAM_30B: dict[str, Any] = {
    "architectures": ["SarvamMoEForCausalLM"],
    "head_dim": 64,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "sarvam_moe",
    "moe_intermediate_size": 1024,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 19,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "rope_theta": 8000000.0,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "vocab_size": 262144,
}
"""The values of transformers' configuration class."""


def test_ling_mini_is_what_its_card_says() -> None:
    model = describe_config(LING_MINI)
    assert total_billions(model) == pytest.approx(16, abs=0.5)
    assert active_billions(model) == pytest.approx(1.4, abs=0.1)
    attn, router = model.layers[1].mixer, model.layers[1].ffn.router
    assert (attn.rope.dim, attn.rope.interleaved, attn.qk_norm) == (64, False, "head")
    assert (router.num_groups, router.kept_groups, router.group_choice) == (8, 4, "top2")


def test_sarvam_30b_is_what_its_card_says() -> None:
    model = describe_config(SARVAM_30B)
    assert total_billions(model) == pytest.approx(32, abs=0.5)
    assert model.layers[1].mixer.rope.dim == 64


@pytest.mark.parametrize("config", [LING_MINI, SARVAM_30B], ids=["Ling", "sarvam"])
def test_tensors_have_the_names_of_the_published_files(config: dict[str, Any]) -> None:
    model, rules = describe(Checkpoint("safetensors", config, {}))
    tensors = maker_tensors(hollow(model), rules)
    attn = model.layers[1].mixer
    heads = attn.num_heads + 2 * attn.num_kv_heads
    layer = "model.layers.1."
    assert tensors[f"{layer}attention.query_key_value.weight"].shape == (heads * attn.head_dim, model.hidden_dim)
    names = {"attention.dense.weight", "attention.query_layernorm.weight", "mlp.gate.expert_bias"}
    names |= {"mlp.experts.5.up_proj.weight", "mlp.shared_experts.down_proj.weight", "post_attention_layernorm.weight"}
    assert {f"{layer}{name}" for name in names} <= tensors.keys()
    assert "model.word_embeddings.weight" in tensors


def test_a_router_without_a_bias_is_refused() -> None:
    with pytest.raises(UserError, match="moe_router_enable_expert_bias"):
        describe_config({**LING_MINI, "moe_router_enable_expert_bias": False})
