"""Models of makers with one family: dots.llm1, Solar Open, Mellum 2, Trinity, Laguna, Phi and Youtu."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Experts, LatentAttention, ModelSpec

DOTS1: dict[str, Any] = {
    "architectures": ["Dots1ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 32768,
    "max_window_layers": 62,
    "model_type": "dots1",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "noaux_tc",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
SOLAR_OPEN: dict[str, Any] = {
    "architectures": ["SolarOpenForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "max_position_embeddings": 131072,
    "model_type": "solar_open",
    "moe_intermediate_size": 1280,
    "n_group": 1,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 65536, "type": "yarn"},
    "rope_theta": 1000000,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": False,
    "vocab_size": 196608,
}
MELLUM2: dict[str, Any] = {
    "architectures": ["MellumForCausalLM"],
    "head_dim": 128,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 7,
    "max_position_embeddings": 131072,
    "model_type": "mellum",
    "moe_intermediate_size": 896,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"rope_theta": 500000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 1024,
    "vocab_size": 98304,
}
TRINITY_MINI: dict[str, Any] = {
    "architectures": ["AfmoeForCausalLM"],
    "attention_dropout": 0.0,
    "global_attn_every_n_layers": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "load_balance_coeff": 0.001,
    "max_position_embeddings": 131072,
    "model_type": "afmoe",
    "moe_intermediate_size": 1024,
    "mup_enabled": True,
    "n_group": 1,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_expert_groups": 1,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "num_limited_groups": 1,
    "num_shared_experts": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000,
    "route_norm": True,
    "route_scale": 2.826,
    "score_func": "sigmoid",
    "sliding_window": 2048,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_grouped_mm": True,
    "vocab_size": 200192,
}
LAGUNA_XS: dict[str, Any] = {
    "architectures": ["LagunaForCausalLM"],
    "attention_bias": False,
    "gating": True,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 10,
    "max_position_embeddings": 131072,
    "mlp_layer_types": ["dense"] + ["sparse"] * 39,
    "model_type": "laguna",
    "moe_intermediate_size": 512,
    "moe_routed_scaling_factor": 2.5,
    "num_attention_heads": 48,
    "num_attention_heads_per_layer": [48, 64, 64, 64] * 10,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {
            "beta_fast": 64.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 0.5,
            "rope_theta": 500000.0,
            "rope_type": "yarn",
        },
        "sliding_attention": {"partial_rotary_factor": 1.0, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "shared_expert_intermediate_size": 512,
    "sliding_window": 512,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
YOUTU_2B: dict[str, Any] = {
    "architectures": ["YoutuForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "model_type": "youtu",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "num_key_value_heads": 16,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_interleave": True,
    "rope_theta": 1600000,
    "tie_word_embeddings": True,
    "v_head_dim": 128,
    "vocab_size": 128256,
}
PHI4_MINI: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 199999,
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 200064,
}
"""Mellum's is that of transformers' configuration class, the others are from memory: the long factors are not Phi's."""


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (DOTS1, 142, 14),
        (SOLAR_OPEN, 102, 12),
        (MELLUM2, 12, 2.5),
        (TRINITY_MINI, 26, 3.4),
        (LAGUNA_XS, 33, 3.3),
        (YOUTU_2B, 1.96, 1.96),
        (PHI4_MINI, 3.84, 3.84),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_parameters_are_as_many_as_the_card_says(config: dict[str, Any], total: float, active: float) -> None:
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.02)
    assert active_billions(model) == pytest.approx(active, rel=0.15)


def layers(model: ModelSpec, name: str) -> list[Any]:
    return [getattr(layer.mixer, name) for layer in model.layers[:4]]


def test_trinity_has_gates_and_positions_only_in_windows() -> None:
    model = describe_config(TRINITY_MINI)
    assert layers(model, "window") == [2048, 2048, 2048, 0]
    assert [rope is None for rope in layers(model, "rope")] == [False, False, False, True]
    assert (model.embed_scale, layers(model, "output_gate")) == (2048**0.5, [True] * 4)
    assert all(layer.pre_norms and layer.post_norms for layer in model.layers)
    assert [isinstance(layer.ffn, Experts) for layer in model.layers[:3]] == [False, False, True]


def test_laguna_has_heads_and_rotations_by_layer() -> None:
    model = describe_config(LAGUNA_XS)
    assert layers(model, "num_heads") == [48, 64, 64, 64]
    assert [rope.dim for rope in layers(model, "rope")] == [64, 128, 128, 128]
    assert layers(model, "window") == [0, 512, 512, 512]
    assert (model.layers[0].mixer.gate_activation, model.layers[0].mixer.gate_by_head) == ("softplus", True)
    assert not describe_config({**LAGUNA_XS, "gating": "per-element"}).layers[0].mixer.gate_by_head


def test_mellum_has_a_theta_for_each_type_of_layer() -> None:
    model = describe_config(MELLUM2)
    assert layers(model, "window") == [1024, 1024, 1024, 0]
    first, last = layers(model, "rope")[0], layers(model, "rope")[3]
    assert first.inv_freq[-1] > last.inv_freq[-1]
    bare = {key: value for key, value in MELLUM2.items() if key != "rope_parameters"}
    assert describe_config(bare) == model


def test_youtu_has_latent_attention_in_a_dense_decoder() -> None:
    (layer, *_) = describe_config(YOUTU_2B).layers
    assert isinstance(layer.mixer, LatentAttention)
    assert not isinstance(layer.ffn, Experts)


def test_the_maximum_context_of_phi_decides_about_its_long_factors() -> None:
    short = {**PHI4_MINI, "max_position_embeddings": 4096}
    long, plain = (describe_config(config).layers[0].mixer.rope for config in (PHI4_MINI, short))
    assert (long.dim, len(long.inv_freq)) == (96, 48)
    assert (long.inv_freq[0], plain.inv_freq[0], plain.factor) == (pytest.approx(1 / 1.5), 1.0, 1.0)
    assert long.factor == pytest.approx(1.19024, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (SOLAR_OPEN, {"use_qk_norm": True}),
        (TRINITY_MINI, {"route_norm": False}),
        (TRINITY_MINI, {"score_func": "softmax"}),
        (LAGUNA_XS, {"moe_apply_router_weight_on_input": True}),
        (LAGUNA_XS, {"moe_router_logit_softcapping": 30.0}),
        (LAGUNA_XS, {"gating": False}),
        (LAGUNA_XS, {"num_attention_heads_per_layer": [48] * 39}),
        (PHI4_MINI, {"lm_head_bias": True}),
        (PHI4_MINI, {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48}}),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(config: dict[str, Any], changes: dict[str, Any]) -> None:
    key = "long_factor" if "rope_scaling" in changes else next(iter(changes))
    with pytest.raises(UserError, match=key):
        describe_config({**config, **changes})
