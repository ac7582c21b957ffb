"""ERNIE 4.5 is described as Baidu publishes it, dense and with experts, without its prediction layers."""

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

ERNIE_0_3B: dict[str, Any] = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_ernie4_5.Ernie4_5_Config"},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5",
    "num_attention_heads": 16,
    "num_hidden_layers": 18,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": False,
    "vocab_size": 103424,
}
ERNIE_21B_A3B: dict[str, Any] = {
    **{key: value for key, value in ERNIE_0_3B.items() if key not in ("auto_map", "head_dim")},
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_layer_end_index": 27,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
}
ERNIE_300B_A47B = {
    **ERNIE_21B_A3B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "moe_intermediate_size": 3584,
    "moe_k": 8,
    "moe_layer_end_index": 53,
    "moe_layer_start_index": 3,
    "moe_num_shared_experts": 0,
    "num_attention_heads": 64,
    "num_hidden_layers": 54,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("values", "total", "active"),
    [(ERNIE_0_3B, 0.36, 0.36), (ERNIE_21B_A3B, 22, 3), (ERNIE_300B_A47B, 300, 47)],
)
def test_ernie_is_as_its_cards_say(values: dict[str, Any], total: float, active: float) -> None:
    spec = describe_config(values)
    assert spec.layers[0].mixer.rope.interleaved
    assert total_billions(spec) == pytest.approx(total, rel=0.02)
    assert active_billions(spec) == pytest.approx(active, rel=0.15)


def test_experts_start_end_and_alternate_where_the_configuration_says() -> None:
    def sparse(**changes: Any) -> list[int]:
        spec = describe_config({**ERNIE_21B_A3B, "num_hidden_layers": 8, "moe_layer_end_index": -1, **changes})
        return [index for index, layer in enumerate(spec.layers) if isinstance(layer.ffn, Experts)]

    assert sparse() == [1, 2, 3, 4, 5, 6, 7]
    assert sparse(moe_layer_end_index=None, moe_layer_start_index=0) == list(range(8))
    assert sparse(moe_layer_end_index=5, moe_layer_start_index=2) == [2, 3, 4, 5]
    assert sparse(moe_layer_interval=2) == [1, 3, 5, 7]


@pytest.mark.parametrize("changes", [{"moe_gate": "top2_fused"}, {"moe_norm_min": 0.1}, {"use_mrope": True}])
def test_what_ernie_is_not_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        describe_config({**ERNIE_21B_A3B, **changes})


def test_prediction_layers_are_left_out() -> None:
    spec, rules = describe(Checkpoint("safetensors", {**ERNIE_21B_A3B, "num_hidden_layers": 2}, {}))
    tensors = maker_tensors(hollow(spec), rules)
    assert tensors["model.layers.1.mlp.moe_statics.e_score_correction_bias"].shape == (1, 64)
    for name in ("mtp_block.0.mlp.up_proj", "mtp_emb_norm.0", "mtp_hidden_norm.0", "mtp_linear_proj.0"):
        tensors[f"model.{name}.weight"] = replace(tensors["model.norm.weight"], name=f"model.{name}.weight")
    assert list(canonical_tensors(Checkpoint("safetensors", {}, tensors), spec, rules)) == list(params(spec))
