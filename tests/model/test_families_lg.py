"""EXAONE 4 and K-EXAONE as their configurations and cards say."""

from __future__ import annotations

from typing import Any

import pytest
from published import active_billions, total_billions

from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Experts, FeedForward

TYPES = ["sliding_attention"] * 3 + ["full_attention"]
LLAMA3 = {
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
EXAONE4_32B: dict[str, Any] = {
    "architectures": ["Exaone4ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 361,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 27392,
    "layer_types": TYPES * 16,
    "max_position_embeddings": 131072,
    "model_type": "exaone4",
    "num_attention_heads": 40,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3,
    "rope_theta": 1000000,
    "sliding_window": 4096,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 102400,
}
K_EXAONE: dict[str, Any] = {
    "architectures": ["ExaoneMoEForCausalLM"],
    "attention_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "is_moe_layer": [False] + [True] * 47,
    "layer_types": TYPES * 12,
    "max_position_embeddings": 262144,
    "model_type": "exaone_moe",
    "moe_intermediate_size": 2048,
    "n_group": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "num_shared_experts": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "sliding_window": 128,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "vocab_size": 153600,
}
"""Both from memory."""


def test_exaone4_32b_is_what_its_card_says() -> None:
    model = describe_config(EXAONE4_32B)
    assert total_billions(model) == pytest.approx(32.0, abs=0.05)
    local, last = model.layers[0].mixer, model.layers[3].mixer
    assert (local.window, last.window, local.rope is None, last.rope is None) == (4096, 0, False, True)
    assert not model.layers[0].pre_norms


def test_exaone4_without_windows_rotates_in_every_layer() -> None:
    config = {**EXAONE4_32B, "sliding_window": None, "layer_types": ["full_attention"] * 64}
    attns = [layer.mixer for layer in describe_config({**config, "sliding_window_pattern": None}).layers]
    assert not any(attn.window or attn.rope is None for attn in attns)


def test_k_exaone_is_what_its_card_says() -> None:
    model = describe_config(K_EXAONE)
    assert total_billions(model) == pytest.approx(236, abs=1)
    assert active_billions(model) == pytest.approx(23, abs=1)
    assert isinstance(model.layers[0].ffn, FeedForward)
    assert all(isinstance(layer.ffn, Experts) and layer.ffn.shared and layer.pre_norms for layer in model.layers[1:])


def test_letters_without_a_list_of_types_are_refused() -> None:
    """transformers does not read them either."""
    config = {key: value for key, value in EXAONE4_32B.items() if key != "layer_types"}
    with pytest.raises(UserError, match="sliding_window_pattern is 'LLLG'"):
        describe_config(config)
    assert describe_config({**config, "sliding_window_pattern": 4}) == describe_config(EXAONE4_32B)
