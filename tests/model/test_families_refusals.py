"""Invalid configurations and tensors are refused by the name of what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_configs import BASE

from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe
from freedive.model.params import params

LLAMA_JSON: dict[str, Any] = {
    **BASE,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
}


def described(**changes: Any) -> Any:
    return describe(Checkpoint("safetensors", {**LLAMA_JSON, **changes}, {}))[0]


def test_configurations_of_real_models_pass() -> None:
    smollm2 = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "use_cache": True,
    }
    assert described(**smollm2, torch_dtype="bfloat16", rope_theta=100000).layers[0].mixer.rope.inv_freq[0] == 1
    qwen = {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 21,
    }
    assert described(**qwen, use_mrope=False).layers[0].mixer.window == 0
    old_mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    assert described(**old_mistral).layers[0].mixer.window == 0
    assert described(architectures=["MistralForCausalLM"]).layers[0].mixer.window == 4096


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, r"rope_scaling\.beta_fast"),
        ({"rope_scaling": {"type": "ntk"}}, "ntk"),
        ({"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.short_factor is missing"),
        ({"rope_scaling": [2]}, "not an object"),
        ({"rope_scaling": {"type": "linear"}}, r"lacks rope_scaling\.factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "high_freq_factor",
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 6}, "does not divide a hidden size of 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "rotates 7 dimensions of 7"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"architectures": ["LlamaForCausalML"], "model_type": "x"}, "nearest known names are LlamaForCausalLM"),
        ({"architectures": ["\x1b[2J\n"], "model_type": None}, "does not know the architecture"),
        ({"architectures": None, "model_type": None}, "does not say which architecture"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_impossible_and_unknown_configurations_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        described(**changes)
    assert str(caught.value).isprintable()


def test_gguf_faults_are_named_as_the_file_spells_them() -> None:
    config = {"general.architecture": "qwen2", "qwen2.block_count": 1, "qwen2.expert_count": 8}
    with pytest.raises(UserError, match=r"qwen2\.attention\.head_count"):
        describe(Checkpoint("gguf", config, {}))
    with pytest.raises(UserError, match="deepseek99"):
        describe(Checkpoint("gguf", {"general.architecture": "deepseek99"}, {}))


# --- tensors that do not fit --------------------------------------------------------------------------------------


def tensors_of(spec: Any, rules: Any) -> dict[str, Tensor]:
    """Returns the maker's tensors of ``spec``, without data."""
    empty = np.zeros((1, 0), np.uint8)
    ours = {name: Tensor(name, param.shape, "F32", empty) for name, param in params(spec).items()}
    return dict(maker_tensors(ours, rules))


def test_missing_unexpected_and_misshapen_tensors_are_named() -> None:
    spec, rules = describe(Checkpoint("safetensors", LLAMA_JSON, {}))
    tensors = tensors_of(spec, rules)
    canonical_tensors(Checkpoint("safetensors", {}, tensors), spec, rules)

    def fault(**changes: Tensor | None) -> str:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        files = {key: value for key, value in {**tensors, **changed}.items() if value is not None}
        with pytest.raises(UserError) as caught:
            canonical_tensors(Checkpoint("safetensors", {}, files), spec, rules)
        return str(caught.value)

    name = "model.layers.1.mlp.up_proj.weight"
    key = name.replace(".", "__")
    assert f"{name} [96, 64] is missing" in fault(**{key: None})
    assert f"'{name}' is [96, 63] instead of [96, 64]" in fault(**{key: replace(tensors[name], shape=(96, 63))})
    norm = tensors["model.norm.weight"]
    assert "is Q8_0 instead of F32" in fault(model__norm__weight=replace(norm, format="Q8_0"))
    for layer, extra in ((2, "mlp.up_proj.weight"), (0, "self_attn.q_proj.bias"), ("{}", "mlp.up_proj.weight")):
        extra = f"model.layers.{layer}.{extra}"
        assert f"'{extra}' is unexpected" in fault(**{extra: replace(tensors[name], name=extra)})
    assert "and 17 more" in fault(**dict.fromkeys(tensors))


