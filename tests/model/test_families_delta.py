"""Models with the gated delta rule, as their configurations and cards say: Qwen3-Next, 3.5, Kimi-Linear, Ling 3."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.size import cache_dim, state_bytes
from freedive.model.spec import Attention, DeltaRule, Experts, LatentAttention

QWEN3_NEXT_80B: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_5_35B: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5_moe",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
        "use_cache": True,
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False,
    "vision_config": {"depth": 27},
}
FULL_LAYERS = [4, 8, 12, 16, 20, 24, 27]
KIMI_LINEAR_48B: dict[str, Any] = {
    "architectures": ["KimiLinearForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "hidden_act": "silu",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "kv_lora_rank": 512,
    "linear_attn_config": {
        "full_attn_layers": FULL_LAYERS,
        "head_dim": 128,
        "kda_layers": [layer for layer in range(1, 28) if layer not in FULL_LAYERS],
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "model_max_length": 1048576,
    "model_type": "kimi_linear",
    "moe_intermediate_size": 1024,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 32,
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_hidden_layers": 27,
    "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.446,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_grouped_topk": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}


def num_layers_with(mixer: type, config: dict[str, Any]) -> int:
    return sum(isinstance(layer.mixer, mixer) for layer in describe_config(config).layers)


def test_qwen3_next_80b_is_what_its_card_says() -> None:
    model = describe_config(QWEN3_NEXT_80B)
    assert total_billions(model) == pytest.approx(80, abs=0.5)
    assert active_billions(model) == pytest.approx(3, abs=0.9)
    assert (num_layers_with(DeltaRule, QWEN3_NEXT_80B), num_layers_with(Attention, QWEN3_NEXT_80B)) == (36, 12)


def test_qwen3_5_35b_is_what_its_card_says() -> None:
    model = describe_config(QWEN3_5_35B)
    assert total_billions(model) == pytest.approx(35, abs=0.5)
    assert active_billions(model) == pytest.approx(3, abs=0.5)
    assert model.layers[0].mixer == DeltaRule(16, 32, 128, 128, 4, decay="head", decay_rank=0, gate_rank=0)
    full = model.layers[3].mixer
    assert isinstance(full, Attention)
    assert full.rope
    assert (full.output_gate, full.rope.dim, full.qk_norm) == (True, 64, "head")
    assert all(isinstance(layer.ffn, Experts) and layer.ffn.shared_gate for layer in model.layers)


def test_a_sequence_costs_its_recurrences_once_and_attention_for_each_token() -> None:
    model = describe_config(QWEN3_5_35B)
    assert cache_dim(model) == 10 * 2 * 2 * 256
    assert state_bytes(model) == 30 * 4 * (32 * 128 * 128 + 3 * (2 * 16 + 32) * 128)


def test_kimi_linear_48b_is_what_its_card_says() -> None:
    model = describe_config(KIMI_LINEAR_48B)
    assert total_billions(model) == pytest.approx(49, abs=0.5)
    assert active_billions(model) == pytest.approx(3, abs=0.5)
    assert [index + 1 for index, layer in enumerate(model.layers) if isinstance(layer.mixer, LatentAttention)] == (
        FULL_LAYERS
    )
    assert model.layers[3].mixer.rope is None
    assert model.max_context == 1 << 20


TEXT = QWEN3_5_35B["text_config"]
LINEAR_CONFIG = KIMI_LINEAR_48B["linear_attn_config"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**QWEN3_NEXT_80B, "linear_num_key_heads": 5}, "linear_num_key_heads"),
        ({**QWEN3_NEXT_80B, "layer_types": ["linear_attention"] * 47}, "layer_types"),
        ({**QWEN3_5_35B, "text_config": {**TEXT, "attn_output_gate": False}}, "attn_output_gate"),
        ({**QWEN3_NEXT_80B, "layer_types": ["linear_attention"] * 48}, "have no attention"),
        ({**KIMI_LINEAR_48B, "mla_use_nope": False}, "mla_use_nope"),
        ({**KIMI_LINEAR_48B, "linear_attn_config": {**LINEAR_CONFIG, "kda_layers": [1]}}, "linear_attn_config"),
        ({**KIMI_LINEAR_48B, "num_expert_group": 3}, "num_expert_group"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config(config)
