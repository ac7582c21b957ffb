"""Configurations in users' files: complete ones, ones in older formats, and ones with keys that have no effect."""

from __future__ import annotations

from typing import Any

import pytest
from published import hollow
from test_families_mixtures import OLMOE_7B, QWEN3_30B
from test_families_refusals import LLAMA_JSON, described
from tiny_configs import BASE, TINY
from tiny_models import maker_class

from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.spec import Attention, FeedForward

OLD_DEFAULTS: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "cross_attention_hidden_size": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": "LlamaTokenizer",
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
"""The defaults that transformers 4 wrote in addition to a model's own keys when asked for everything."""


@pytest.mark.parametrize("name", TINY)
def test_the_whole_configuration_of_transformers_is_read(name: str) -> None:
    kind = maker_class(name)
    config = kind.config_class(**{**BASE, "max_position_embeddings": 1024, **TINY[name][1]})
    short = {**config.to_diff_dict(), "architectures": [kind.__name__]}
    whole = {**OLD_DEFAULTS, **config.to_dict(), "architectures": [kind.__name__]}
    assert len(whole) > len(short) + 30
    assert describe_config(whole) == describe_config(short)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"hidden_size": 64.0, "num_hidden_layers": 2.0}, {}),
        ({"rope_theta": "10000.0"}, {}),
        ({"rope_theta": "5e5"}, {"rope_theta": 5e5}),
        ({"layer_types": ["full_attention"] * 2, "use_sliding_window": False}, {}),
        ({"partial_rotary_factor": 1.0}, {}),
        ({"rope_scaling": {"type": "default", "factor": 1.0}}, {}),
        ({"rope_scaling": {"rope_type": "default", "original_max_position_embeddings": 64}}, {}),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16},
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        ),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": False}, {"architectures": ["MistralForCausalLM"]}),
        ({"architectures": ["Qwen2ForCausalLM"], "attention_bias": False}, {"architectures": ["Qwen2ForCausalLM"]}),
        ({"hidden_act": "swish"}, {}),
    ],
)
def test_keys_without_effect_are_ignored(said: dict[str, Any], meant: dict[str, Any]) -> None:
    assert described(**said) == described(**meant)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias = True"),
        ({"architectures": ["Qwen2ForCausalLM"], "attention_bias": True}, "attention_bias = True"),
        ({"architectures": ["MistralForCausalLM"], "layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"architectures": ["MistralForCausalLM"], "use_sliding_window": False}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor rotates 8 dimensions of 16"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"rope_parameters\.partial_rotary_factor rotates 8 dimensions of 16",
        ),
        ({"rotary_dim": 8}, "rotary_dim rotates 8 dimensions of 16"),
        ({"rope_scaling": {"type": "default", "factor": 2.0}}, r"rope_scaling\.factor is 2\.0"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 2, 4]}}, "mrope_section"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "temperature": 2.0}}, r"rope_scaling\.temperature"),
        ({"hidden_act": "gelu_tanh"}, "hidden_act"),
        ({"hidden_act": "swiglu_oai"}, "hidden_act"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"rope_theta": "nan"}, "rope_theta"),
        ({"rope_theta": "much"}, "rope_theta"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_keys_that_could_change_the_computation_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        described(**changes)


def test_activations_have_the_names_of_transformers() -> None:
    ffn = described(hidden_act="gelu_pytorch_tanh").layers[0].ffn
    assert isinstance(ffn, FeedForward)
    assert ffn.activation == "gelu_tanh"


def test_a_fraction_of_rotated_dimensions_is_kept_where_the_family_has_one() -> None:
    config = {**BASE, "architectures": ["Glm4ForCausalLM"], "head_dim": 16, "partial_rotary_factor": 0.5}
    attention = describe_config(config).layers[0].mixer
    assert isinstance(attention, Attention)
    assert attention.rope
    assert attention.rope.dim == 8


def test_gpt_oss_has_a_window_by_default() -> None:
    settings = {key: value for key, value in TINY["gpt_oss"][1].items() if key != "sliding_window"}
    layers = describe_config({**BASE, **settings, "architectures": ["GptOssForCausalLM"]}).layers
    assert [layer.mixer.window for layer in layers[:2]] == [128, 0]


def test_a_clip_of_zero_is_refused_and_none_is_none() -> None:
    with pytest.raises(UserError, match=r"clip_qkv is 0\.0"):
        describe_config({**OLMOE_7B, "clip_qkv": 0.0})
    assert describe_config({**OLMOE_7B, "clip_qkv": None}).layers[0].mixer.clip == 0


def test_biases_of_hy3_that_no_rule_names_are_refused_by_their_switch() -> None:
    config = {**BASE, **TINY["hy_v3"][1], "architectures": ["HYV3ForCausalLM"]}
    describe_config({**config, "mlp_bias": False})
    with pytest.raises(UserError, match="mlp_bias = True"):
        describe_config({**config, "mlp_bias": True})


@pytest.mark.parametrize(
    ("name", "architecture", "key"),
    [
        ("deepseek_v2", "DeepseekV2ForCausalLM", "n_routed_experts"),
        ("deepseek_v3", "DeepseekV3ForCausalLM", "n_routed_experts"),
        ("glm4_moe", "Glm4MoeForCausalLM", "n_routed_experts"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "num_experts"),
    ],
)
def test_a_missing_number_of_experts_is_named_by_the_files_own_key(name: str, architecture: str, key: str) -> None:
    config = {**BASE, **TINY[name][1], "architectures": [architecture]}
    config.pop(key, None)
    with pytest.raises(UserError, match=f"lacks {key}$|lacks {key}\\."):
        describe_config(config)


# --- the same in GGUF ---------------------------------------------------------------------------------------------

LLAMA_GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
TENSORS: dict[str, Tensor] = {"token_embd.weight": hollow(described())["embed"]}


def from_gguf(**changes: Any) -> Any:
    return describe(Checkpoint("gguf", {**LLAMA_GGUF, **changes}, TENSORS))[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.expert_count": 0},
        {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.rope.scale_linear": 1.0},
        {"llama.attention.head_count": [4, 4], "llama.attention.head_count_kv": [2, 2]},
        {"llama.feed_forward_length": [96, 96]},
        {"llama.attention.causal": True, "llama.pooling_type": 0},
    ],
)
def test_gguf_keys_without_effect_are_ignored(changes: dict[str, Any]) -> None:
    assert from_gguf(**changes) == from_gguf()


@pytest.mark.parametrize("changes", [{"attention.causal": False}, {"pooling_type": 1}])
def test_gguf_keys_with_an_effect_are_refused_if_no_family_reads_them(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"llama.{next(iter(changes))}"):
        from_gguf(**{f"llama.{key}": value for key, value in changes.items()})


def test_gguf_rope_scaling_is_linear_by_default() -> None:
    scaled = from_gguf(**{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert scaled != from_gguf()
    assert from_gguf(**{"llama.rope.scale_linear": 4.0}) == scaled
    assert from_gguf(**{"llama.rope.scaling.factor": 4.0}) == scaled


@pytest.mark.parametrize("key", ["llama.attention.head_count", "llama.feed_forward_length"])
def test_gguf_lists_that_differ_by_layer_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=key):
        from_gguf(**{key: [4, 2]})


def test_unknown_keys_are_still_unknown() -> None:
    with pytest.raises(UserError, match="router_temperature"):
        describe_config({**QWEN3_30B, "router_temperature": 2.0})
    with pytest.raises(UserError, match="use_rope"):
        describe_config({**LLAMA_JSON, "use_rope": False})