def test_buffers_and_the_copy_of_a_tied_head_are_ignored() -> None:
    spec, rules = describe(Checkpoint("safetensors", {**LLAMA_JSON, "tie_word_embeddings": True}, {}))
    tensors = tensors_of(spec, rules)
    for extra in ("lm_head.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"):
        tensors[extra] = replace(tensors["model.norm.weight"], name=extra)
    assert list(canonical_tensors(Checkpoint("safetensors", {}, tensors), spec, rules)) == list(params(spec))


# --- random configurations ----------------------------------------------------------------------------------------

ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([2**31, 2**40, 2**63, 2**64])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
ROPE_KEYS: tuple[str, ...] = (
    "rope_theta",
    "type",
    "rope_type",
    "factor",
    "alpha",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)
ROPE_KEYS += ("low_freq_factor", "high_freq_factor", "attention_factor", "truncate", "original_max_position_embeddings")
ROPE_TABLES = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn"])},
    optional={key: ANY_JSON | st.integers(1, 100) for key in ROPE_KEYS if key != "rope_type"},
)
CONFIGS = st.fixed_dictionaries(
    {
        "architectures": st.sampled_from(
            [[name] for name in ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")]
        )
    },
    optional={
        **{key: ANY_JSON | st.integers(1, 64) for key in LLAMA_JSON if key not in ("architectures", "model_type")},
        "head_dim": ANY_JSON | st.integers(2, 64),
        "layer_types": ANY_JSON,
        "sliding_window": ANY_JSON,
        "use_sliding_window": ANY_JSON,
        "max_window_layers": ANY_JSON,
        "rope_parameters": ROPE_TABLES,
        "rope_scaling": ROPE_TABLES | ANY_JSON,
    },
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(CONFIGS)
def test_any_config_is_described_or_refused(changes: dict[str, Any]) -> None:
    try:
        spec = described(**changes)
    except UserError:
        return
    assert all(np.isfinite(layer.mixer.rope.inv_freq).all() for layer in spec.layers)


POSITIVE, FACTOR, LENGTH = st.floats(1e-12, 1e12), st.floats(1e-3, 1e6), st.integers(1, 1 << 30)
SCALINGS = {
    "linear": ({"factor": FACTOR}, {}),
    "dynamic": ({"factor": FACTOR}, {"alpha": st.floats(1, 1e6)}),
    "llama3": (
        {"factor": FACTOR, "low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE},
        {"original_max_position_embeddings": LENGTH},
    ),
    "yarn": (
        {"factor": FACTOR},
        {
            **dict.fromkeys(("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"), POSITIVE),
            "original_max_position_embeddings": LENGTH,
            "truncate": st.booleans(),
        },
    ),
}
SCALING_TABLES = st.one_of(
    st.fixed_dictionaries({"type": st.just(kind), **required}, optional=optional)
    for kind, (required, optional) in SCALINGS.items()
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(SCALING_TABLES, st.floats(2, 1e12), st.integers(2, 64), LENGTH)
def test_any_possible_rope_numbers_give_finite_frequencies(
    table: dict[str, Any], theta: float, half_dim: int, context: int
) -> None:
    assume(table.get("low_freq_factor", 0) < table.get("high_freq_factor", 1))
    spec = described(rope_theta=theta, head_dim=2 * half_dim, max_position_embeddings=context, rope_scaling=table)
    rope = spec.layers[0].mixer.rope
    assert np.isfinite([*rope.inv_freq, rope.factor]).all()
    assert min(rope.inv_freq) >= 0


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["architectures", "model_type", "general.architecture"]), ANY_JSON))
def test_any_declared_architecture_is_refused(config: dict[str, Any]) -> None:
    for kind in ("gguf", "safetensors"):
        with pytest.raises(UserError):
            describe(Checkpoint(kind, config, {}))
