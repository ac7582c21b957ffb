"""openPangu is described as Huawei publishes it."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config

PANGU_EMBEDDED_7B: dict[str, Any] = {
    "architectures": ["PanguEmbeddedForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig"},
    "bias": True,
    "bos_token_id": 1,
    "eos_token_id": 45892,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12800,
    "max_position_embeddings": 32768,
    "model_type": "PanguEmbedded",
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 16000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 153376,
}
PANGU_PRO_MOE_72B: dict[str, Any] = {
    "architectures": ["PanguProMoEForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "model_type": "PanguProMoE",
    "moe_intermediate_size": 1344,
    "num_attention_heads": 40,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 16000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5376,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 153376,
}


@pytest.mark.parametrize(
    ("values", "total", "active"), [(PANGU_EMBEDDED_7B, 8.0, 8.0), (PANGU_PRO_MOE_72B, 71.99, 16.5)]
)
def test_pangu_is_as_its_cards_say(values: dict[str, Any], total: float, active: float) -> None:
    spec = describe_config(values)
    attn = spec.layers[0].mixer
    assert (attn.qkv_bias, attn.out_bias) == (True, True)
    assert total_billions(spec) == pytest.approx(total, rel=0.01)
    assert active_billions(spec) == pytest.approx(active, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"), [({"num_experts": 60}, "8 equal groups"), ({"norm_topk_prob": True}, "norm_topk_prob")]
)
def test_what_pangu_is_not_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**PANGU_PRO_MOE_72B, **changes})


def test_pangu_without_biases_is_described() -> None:
    attn = describe_config({**PANGU_EMBEDDED_7B, "bias": False}).layers[0].mixer
    assert (attn.qkv_bias, attn.out_bias) == (False, False)
