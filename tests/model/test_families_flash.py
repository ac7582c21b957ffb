"""MiMo-V2-Flash and Step 3.5 Flash: more heads in windows. The configurations are from memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from published import active_billions, hollow, total_billions
from test_families_files import saved
from tiny_gguf import save_both
from tiny_models import float_tensor

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import as_hub, describe, describe_config
from freedive.model.spec import Layer

ONE = Tensor("one", (1,), "F32", np.zeros((1, 4), np.uint8))

MIMO_V2_FLASH: dict[str, Any] = {
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "architectures": ["MiMoV2FlashForCausalLM"],
    "attention_bias": False,
    "attention_chunk_size": 128,
    "attention_dropout": 0.0,
    "attention_value_scale": 0.707,
    "head_dim": 192,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "hybrid_block_size": None,
    "hybrid_layer_pattern": [0 if i == 0 or i % 6 == 5 else 1 for i in range(48)],
    "intermediate_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_position_embeddings": 262144,
    "model_type": "mimo_v2_flash",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": [0] + [1] * 47,
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": None,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5000000,
    "routed_scaling_factor": None,
    "scoring_func": "sigmoid",
    "sliding_window": 128,
    "sliding_window_size": 128,
    "swa_head_dim": 192,
    "swa_num_attention_heads": 64,
    "swa_num_key_value_heads": 8,
    "swa_rope_theta": 10000,
    "swa_v_head_dim": 128,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 152576,
}
STEP35_FLASH: dict[str, Any] = {
    "architectures": ["Step3p5ForCausalLM"],
    "att_impl_type": "GQA",
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "head_dim": 128,
        "num_attention_groups": 8,
        "num_attention_heads": 96,
        "true_head_dim": 128,
    },
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 11264,
    "layer_types": ["sliding_attention" if i % 4 else "full_attention" for i in range(48)],
    "max_position_embeddings": 262144,
    "max_seq_len": 262144,
    "model_type": "step3p5",
    "moe_every_n_layer": 1,
    "moe_intermediate_size": 1280,
    "moe_layers_enum": ",".join(map(str, range(3, 45))),
    "moe_num_experts": 288,
    "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0,
    "moe_top_k": 8,
    "need_fp32_gate": True,
    "norm_expert_weight": True,
    "num_attention_groups": 8,
    "num_attention_heads": 64,
    "num_hidden_layers": 45,
    "num_nextn_predict_layers": 3,
    "partial_rotary_factors": [1.0 if i % 4 else 0.5 for i in range(48)],
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 2.0,
        "high_freq_factor": 32.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 131072,
        "rope_type": "llama3",
    },
    "rope_theta": [10000.0 if i % 4 else 5000000.0 for i in range(48)],
    "share_expert_dim": 1280,
    "sink": False,
    "sliding_window": 512,
    "swiglu_limits": [0.0] * 43 + [7.0, 7.0, 0.0, 0.0, 0.0],
    "swiglu_limits_shared": [0.0] * 43 + [16.0, 16.0, 0.0, 0.0, 0.0],
    "use_head_wise_attn_gate": True,
    "use_moe": True,
    "use_moe_router_bias": True,
    "use_qk_norm": True,
    "use_rope_layers": [],
    "vocab_size": 128896,
    "yarn_only_types": ["full_attention"],
    "zero_centered": True,
}


@pytest.mark.parametrize(("config", "total", "active"), [(MIMO_V2_FLASH, 309, 15), (STEP35_FLASH, 196, 11)])
def test_parameters_are_as_many_as_the_card_says(config: dict[str, Any], total: float, active: float) -> None:
    model = describe_config(config)
    assert total_billions(model) == pytest.approx(total, rel=0.02)
    assert active_billions(model) == pytest.approx(active, rel=0.15)


def test_mimo_has_sinks_more_heads_and_another_rotation_in_windows() -> None:
    model = describe_config(MIMO_V2_FLASH)
    attns = [layer.mixer for layer in model.layers[:2]]
    got = [(attn.window, attn.sinks, attn.num_kv_heads, attn.v_head_dim, attn.rope.dim) for attn in attns]
    assert got == [(0, False, 4, 128, 64), (129, True, 8, 128, 64)]
    assert attns[0].rope.inv_freq[1] < attns[1].rope.inv_freq[1]
    assert [attn.result_scale for attn in attns] == [0.707] * 2


def test_step_has_more_heads_in_windows_and_clamps_in_its_last_layers() -> None:
    model = describe_config(STEP35_FLASH)
    attns = [layer.mixer for layer in model.layers[:2]]
    assert [(attn.window, attn.num_heads, attn.rope.dim) for attn in attns] == [(0, 64, 64), (512, 96, 128)]
    ffns = [model.layers[index].ffn for index in (0, 3, 44)]
    assert (ffns[0].activation, ffns[1].expert.activation, ffns[2].expert.activation) == (
        "silu",
        "silu",
        "clamped_silu",
    )
    assert (ffns[2].expert.limit, ffns[2].shared.limit) == (7, 16)


def test_mimos_gguf_files_may_have_q_k_and_v_in_one_tensor() -> None:
    with TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(save_both("mimo_v2_flash", Path(folder)))
        model, rules = describe(checkpoint)
        expected = {key: dequantize(each) for key, each in canonical_tensors(checkpoint, model, rules).items()}
    fused = maker_tensors({key: float_tensor(key, each) for key, each in expected.items()}, rules)
    for block in range(4):
        parts = [dequantize(fused.pop(f"blk.{block}.attn_{name}.weight")) for name in "qkv"]
        name = f"blk.{block}.attn_qkv.weight"
        fused[name] = float_tensor(name, np.concatenate(parts))
    for key, tensor in canonical_tensors(replace(checkpoint, tensors=fused), model, rules).items():
        np.testing.assert_array_equal(dequantize(tensor), expected[key], err_msg=key)


@pytest.mark.parametrize("further", [0, 1, 3])
def test_lists_of_step_may_go_on_beyond_the_layers(further: int) -> None:
    assert describe_config({**STEP35_FLASH, "num_nextn_predict_layers": further}) == describe_config(STEP35_FLASH)


@pytest.mark.parametrize("key", ["layer_types", "rope_theta", "swiglu_limits"])
def test_lists_of_step_that_end_before_the_layers_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=key):
        describe_config({**STEP35_FLASH, key: STEP35_FLASH[key][:44]})


def test_the_first_of_steps_blocks_that_draft_is_what_the_lists_say_beyond_the_layers() -> None:
    names = [f"model.layers.{index}.eh_proj.weight" for index in (45, 46, 47)]
    model, rules = describe(Checkpoint("safetensors", STEP35_FLASH, dict.fromkeys(names, ONE)))
    assert model.mtp == Layer(model.layers[1].mixer, model.layers[0].ffn)
    tensors = maker_tensors(hollow(model), rules).keys()
    block = "model.layers.45."
    assert {f"{block}{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "self_attn.g_proj")} <= tensors
    assert {f"{block}{name}.weight" for name in ("mlp.up_proj", "transformer.shared_head.norm")} <= tensors
    said, _ = as_hub(Checkpoint("safetensors", STEP35_FLASH, {}), replace(model, mtp=None))
    assert describe_config(said) == replace(model, mtp=None)


def test_transformers_lists_steps_blocks_that_draft_apart() -> None:
    kinds = {"mtp_layer_types": ["full_attention"] * 3, "mtp_mlp_layer_types": ["sparse"] * 3}
    listed = ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared")
    config = {**STEP35_FLASH, **kinds, **{key: STEP35_FLASH[key][:45] for key in listed}}
    config |= {key: [*config[key], *config[key][:3]] for key in ("rope_theta", "partial_rotary_factors")}
    model, _ = describe(Checkpoint("safetensors", config, {"model.layers.45.eh_proj.weight": ONE}))
    assert model.mtp == Layer(model.layers[0].mixer, model.layers[3].ffn)


def test_step_3_7_is_the_text_part_of_a_multimodal_model() -> None:
    text = {key: value for key, value in STEP35_FLASH.items() if key != "architectures"}
    whole = {"architectures": ["Step3p7ForConditionalGeneration"], "model_type": "step3p7", "text_config": text}
    assert describe_config(whole) == describe_config(STEP35_FLASH)


def test_experts_of_step_are_read_under_the_makers_names() -> None:
    model, rules = describe(checkpoint := saved("step3p7"))
    tensors = canonical_tensors(checkpoint, model, rules)
    published = maker_tensors(tensors, rules)
    assert {"model.layers.1.moe.gate_proj.weight", "model.layers.1.share_expert.up_proj.weight"} < published.keys()
    again = canonical_tensors(replace(checkpoint, tensors=published), model, rules)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(dequantize(again[name]), dequantize(tensor), rtol=0, atol=3e-7)
