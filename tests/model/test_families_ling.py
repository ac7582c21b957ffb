"""Ling 2 and 3 and sarvam-30b as their configurations and cards say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from published import active_billions, hollow, total_billions

from freedive.checkpoint.rules import Rules, canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.spec import Experts, LatentAttention, ModelSpec

LING_MINI: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "max_window_layers": 20,
    "model_type": "bailing_moe",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 512,
    "mtp_loss_scaling_factor": 0,
    "n_group": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "vocab_size": 157184,
}
"""From memory, with the keys of its maker's configuration class."""
LING_3_FLASH: dict[str, Any] = {
    "architectures": ["BailingMoeV3ForCausalLM"],
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "expert_swiglu_limit_list": [0] * 35 + [4] * 7,
    "first_k_dense_replace": 2,
    "gated_attention_proj_granularity_type": "head_wise",
    "group_norm_size": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "kda_lower_bound": -5.0,
    "kda_safe_gate": True,
    "kv_lora_rank": 512,
    "layer_group_size": 6,
    "linear_silu": True,
    "max_position_embeddings": 262144,
    "max_window_layers": 20,
    "model_type": "bailing_hybrid",
    "moe_intermediate_size": 768,
    "moe_router_enable_expert_bias": True,
    "moe_shared_expert_intermediate_size": 768,
    "mtp_loss_scaling_factor": 0,
    "mtp_use_kda": False,
    "n_group": 8,
    "no_kda_lora": True,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 512,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 42,
    "num_key_value_heads": 32,
    "num_kv_heads_for_linear_attn": 0,
    "num_nextn_predict_layers": 1,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "q_lora_rank": None,
    "qk_head_dim": 192,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_interleave": True,
    "rope_scaling": None,
    "rope_theta": 6000000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "scale_router_input": False,
    "score_function": "sigmoid",
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "share_expert_swiglu_limit_list": [0] * 34 + [5] * 6 + [7] * 2,
    "short_conv_kernel_size": 4,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "up_proj_norm": False,
    "use_bias": False,
    "use_cache": True,
    "use_kda_lora": False,
    "use_mla_nope": False,
    "use_nGPT": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "v_head_dim": 128,
    "value_norm": False,
    "vocab_size": 157184,
}
"""As published, from a copy in a public test."""
LIMITS = ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list")
SARVAM_30B: dict[str, Any] = {
    "architectures": ["SarvamMoEForCausalLM"],
    "head_dim": 64,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "sarvam_moe",
    "moe_intermediate_size": 1024,
    "num_attention_heads": 64,
    "num_experts": 128,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 19,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "rope_theta": 8000000.0,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "vocab_size": 262144,
}
"""The values of transformers' configuration class."""


def test_ling_mini_is_what_its_card_says() -> None:
    model = describe_config(LING_MINI)
    assert total_billions(model) == pytest.approx(16, abs=0.5)
    assert active_billions(model) == pytest.approx(1.4, abs=0.1)
    attn, router = model.layers[1].mixer, model.layers[1].ffn.router
    assert (attn.rope.dim, attn.rope.interleaved, attn.qk_norm) == (64, False, "head")
    assert (router.num_groups, router.kept_groups, router.group_choice) == (8, 4, "top2")


def test_sarvam_30b_is_what_its_card_says() -> None:
    model = describe_config(SARVAM_30B)
    assert total_billions(model) == pytest.approx(32, abs=0.5)
    assert model.layers[1].mixer.rope.dim == 64


def test_ling_3_clamps_the_experts_of_its_last_layers_but_not_of_the_layer_that_drafts() -> None:
    model = describe_config(LING_3_FLASH)
    ffns = [model.layers[index].ffn for index in (33, 34, 35, 41)]
    assert all(isinstance(ffn, Experts) and ffn.shared for ffn in ffns)
    assert [(ffn.expert.limit, ffn.shared.limit) for ffn in ffns] == [(0, 0), (0, 5), (4, 5), (4, 7)]
    assert {(ffn.expert.activation, ffn.shared.activation) for ffn in ffns[2:]} == {("clamped_silu", "clamped_silu")}
    assert drafting(LING_3_FLASH)[0].mtp == model.layers[5]


