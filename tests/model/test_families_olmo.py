"""OLMo 2 and 3 and FlexOlmo as their configurations and cards say."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.families import describe_config
from freedive.model.spec import Experts

OLMO2_7B: dict[str, Any] = {
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 100352,
}
OLMO3_32B: dict[str, Any] = {
    **OLMO2_7B,
    "architectures": ["Olmo3ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    "max_position_embeddings": 65536,
    "model_type": "olmo3",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "sliding_window": 4096,
    "vocab_size": 100278,
}
FLEX_OLMO_7X7B: dict[str, Any] = {
    **OLMO2_7B,
    "architectures": ["FlexOlmoForCausalLM"],
    "model_type": "flex_olmo",
    "norm_topk_prob": False,
    "num_experts": 7,
    "num_experts_per_tok": 5,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
}
"""All three from memory."""


def test_olmo2_7b_is_what_its_card_says() -> None:
    model = describe_config(OLMO2_7B)
    assert total_billions(model) == pytest.approx(7.3, abs=0.05)
    assert all(layer.post_norms and not layer.pre_norms for layer in model.layers)
    assert model.layers[0].mixer.qk_norm == "full"


def test_olmo3_32b_is_what_its_card_says() -> None:
    model = describe_config(OLMO3_32B)
    assert total_billions(model) == pytest.approx(32.2, abs=0.1)
    local, last = model.layers[0].mixer, model.layers[3].mixer
    assert (local.window, last.window, model.max_context) == (4096, 0, 65536)
    assert (local.rope.factor, last.rope.factor) == (1.0, pytest.approx(1.2079, abs=1e-4))
    assert local.rope.inv_freq[-1] > 7 * last.rope.inv_freq[-1]


def test_the_older_and_the_newer_form_of_rope_settings_mean_the_same() -> None:
    plain = {"rope_type": "default", "rope_theta": 500000}
    scaled = {**OLMO3_32B["rope_scaling"], "rope_theta": 500000}
    settings = {"rope_parameters": {"sliding_attention": plain, "full_attention": scaled}}
    newer = {key: value for key, value in OLMO3_32B.items() if key not in ("rope_theta", "rope_scaling")}
    assert describe_config({**newer, **settings}) == describe_config(OLMO3_32B)


def test_flex_olmo_is_what_its_card_says() -> None:
    model = describe_config(FLEX_OLMO_7X7B)
    assert total_billions(model) == pytest.approx(33, abs=0.5)
    assert active_billions(model) > 20
    assert isinstance(model.layers[0].ffn, Experts)
    assert not model.layers[0].pre_norms
