"""Hunyuan and Hy3 are described as Tencent publishes them, and read with published and transformers' names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from published import active_billions, hollow, total_billions

from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.params import params
from freedive.model.spec import Experts

NTK = {
    "alpha": 1000.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "type": "dynamic",
}
HUNYUAN_7B: dict[str, Any] = {
    "add_classification_head": False,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_head_dim": 128,
    "bos_token_id": 1,
    "cla_share_factor": 2,
    "class_num": 0,
    "dense_list": [4096, 0],
    "eod_token_id": 3,
    "eos_token_id": 127960,
    "group_limited_greedy": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "im_end_id": 6,
    "im_newline_id": 12,
    "im_start_id": 5,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "kv_lora_rank": None,
    "mask_init_id": 13,
    "max_position_embeddings": 32768,
    "mlp_bias": False,
    "model_type": "hunyuan_v1_dense",
    "norm_type": "rms",
    "num_attention_heads": 32,
    "num_experts": 1,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "org_vocab_size": 128167,
    "pad_token_id": 127961,
    "pool_type": "last",
    "position_embedding_xdrope": False,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": NTK,
    "rope_theta": 10000.0,
    "sep_token_id": 127962,
    "text_end_id": 8,
    "text_start_id": 7,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "v_head_dim": None,
    "vocab_size": 128167,
}
HUNYUAN_A13B: dict[str, Any] = {
    **HUNYUAN_7B,
    "architectures": ["HunYuanMoEV1ForCausalLM"],
    "intermediate_size": 3072,
    "model_type": "hunyuan_v1_moe",
    "moe_drop_tokens": False,
    "moe_intermediate_size": [3072] * 32,
    "moe_layer_num_skipped": 0,
    "moe_random_routing_dropped_token": False,
    "moe_topk": [8] * 32,
    "n_group": False,
    "norm_topk_prob": True,
    "num_experts": 64,
    "num_shared_expert": [1] * 32,
    "routed_scaling_factor": False,
    "topk_group": False,
    "use_mixed_mlp_moe": True,
}
HY3: dict[str, Any] = {
    "architectures": ["HYV3ForCausalLM"],
    "bos_token_id": 120000,
    "dtype": "bfloat16",
    "enable_attention_fp32_softmax": False,
    "enable_lm_head_fp32": True,
    "enable_moe_fp32_combine": False,
    "eod_token_id": 120026,
    "eos_token_id": 120025,
    "expert_hidden_dim": 1536,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.006,
    "intermediate_size": 13312,
    "max_position_embeddings": 262144,
    "model_type": "hy_v3",
    "moe_intermediate_size": 1536,
    "moe_router_enable_expert_bias": True,
    "moe_router_use_sigmoid": True,
    "num_attention_heads": 64,
    "num_experts": 192,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "num_shared_experts": 1,
    "output_router_logits": True,
    "pad_token_id": 120002,
    "qk_norm": True,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 11158840.0, "rope_type": "default"},
    "route_norm": True,
    "router_scaling_factor": 2.826,
    "sep_token_id": 120007,
    "tie_word_embeddings": False,
    "transformers_version": "5.6.0",
    "use_cache": True,
    "use_grouped_mm": False,
    "vocab_size": 120832,
}


@pytest.mark.parametrize(
    ("values", "total", "active"), [(HUNYUAN_7B, 7.5, 7.5), (HUNYUAN_A13B, 80, 13), (HY3, 295, 21)]
)
def test_hunyuan_is_as_its_cards_say(values: dict[str, Any], total: float, active: float) -> None:
    spec = describe_config(values)
    assert total_billions(spec) == pytest.approx(total, rel=0.02)
    assert active_billions(spec) == pytest.approx(active, rel=0.02)


def test_experts_may_differ_by_layer() -> None:
    lists = {"moe_topk": [1, 2], "moe_intermediate_size": [32, 64], "num_shared_expert": [1, 2]}
    spec = describe_config({**HUNYUAN_A13B, "num_hidden_layers": 2, **lists})
    experts = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, Experts)]
    got = [(moe.router.num_chosen, moe.expert.dim, moe.shared and moe.shared.dim) for moe in experts]
    assert got == [(1, 32, 3072), (2, 64, 6144)]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_cla": True},
        {"moe_layer_num_skipped": 1},
        {"position_embedding_xdrope": True},
        {"attention_head_dim": 64},
        {"moe_topk": [8] * 31},
        {"moe_topk": 65},
        {"num_shared_expert": [1.5] * 32},
    ],
)
def test_what_hunyuan_is_not_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        describe_config({**HUNYUAN_A13B, **changes})


def test_hy3_routes_by_sigmoid_only() -> None:
    with pytest.raises(UserError, match="moe_router_use_sigmoid"):
        describe_config({**HY3, "moe_router_use_sigmoid": False})


def test_hy3_is_read_by_its_published_names_without_the_prediction_layer() -> None:
    spec, rules = describe(Checkpoint("safetensors", {**HY3, "num_hidden_layers": 2, "num_experts": 8}, {}))
    tensors = maker_tensors(hollow(spec), rules)
    mixture = "model.layers.1.mlp"
    for name in ("router.gate.weight", "expert_bias", "shared_mlp.up_proj.weight", "experts.7.down_proj.weight"):
        assert f"{mixture}.{name}" in tensors
    for name in ("eh_proj.weight", "enorm.weight", "mlp.experts.0.up_proj.weight", "self_attn.q_proj.weight"):
        beyond = f"model.layers.2.{name}"
        tensors[beyond] = replace(tensors["model.norm.weight"], name=beyond)
    checkpoint = Checkpoint("safetensors", {}, tensors)
    assert list(canonical_tensors(checkpoint, spec, rules)) == list(params(spec))
    del tensors[f"{mixture}.expert_bias"]
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.expert_bias \[8\] is missing"):
        canonical_tensors(checkpoint, spec, rules)


def test_hunyuan_is_read_by_its_published_names() -> None:
    alike = {"num_hidden_layers": 2, "moe_topk": 8, "moe_intermediate_size": 3072, "num_shared_expert": 1}
    spec, rules = describe(Checkpoint("safetensors", {**HUNYUAN_A13B, **alike}, {}))
    names = maker_tensors(hollow(spec), rules)
    for name in ("self_attn.query_layernorm", "mlp.gate.wg", "mlp.shared_mlp.gate_proj", "mlp.experts.63.up_proj"):
        assert f"model.layers.1.{name}.weight" in names
