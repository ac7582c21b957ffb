"""DeepSeek, Kimi and GLM-4.7-Flash: published configurations, and published facts about these models."""

from __future__ import annotations

import math
from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Experts, FeedForward, LatentAttention
from freedive.model.state import per_token_dim

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}

V2: dict[str, Any] = {
    **{key: value for key, value in V3.items() if key not in ("num_nextn_predict_layers", "quantization_config")},
    "architectures": ["DeepseekV2ForCausalLM"],
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "pretraining_tp": 1,
    "rope_scaling": {**V3["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "vocab_size": 102400,
}
V2_LITE: dict[str, Any] = {
    **V2,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "topk_method": "greedy",
}
MOONLIGHT: dict[str, Any] = {
    **{key: value for key, value in V3.items() if key not in ("rope_scaling", "quantization_config")},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}
K2: dict[str, Any] = {
    **V3,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**V3["rope_scaling"], "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "topk_group": 1,
    "vocab_size": 163840,
}
K25: dict[str, Any] = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "media_placeholder_token_id": 163605,
    "tie_word_embeddings": False,
    "use_unified_vision_chunk": True,
    "vision_config": {"mm_hidden_size": 1152, "vt_num_hidden_layers": 27},
    "text_config": {
        **K2,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**K2["rope_scaling"], "beta_fast": 32.0, "factor": 64.0},
    },
}
GLM_FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "eos_token_id": [154820, 154827, 154829],
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "kv_lora_rank": 512,
    "max_position_embeddings": 202752,
    "model_type": "glm4_moe_lite",
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 20,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 47,
    "num_key_value_heads": 20,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 154820,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.8,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "transformers_version": "5.0.0rc0",
    "v_head_dim": 256,
    "vocab_size": 154880,
}

PUBLISHED = {
    "DeepSeek-V2": (V2, 236, 21),
    "DeepSeek-V2-Lite": (V2_LITE, 15.7, 2.4),
    "DeepSeek-V3": (V3, 671, 37),
    "Moonlight": (MOONLIGHT, 16, 3),
    "Kimi-K2": (K2, 1000, 32),
    "Kimi-K2.5": (K25, 1000, 32),
    "GLM-4.7-Flash": (GLM_FLASH, 30, 3),
}
"""config.json, and the total and active parameters of the model card, in 1e9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    config, total, active = PUBLISHED[name]
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.03)
    least, most = (active_billions(model, embedding=counted) for counted in (False, True))
    assert math.floor(least) <= active <= math.ceil(most)  # model cards count and round in either way


def test_deepseek_v3_is_what_its_report_says() -> None:
    model = describe_config(V3)
    attn, first, last = model.layers[0].mixer, model.layers[2].ffn, model.layers[3].ffn
    assert isinstance(attn, LatentAttention)
    assert isinstance(first, FeedForward)
    assert isinstance(last, Experts)
    assert (model.max_context, per_token_dim(attn.state), first.dim, last.expert.dim) == (163840, 576, 18432, 2048)
    assert (last.router.num_groups, last.router.kept_groups, last.router.group_choice) == (8, 4, "top2")
    assert last.router.score == "sigmoid"
    assert last.router.choice_bias
    assert attn.rope.interleaved
    assert attn.rope.factor == 1.0
    assert attn.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_kimi_k25_is_kimi_k2_with_a_longer_context() -> None:
    old, new = describe_config(K2), describe_config(K25)
    assert [layer.ffn for layer in old.layers] == [layer.ffn for layer in new.layers]
    assert (old.max_context, new.max_context) == (131072, 262144)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topk_method": "greedy"}, "topk_method"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"n_group": 7}, r"n_group \(7\) does not divide 256 experts"),
        ({"n_group": 256, "topk_group": 8}, "leaves no two experts to a group"),
        ({"n_group": 64, "topk_group": 1}, "leaves fewer than the 8 experts"),
        ({"topk_group": 9}, "topk_group"),
        ({"num_experts_per_tok": 257}, "num_experts_per_tok"),
        ({"qk_rope_head_dim": 63}, "rotates 63 dimensions"),
        ({"q_lora_rank": -1}, "q_lora_rank"),
        ({"kv_lora_rank": 0}, "kv_lora_rank"),
        ({"index_topk": 2048}, "index_topk = 2048, unknown to freedive for deepseek_v3"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
    ],
)
def test_invalid_configurations_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**V3, **changes})
