"""Qwen's mixtures, Mixtral and OLMoE: published configurations, and published facts about these models."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Experts

QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_CODER_30B: dict[str, Any] = {
    **QWEN3_30B,
    "intermediate_size": 5472,
    "max_position_embeddings": 262144,
    "max_window_layers": 28,
    "norm_topk_prob": True,
    "qkv_bias": False,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}
QWEN3_235B: dict[str, Any] = {
    **QWEN3_30B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_window_layers": 94,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}
QWEN15_MOE: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.0.dev0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_57B: dict[str, Any] = {
    **QWEN15_MOE,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "moe_intermediate_size": 2560,
    "num_attention_heads": 28,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "shared_expert_intermediate_size": 20480,
    "sliding_window": 65536,
}
MIXTRAL_8X7B: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
OLMOE_7B: dict[str, Any] = {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "eos_token_id": 50279,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "router_aux_loss_coef": 0.01,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 50304,
}

PUBLISHED = {
    "Qwen3-30B-A3B": (QWEN3_30B, 30.5, 3.3),
    "Qwen3-Coder-30B-A3B": (QWEN3_CODER_30B, 30.5, 3.3),
    "Qwen3-235B-A22B": (QWEN3_235B, 235, 22),
    "Qwen1.5-MoE-A2.7B": (QWEN15_MOE, 14.3, 2.7),
    "Qwen2-57B-A14B": (QWEN2_57B, 57.4, 14),
    "Mixtral-8x7B": (MIXTRAL_8X7B, 46.7, 12.9),
    "OLMoE-1B-7B": (OLMOE_7B, 6.9, 1.3),
}
"""config.json, and the total and active parameters of the model card, in 1e9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    config, total, active = PUBLISHED[name]
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.01)
    assert active_billions(model) == pytest.approx(active, rel=0.03)


def test_what_routers_do_with_weights() -> None:
    renormalised = {}
    for name, (config, _, _) in PUBLISHED.items():
        ffn = describe_config(config).layers[0].ffn
        assert isinstance(ffn, Experts)
        renormalised[name] = ffn.router.renormalise
    assert {name for name, yes in renormalised.items() if not yes} == {
        "Qwen1.5-MoE-A2.7B",
        "Qwen2-57B-A14B",
        "OLMoE-1B-7B",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mlp_only_layers": [48]}, "mlp_only_layers"),
        ({"mlp_only_layers": 3}, "mlp_only_layers"),
        ({"mlp_only_layers": [True]}, "mlp_only_layers"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_local_experts": 128}, "num_local_experts = 128, unknown"),
        ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"moe_intermediate_size": None}, "lacks moe_intermediate_size"),
    ],
)
def test_what_makes_no_mixture_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**QWEN3_30B, **changes})