def test_ling_3_flash_is_what_its_card_says() -> None:
    model = describe_config(LING_3_FLASH)
    assert total_billions(model) == pytest.approx(124, abs=0.5)
    assert active_billions(model) == pytest.approx(5.5, abs=0.05)
    assert [isinstance(layer.mixer, LatentAttention) for layer in model.layers] == [i % 6 == 5 for i in range(42)]


def test_layers_of_ling_3_after_its_whole_groups_have_full_attention() -> None:
    model = describe_config({**LING_3_FLASH, "num_hidden_layers": 8} | dict.fromkeys(LIMITS))
    assert [isinstance(layer.mixer, LatentAttention) for layer in model.layers] == [*[False] * 5, True, True, True]


def test_tensors_of_ling_3_have_the_names_of_the_published_files() -> None:
    model, rules = drafting(LING_3_FLASH)
    tensors = maker_tensors(hollow(model), rules).keys()
    delta = {"attention.f_proj.weight", "attention.g_proj.weight", "attention.o_proj.weight", "attention.A_log"}
    assert {f"model.layers.4.{name}" for name in delta} <= tensors
    latent = {"attention.q_proj.weight", "attention.kv_a_layernorm.weight", "attention.g_proj.weight"}
    around = {f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "final_layernorm", "input_layernorm")}
    assert {f"model.layers.42.{name}" for name in latent | around | {"mlp.gate.expert_bias"}} <= tensors


def test_outputs_of_ling_3_have_two_names() -> None:
    """Its maker calls that of latent attention dense and that of the delta rule o_proj, transformers both dense."""
    model, rules = drafting(LING_3_FLASH)
    tensors = maker_tensors(hollow(model), rules)
    for layer in range(43):
        theirs, name = (f"model.layers.{layer}.attention.{name}.weight" for name in ("o_proj", "dense"))
        tensors.update({name: tensors.pop(theirs)} if theirs in tensors else {})
    assert canonical_tensors(Checkpoint("safetensors", {}, tensors), model, rules).keys() == hollow(model).keys()


@pytest.mark.parametrize("key", ["gated_attention_proj_granularity_type", "no_kda_lora", "use_mla_nope", "mtp_use_kda"])
def test_another_value_of_a_trait_of_ling_3_is_refused(key: str) -> None:
    other = not LING_3_FLASH[key] if isinstance(LING_3_FLASH[key], bool) else "element_wise"
    with pytest.raises(UserError, match=key):
        describe_config({**LING_3_FLASH, key: other})


def drafting(config: dict[str, Any]) -> tuple[ModelSpec, Rules]:
    """Returns the description and the rules of a checkpoint that has a layer of multi-token prediction."""
    name = f"model.layers.{config['num_hidden_layers']}.eh_proj.weight"
    return describe(Checkpoint("safetensors", config, {name: Tensor(name, (1,), "F32", np.zeros((1, 4), np.uint8))}))


@pytest.mark.parametrize("config", [LING_MINI, SARVAM_30B], ids=["Ling", "sarvam"])
def test_tensors_have_the_names_of_the_published_files(config: dict[str, Any]) -> None:
    model, rules = describe(Checkpoint("safetensors", config, {}))
    tensors = maker_tensors(hollow(model), rules)
    attn = model.layers[1].mixer
    heads = attn.num_heads + 2 * attn.num_kv_heads
    layer = "model.layers.1."
    assert tensors[f"{layer}attention.query_key_value.weight"].shape == (heads * attn.head_dim, model.hidden_dim)
    names = {"attention.dense.weight", "attention.query_layernorm.weight", "mlp.gate.expert_bias"}
    names |= {"mlp.experts.5.up_proj.weight", "mlp.shared_experts.down_proj.weight", "post_attention_layernorm.weight"}
    assert {f"{layer}{name}" for name in names} <= tensors.keys()
    assert "model.word_embeddings.weight" in tensors


def test_a_router_without_a_bias_is_refused() -> None:
    with pytest.raises(UserError, match="moe_router_enable_expert_bias"):
        describe_config({**LING_MINI, "moe_router_enable_expert_bias": False})
