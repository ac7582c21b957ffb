"""Gemma 4: published configurations, and what they mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import active_billions, hollow, total_billions
from tiny_models import save

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.size import cache_dim, layers_in_words
from freedive.model.spec import Attention, ModelSpec

TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": True,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 0,
    "initializer_range": 0.02,
    "max_position_embeddings": 262144,
    "model_type": "gemma4_text",
    "moe_intermediate_size": None,
    "num_experts": None,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 1024,
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": "vision",
    "use_cache": True,
    "use_double_wide_mlp": False,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}
"""Keys and values that transformers' conversion script gives the published models."""

PERIOD = ["sliding_attention"] * 5 + ["full_attention"]


def wrapped(changes: dict[str, Any], kind: str = "Gemma4") -> dict[str, Any]:
    return {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "audio_config": None,
        "boi_token_id": 255999,
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": {**TEXT, **changes},
        "tie_word_embeddings": True,
        "vision_config": {"hidden_size": 1152, "model_type": "gemma4_vision"},
        "vision_soft_tokens_per_image": 280,
    }


GEMMA4_26B = wrapped(
    {
        "enable_moe_block": True,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "layer_types": PERIOD * 5,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "top_k_experts": 8,
    }
)
GEMMA4_31B = wrapped(
    {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "layer_types": PERIOD * 10,
        "num_attention_heads": 32,
        "num_global_key_value_heads": 4,
        "num_hidden_layers": 60,
        "num_key_value_heads": 16,
    }
)
SMALL = {
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_global_key_value_heads": None,
    "sliding_window": 512,
    "use_bidirectional_attention": None,
}
GEMMA4_E2B = wrapped(
    {
        **SMALL,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "layer_types": [*PERIOD[1:]] * 7,
        "num_hidden_layers": 35,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
    }
)
GEMMA4_E4B = wrapped(
    {
        **SMALL,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "layer_types": PERIOD * 7,
        "num_hidden_layers": 42,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
    }
)


def text(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**config, "text_config": {**config["text_config"], **changes}}


def attentions(model: ModelSpec) -> list[Attention]:
    return [layer.mixer for layer in model.layers if isinstance(layer.mixer, Attention)]


@pytest.mark.parametrize(("config", "total"), [(GEMMA4_26B, 25.2), (GEMMA4_31B, 30.7)])
def test_published_configurations_give_the_published_sizes(config: dict[str, Any], total: float) -> None:
    assert total_billions(describe_config(config)) == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize(("config", "total"), [(GEMMA4_E2B, 5.1), (GEMMA4_E4B, 8.0)])
def test_small_models_have_half_a_billion_parameters_for_images_and_sounds(
    config: dict[str, Any], total: float
) -> None:
    assert total_billions(describe_config(config)) == pytest.approx(total - 0.5, abs=0.1)


def test_26b_computes_with_4b() -> None:
    assert active_billions(describe_config(GEMMA4_26B)) == pytest.approx(3.82, rel=0.01)


def test_layers_in_words() -> None:
    assert layers_in_words(describe_config(GEMMA4_26B)) == [
        "25 x attention, 16 heads of 256 on 8, window 1024, norms of heads; "
        "8 of 128 experts of 704 by softmax, 2112 shared; norms after both",
        "5 x attention, 16 heads of 512 on 2, values from keys, norms of heads; "
        "8 of 128 experts of 704 by softmax, 2112 shared; norms after both",
    ]


def test_a_quarter_of_each_head_of_full_attention_rotates() -> None:
    full = attentions(describe_config(GEMMA4_31B))[5]
    assert full.rope is not None
    assert full.rope.dim == full.head_dim == 512
    np.testing.assert_allclose(full.rope.inv_freq[:64], 1e6 ** (-np.arange(64) / 256), rtol=1e-6)
    assert set(full.rope.inv_freq[64:]) == {0.0}


def test_last_layers_of_small_models_share_the_keys_and_values_of_their_type() -> None:
    model = describe_config(GEMMA4_E2B)
    assert [attn.kv_layer for attn in attentions(model)][13:20] == [-1, -1, 13, 13, 13, 13, 14]
    assert cache_dim(model) == 2 * (12 * 256 + 3 * 512)
    assert [getattr(layer.ffn, "dim", 0) for layer in model.layers][14:16] == [6144, 12288]


