"""Llama 4, Muse Glimmer and SmolLM3, some of whose layers have no positions: published configurations and facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from published import active_billions, total_billions
from test_families_files import assert_same, saved
from tiny_models import float_tensor

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.spec import Attention, AttentionTemperature, Experts, FeedForward

SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": {
        "_attn_implementation_autoset": True,
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "attention_dropout": 0.0,
        "attn_scale": 0.1,
        "attn_temperature_tuning": 4,
        "bos_token_id": 200000,
        "cache_implementation": "hybrid",
        "eos_token_id": [200001, 200007, 200008],
        "floor_scale": 8192,
        "for_llm_compressor": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "model_type": "llama4_text",
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "output_router_logits": False,
        "pad_token_id": 200018,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0.dev0",
    "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model"},
}
MAVERICK: dict[str, Any] = {
    **SCOUT,
    "text_config": {
        **SCOUT["text_config"],
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 1048576,
        "moe_layers": list(range(1, 48, 2)),
        "no_rope_layers": [1, 1, 1, 0] * 12,
        "num_local_experts": 128,
        "rope_scaling": None,
        "use_qk_norm": False,
    },
}
SMOLLM3: dict[str, Any] = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pad_token_id": 128004,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0.dev0",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 128256,
}

PUBLISHED = {
    "Llama-4-Scout-17B-16E": (SCOUT, 109, 17),
    "Llama-4-Maverick-17B-128E": (MAVERICK, 400, 17),
    "SmolLM3-3B": (SMOLLM3, 3.08, 3.08),
}
"""config.json, and the total and active parameters of the model card in 1e9, of which Llama 4's vision part has 0.9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_give_the_published_sizes(name: str) -> None:
    config, total, active = PUBLISHED[name]
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.015)
    assert active_billions(model) == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(("config", "norm"), [(SCOUT, "l2"), (MAVERICK, "")])
def test_every_fourth_layer_of_llama_4_sees_everything_and_knows_no_positions(
    config: dict[str, Any], norm: str
) -> None:
    for index, layer in enumerate(describe_config(config).layers):
        attn = layer.mixer
        assert isinstance(attn, Attention)
        if index % 4 == 3:
            assert (attn.rope, attn.chunk, attn.qk_norm) == (None, 0, "")
            assert attn.temperature == AttentionTemperature(8192, 0.1)
        else:
            assert attn.rope is not None
            assert (attn.rope.interleaved, attn.chunk, attn.qk_norm, attn.temperature) == (True, 8192, norm, None)


def test_every_second_layer_of_maverick_is_plain_and_wide() -> None:
    for index, layer in enumerate(describe_config(MAVERICK).layers):
        if index % 2:
            assert isinstance(layer.ffn, Experts)
            assert layer.ffn.router.weighs_input
            assert layer.ffn.expert == layer.ffn.shared == FeedForward(8192)
        else:
            assert layer.ffn == FeedForward(16384)


def test_scouts_rope_slows_long_waves_and_blends_none() -> None:
    slowed, plain = (
        describe_config({**SCOUT, "text_config": {**SCOUT["text_config"], "rope_scaling": scaling}})
        for scaling in (SCOUT["text_config"]["rope_scaling"], None)
    )
    attns = slowed.layers[0].mixer, plain.layers[0].mixer
    ratios = np.array(attns[1].rope.inv_freq) / np.array(attns[0].rope.inv_freq)
    assert set(ratios.round(4).tolist()) == {1.0, 8.0}


MUSE_GLIMMER: dict[str, Any] = {
    "architectures": ["MuseGlimmerForConditionalGeneration"],
    "image_token_id": 200092,
    "model_type": "muse_glimmer",
    "out_hidden_size": 6144,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 4096,
    "text_config": {
        "attention_bias": False,
        "final_logit_softcapping": 20.0,
        "head_dim": 128,
        "hidden_activation": "silu",
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0] * 13,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 13,
        "max_position_embeddings": 131072,
        "model_type": "muse_glimmer_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 52,
        "num_key_value_heads": 2,
        "output_multiplier": 0.19611613513818404,
        "post_norm_eps": 1e-08,
        "qk_scale_factor": 3.87,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "vocab_size": 202048,
    },
    "video_token_id": 200091,
    "vision_config": {"hidden_size": 1536, "model_type": "muse_glimmer_vision", "num_hidden_layers": 50},
}
"""From the defaults of transformers, which are those of the 30B model."""


def test_muse_glimmer_turns_only_in_layers_with_a_window() -> None:
    spec = describe_config(MUSE_GLIMMER)
    attns = [layer.mixer for layer in spec.layers]
    assert all(isinstance(attn, Attention) and (attn.rope is None) == (attn.window == 0) for attn in attns)
    assert [attn.window for attn in attns if isinstance(attn, Attention)] == [2048, 2048, 2048, 0] * 13
    assert (round(total_billions(spec), 1), spec.logit_scale) == (27.9, pytest.approx((6656 / 256) ** -0.5))
    text = {key: value for key, value in MUSE_GLIMMER["text_config"].items() if "layer_" not in key}
    assert describe_config({**MUSE_GLIMMER, "text_config": text}) == spec
    scaled = describe_config({**MUSE_GLIMMER, "text_config": {**text, "qk_scale_factor": 2.0}}).layers[0].mixer
    assert isinstance(scaled, Attention)
    assert scaled.scale == pytest.approx(2 * 128**-0.5)


def test_the_temperature_can_be_off() -> None:
    changed = {**SCOUT["text_config"], "attn_temperature_tuning": False}
    attn = describe_config({**SCOUT, "text_config": changed}).layers[3].mixer
    assert isinstance(attn, Attention)
    assert attn.temperature is None


def test_experts_may_be_separate_tensors_as_in_compressed_files() -> None:
    stacked = saved("llama4")
    tensors = dict(stacked.tensors)
    for name in stacked.tensors:
        prefix, _, part = name.partition(".experts.")
        if part:
            parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[part]
            for expert, matrix in enumerate(dequantize(tensors.pop(name))):
                for theirs, weight in zip(parts, np.split(matrix.T, len(parts)), strict=True):
                    listed = f"{prefix}.experts.{expert}.{theirs}.weight"
                    tensors[listed] = float_tensor(listed, weight)
    assert_same(Checkpoint(stacked.kind, stacked.config, tensors), stacked)


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        (SMOLLM3, {"no_rope_layers": ["yes"] * 36}, "no_rope_layers"),
        (SMOLLM3, {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        (SMOLLM3, {"layer_types": ["chunked_attention"] * 36}, "layer_types"),
        (SCOUT["text_config"], {"moe_layers": [48]}, "moe_layers"),
        (SCOUT["text_config"], {"interleave_moe_layer_step": 0}, "interleave_moe_layer_step"),
        (SCOUT["text_config"], {"attention_chunk_size": -1}, "attention_chunk_size"),
        (SCOUT["text_config"], {"attn_temperature_tuning": 5}, "attn_temperature_tuning"),
        (SCOUT["text_config"], {"layer_types": ["sliding_attention"] * 48}, "layer_types"),
        (SCOUT["text_config"], {"num_experts_per_tok": 17}, "num_experts_per_tok"),
        (MUSE_GLIMMER["text_config"], {"attention_bias": True}, "attention_bias"),
        (MUSE_GLIMMER["text_config"], {"layer_rope_theta": [0]}, "layer_rope_theta"),
        (MUSE_GLIMMER["text_config"], {"hidden_activation": "gelu"}, "hidden_activation"),
        (SCOUT["text_config"], {"sliding_window": 7}, "sliding_window = 7, unknown"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**config, **changes})
