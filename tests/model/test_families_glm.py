"""GLM-4 and 4.5: published configurations, and published facts about these models."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Attention, Experts, FeedForward

GLM4_9B: dict[str, Any] = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.0.dev0",
    "use_cache": True,
    "vocab_size": 151552,
}
GLM4_32B: dict[str, Any] = {
    **GLM4_9B,
    "attention_bias": False,
    "hidden_size": 6144,
    "intermediate_size": 23040,
    "num_attention_heads": 48,
    "num_hidden_layers": 61,
    "num_key_value_heads": 8,
}
GLM45_AIR: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": 151552,
}
GLM45: dict[str, Any] = {
    **GLM45_AIR,
    "first_k_dense_replace": 3,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_hidden_layers": 92,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}
GLM46: dict[str, Any] = {**GLM45, "max_position_embeddings": 202752}

PUBLISHED = {
    "GLM-4-9B-0414": (GLM4_9B, 9.4, 9.4),
    "GLM-4-32B-0414": (GLM4_32B, 33, 33),
    "GLM-4.5-Air": (GLM45_AIR, 106, 12),
    "GLM-4.5": (GLM45, 355, 32),
    "GLM-4.6": (GLM46, 355, 32),
}
"""config.json, and the total and active parameters of the model card, in 1e9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    """The cards count the layer of multi-token prediction in the total, and no embedding in the active parameters."""
    config, total, active = PUBLISHED[name]
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.01)
    assert active_billions(model, embedding=False) == pytest.approx(active, rel=0.07)


def test_half_of_a_head_is_rotated_by_neighbours_in_4_and_by_halves_in_4_5() -> None:
    for config, interleaved in ((GLM4_9B, True), (GLM45, False)):
        attn = describe_config(config).layers[0].mixer
        assert isinstance(attn, Attention)
        assert attn.rope is not None
        assert (attn.rope.dim, attn.rope.interleaved, attn.qkv_bias, attn.out_bias) == (64, interleaved, True, False)


def test_the_first_layers_of_4_5_are_plain_and_its_router_is_deepseeks() -> None:
    ffns = [layer.ffn for layer in describe_config(GLM45).layers]
    assert [isinstance(ffn, FeedForward) for ffn in ffns] == [True] * 3 + [False] * 89
    moe = ffns[-1]
    assert isinstance(moe, Experts)
    router = moe.router
    assert (router.score, router.renormalise, router.scale, router.choice_bias) == ("sigmoid", True, 2.5, True)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (GLM4_9B, {"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        (GLM4_9B, {"partial_rotary_factor": 0.01}, "rotates 1 dimension"),
        (GLM4_9B, {"use_qk_norm": True}, "use_qk_norm = True, unknown"),
        (GLM45, {"use_qk_norm": "yes"}, "use_qk_norm"),
        (GLM45, {"n_group": 3}, "n_group"),
        (GLM45, {"num_experts_per_tok": 161}, "num_experts_per_tok"),
        (GLM45, {"first_k_dense_replace": -1}, "first_k_dense_replace"),
        (GLM45, {"n_routed_experts": None}, "lacks"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**config, **changes})