def test_per_layer_settings_replace_those_of_full_layers() -> None:
    values = {key: value for key, value in GEMMA4_31B["text_config"].items() if "global" not in key}
    own = {str(index): {"head_dim": 512, "num_key_value_heads": 4} for index in range(5, 60, 6)}
    new = {**GEMMA4_31B, "text_config": {**values, "per_layer_config": own}}
    assert describe_config(new) == describe_config(GEMMA4_31B)


def test_the_12b_model_has_a_class_of_its_own() -> None:
    """The sizes here are not the published ones; what they lack are the defaults of this class."""
    values = {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "attention_k_eq_v": True,
    }
    unified = {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "text_config": values}
    model = describe_config(unified)
    assert (model.max_context, model.token_input) == (262144, 0)
    assert {attn.window for attn in attentions(model)} == {1024, 0}


def test_the_router_reads_a_norm_whose_weights_are_scaled(tmp_path: Path) -> None:
    save("gemma4", tmp_path)
    saved = open_checkpoint(tmp_path)
    spec, rules = describe(saved)
    ours = canonical_tensors(saved, spec, rules)
    theirs = dequantize(saved.tensors["model.layers.1.router.scale"])
    np.testing.assert_allclose(dequantize(ours["layers.1.ffn.router_norm"]), theirs / 8, rtol=1e-6)
    for name, tensor in maker_tensors(ours, rules).items():
        np.testing.assert_allclose(dequantize(tensor), dequantize(saved.tensors[name]), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("inside", ["experts", "moe.experts"])
def test_experts_of_quantised_files_are_single_under_two_names(inside: str, tmp_path: Path) -> None:
    save("gemma4", tmp_path)
    saved = open_checkpoint(tmp_path)
    spec, rules = describe(saved)
    ours = canonical_tensors(saved, spec, rules)
    single = {
        f"model.layers.{layer}.{inside}.{expert}.{part}_proj.weight": ours[
            f"layers.{layer}.ffn.experts.{expert}.{part}"
        ]
        for layer in range(4)
        for expert in range(8)
        for part in ("gate", "up", "down")
    }
    others = {name: tensor for name, tensor in saved.tensors.items() if ".experts." not in name}
    read = canonical_tensors(replace(saved, tensors={**others, **single}), spec, rules)
    assert {name: tensor.data.tobytes() for name, tensor in read.items()} == {
        name: tensor.data.tobytes() for name, tensor in ours.items()
    }


def test_images_sounds_and_unused_keys_are_not_read() -> None:
    config = text(GEMMA4_E2B, num_hidden_layers=15, layer_types=PERIOD[1:] * 3, num_kv_shared_layers=5)
    model, rules = describe(Checkpoint("hub", config, {}))
    inside = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in maker_tensors(hollow(model), rules).items()
    }
    empty = Tensor("", (1,), "F32", np.zeros((1, 0), np.uint8))
    others = (
        "model.vision_tower.encoder.layers.0.input_layernorm.weight",
        "model.audio_tower.layers.0.norm_out.weight",
        "model.embed_vision.embedding_projection.weight",
        "model.embed_audio.embedding_projection.weight",
        "model.language_model.layers.10.self_attn.k_proj.weight",
        "model.language_model.layers.14.self_attn.v_proj.weight",
        "model.language_model.layers.14.self_attn.k_norm.weight",
    )
    checkpoint = Checkpoint("hub", config, {**inside, **dict.fromkeys(others, empty)})
    assert canonical_tensors(checkpoint, *describe(checkpoint)).keys() == hollow(model).keys()
    owned = "model.language_model.layers.9.self_attn.v_norm.weight"
    with pytest.raises(UserError, match="v_norm"):
        canonical_tensors(Checkpoint("hub", config, {**inside, owned: empty}), model, describe(checkpoint)[1])


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (GEMMA4_31B, {"hidden_activation": "silu"}, "hidden_activation"),
        (GEMMA4_31B, {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        (GEMMA4_31B, {"num_global_key_value_heads": 5}, "num_kv_heads is 5"),
        (GEMMA4_31B, {"num_kv_shared_layers": 60}, "num_kv_shared_layers"),
        (GEMMA4_31B, {"num_kv_shared_layers": 55}, "leaves no layer"),
        (GEMMA4_31B, {"per_layer_config": {"5": {"window": 3}}}, r"per_layer_config\.5\.window = 3, unknown"),
        (GEMMA4_31B, {"per_layer_config": {"60": {}}}, r"per_layer_config\.60"),
        (GEMMA4_E2B, {"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input"),
        (GEMMA4_26B, {"top_k_experts": 129}, "top_k_experts"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config(text(config, **changes))
