"""MiniMax M2 as its configuration and card say."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Experts

MINIMAX_M2: dict[str, Any] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attention_dropout": 0.0,
    "attn_type_list": [1] * 62,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 196608,
    "mlp_intermediate_size": 8192,
    "model_type": "minimax",
    "mtp_transformer_layers": 1,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "output_router_logits": False,
    "qk_norm_type": "per_layer",
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
"""From memory, with the keys of the class that its maker published first."""


def test_minimax_m2_is_what_its_card_says() -> None:
    model = describe_config(MINIMAX_M2)
    assert total_billions(model) == pytest.approx(229, abs=1)
    assert active_billions(model, embedding=False) == pytest.approx(10, abs=0.5)
    attn, ffn = model.layers[0].mixer, model.layers[0].ffn
    assert (attn.rope.dim, attn.head_dim, attn.qk_norm) == (64, 128, "full")
    assert isinstance(ffn, Experts)
    assert (ffn.router.score, ffn.router.choice_bias, ffn.router.renormalise, ffn.shared) == (
        "sigmoid",
        True,
        True,
        None,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_type_list": [1] * 61 + [0]},
        {"qk_norm_type": "per_head"},
        {"use_routing_bias": False},
        {"shared_intermediate_size": 1024},
        {"scoring_func": "softmax"},
        {"sliding_window": 4096},
    ],
)
def test_what_only_other_minimax_models_have_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        describe_config({**MINIMAX_M2, **changes})
