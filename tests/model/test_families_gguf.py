"""A model's GGUF file means the same as its safetensors, in every architecture of llama.cpp that freedive supports.

tests/tiny_gguf.py writes the files; bench/gguf_parity.py compares them with llama.cpp and its converter.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import ARCHITECTURES, READ_AS, TILED, save_both, with_tiled_heads
from tiny_models import Floats, float_tensor, prompt, take_steps
from tiny_mtp import with_mtp

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import FAMILIES, describe
from freedive.families.names import gguf_rules
from freedive.model.spec import Attention, DeltaRule, LatentAttention, ModelSpec
from freedive.ops.reference import ReferenceRunner

PROMPT = prompt(44)

BEYOND_THE_LIBRARY = {"hy_v3", "granite_swa", "mellum", "laguna", "muse-glimmer", "bailingmoe3"}
"""Architectures of llama.cpp that the gguf library lacks."""


@cache
def saved(name: str) -> tuple[Checkpoint, Checkpoint]:
    """Returns the tiny model ``name`` as safetensors and as GGUF."""
    with TemporaryDirectory() as folder:
        path = save_both(name, Path(folder))
        return open_checkpoint(Path(folder)), open_checkpoint(path)


def read(checkpoint: Checkpoint) -> tuple[ModelSpec, dict[str, Floats]]:
    spec, rules = describe(checkpoint)
    return spec, {name: dequantize(tensor) for name, tensor in canonical_tensors(checkpoint, spec, rules).items()}


def changed(name: str, **metadata: Any) -> Checkpoint:
    """Returns the GGUF of the tiny model ``name`` with changed metadata; ``__`` stands for a dot, None
    removes a key."""
    checkpoint = saved(name)[1]
    prefix = f"{ARCHITECTURES[name][0]}."
    changes = {prefix + key.replace("__", "."): value for key, value in metadata.items()}
    config = {key: value for key, value in (checkpoint.config | changes).items() if value is not None}
    return replace(checkpoint, config=config)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Returns the numbers and strings of a description by their path."""
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, tuple):
        parts = {str(index): part for index, part in enumerate(value)}
    else:
        return {path: value}
    return {name: leaf for key, part in parts.items() for name, leaf in leaves(part, f"{path}.{key}").items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_gives_the_description_weights_and_logits_of_safetensors(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    (hub_spec, hub), (spec, weights) = map(read, saved(name))
    expected = replace(hub_spec, family=READ_AS.get(name, hub_spec.family), max_context=spec.max_context)
    if name in TILED:
        layers = tuple(
            replace(layer, mixer=replace(layer.mixer, tiled=True)) if isinstance(layer.mixer, DeltaRule) else layer
            for layer in expected.layers
        )
        tensors = with_tiled_heads(hub_spec, {key: float_tensor(key, values) for key, values in hub.items()})
        expected, moved = replace(expected, layers=layers), {key: dequantize(value) for key, value in tensors.items()}
    else:
        moved = hub
    ours, theirs = leaves(spec), leaves(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():  # GGUF stores 32-bit numbers
        assert ours[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), key
    assert weights.keys() == moved.keys()
    assert all(np.array_equal(weights[key], values) for key, values in moved.items())
    logits, others = (
        take_steps(ReferenceRunner(model, held), [PROMPT], [[(0, len(PROMPT))]], [(1, 0)])[0]
        for model, held in ((spec, weights), (hub_spec, hub))
    )
    distance = float(np.abs(logits - others).max())
    for key, value in (("family", name), ("kind", "gguf"), ("distance", distance)):
        record_property(key, value)
    assert distance < 1e-4


def test_contexts_are_kept_but_for_hunyuan_whose_own_is_wrong() -> None:
    contexts = {name: [read_spec(checkpoint).max_context for checkpoint in saved(name)] for name in ARCHITECTURES}
    longer = {name: ours for name, (theirs, ours) in contexts.items() if theirs != ours}
    assert longer == {"hunyuan_dense": 1 << 18, "hunyuan_moe": 1 << 18}


# --- names and transformations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, (arch, _) in ARCHITECTURES.items() if arch not in BEYOND_THE_LIBRARY])
def test_every_tensor_is_one_that_llama_cpp_has_for_the_architecture(name: str) -> None:
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    legal = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[kinds[ARCHITECTURES[name][0]]]}
    for tensor in saved(name)[1].tensors:
        stem, suffix = re.fullmatch(r"(.*?)(\.weight|\.bias|\.scale)?", tensor).groups()
        assert re.sub(r"^blk\.\d+", "blk.{bid}", stem) in legal
        assert suffix or stem.endswith("ssm_a")


def heads_interleaved(rows: Floats, head_dim: int = 16) -> Floats:
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


Tensors = dict[str, Floats]
LAYER = "model.layers.1."
SELF, MLP, MOE = f"{LAYER}self_attn.", f"{LAYER}mlp.", f"{LAYER}block_sparse_moe."

CONVERSIONS: list[tuple[str, str, Callable[[Tensors], Floats]]] = [
    ("llama", "attn_q.weight", lambda hub: heads_interleaved(hub[f"{SELF}q_proj.weight"], 32)),
    ("llama", "attn_k.bias", lambda hub: heads_interleaved(hub[f"{SELF}k_proj.bias"], 32)),
    ("llama", "attn_v.weight", lambda hub: hub[f"{SELF}v_proj.weight"]),
    ("muse_glimmer", "attn_q.weight", lambda hub: heads_interleaved(hub[f"{SELF}q_proj.weight"], 32)),
    ("muse_glimmer", "attn_q_norm.weight", lambda hub: np.full(32, 1.7, np.float32)),
    ("muse_glimmer", "attn_norm.weight", lambda hub: hub[f"{LAYER}input_layernorm.weight"] + 1),
    ("muse_glimmer", "post_ffw_norm.weight", lambda hub: hub[f"{LAYER}post_feedforward_layernorm.weight"] + 1),
    ("mixtral", "attn_k.weight", lambda hub: heads_interleaved(hub[f"{SELF}k_proj.weight"])),
    ("mixtral", "ffn_up_exps.weight", lambda hub: np.stack([hub[f"{MOE}experts.{e}.w3.weight"] for e in range(8)])),
    ("granite", "attn_q.weight", lambda hub: heads_interleaved(hub[f"{SELF}q_proj.weight"])),
    ("granite_swa", "attn_k.weight", lambda hub: heads_interleaved(hub[f"{SELF}k_proj.weight"])),
    ("smollm3", "attn_q.weight", lambda hub: heads_interleaved(hub[f"{SELF}q_proj.weight"])),
    ("llama4", "attn_q.weight", lambda hub: hub[f"{SELF}q_proj.weight"]),
    ("glm4", "attn_q.weight", lambda hub: hub[f"{SELF}q_proj.weight"]),
    ("ernie4_5", "attn_q.weight", lambda hub: hub[f"{SELF}q_proj.weight"]),
    ("granitemoe", "ffn_gate_exps.weight", lambda hub: hub[f"{MOE}input_linear.weight"][:, :48]),
    ("granitemoe", "ffn_up_exps.weight", lambda hub: hub[f"{MOE}input_linear.weight"][:, 48:]),
    ("granitemoe_swa", "ffn_gate_up_exps.weight", lambda hub: hub[f"{MOE}experts.gate_up_proj"]),
    ("granitemoeshared", "ffn_up_shexp.weight", lambda hub: hub[f"{LAYER}shared_mlp.input_linear.weight"][40:]),
    (
        "granitemoehybrid_dense",
        "ffn_gate.weight",
        lambda hub: hub[f"{LAYER}shared_mlp.input_linear.weight"][:96],
    ),
    ("glm4", "ffn_up.weight", lambda hub: hub[f"{MLP}gate_up_proj.weight"]),
    ("glm4_moe", "post_attention_norm.weight", lambda hub: hub[f"{LAYER}post_attention_layernorm.weight"]),
    ("glm4_moe", "exp_probs_b.bias", lambda hub: hub[f"{MLP}gate.e_score_correction_bias"]),
    ("deepseek_v3", "attn_k_b.weight", lambda hub: latents(hub)[:, :12].swapaxes(1, 2)),
    ("deepseek_v3", "attn_v_b.weight", lambda hub: latents(hub)[:, 12:]),
    ("deepseek_v3", "attn_q_b.weight", lambda hub: hub[f"{SELF}q_b_proj.weight"]),
    ("gpt_oss", "ffn_gate_exps.weight", lambda hub: hub[f"{MLP}experts.gate_up_proj"].swapaxes(1, 2)[:, ::2]),
    ("gpt_oss", "ffn_up_exps.weight", lambda hub: hub[f"{MLP}experts.gate_up_proj"].swapaxes(1, 2)[:, 1::2]),
    ("gpt_oss", "ffn_up_exps.bias", lambda hub: hub[f"{MLP}experts.gate_up_proj_bias"][:, 1::2]),
    ("gpt_oss", "ffn_down_exps.weight", lambda hub: hub[f"{MLP}experts.down_proj"].swapaxes(1, 2)),
    ("gpt_oss", "post_attention_norm.weight", lambda hub: hub[f"{LAYER}post_attention_layernorm.weight"]),
    ("seed_oss", "post_attention_norm.weight", lambda hub: hub[f"{LAYER}post_attention_layernorm.weight"]),
    ("gemma", "ffn_norm.weight", lambda hub: hub[f"{LAYER}post_attention_layernorm.weight"] + 1),
    ("gemma2", "post_ffw_norm.weight", lambda hub: hub[f"{LAYER}post_feedforward_layernorm.weight"] + 1),
    ("gemma3", "attn_q_norm.weight", lambda hub: hub[f"{SELF}q_norm.weight"] + 1),
    (
        "llama4",
        "ffn_up_exps.weight",
        lambda hub: hub[f"{LAYER}feed_forward.experts.gate_up_proj"].swapaxes(1, 2)[:, 48:],
    ),
]


def latents(hub: Tensors) -> Floats:
    """[heads, keys then values, rank]."""
    return hub[f"{SELF}kv_b_proj.weight"].reshape(4, 32, 16)


@pytest.mark.parametrize(("name", "tensor", "convert"), CONVERSIONS, ids=lambda part: part if str(part) == part else "")
def test_tensors_are_moved_as_llama_cpps_converter_moves_them(
    name: str, tensor: str, convert: Callable[[Tensors], Floats]
) -> None:
    hub, ours = ({key: dequantize(value) for key, value in part.tensors.items()} for part in saved(name))
    np.testing.assert_array_equal(ours[f"blk.1.{tensor}"], convert(hub))


def test_experts_whose_gate_and_up_are_one_tensor_are_read() -> None:
    checkpoint = saved("qwen3_moe")[1]
    tensors = dict(checkpoint.tensors)
    gate, up = (dequantize(tensors.pop(f"blk.1.ffn_{part}_exps.weight")) for part in ("gate", "up"))
    name = "blk.1.ffn_gate_up_exps.weight"
    tensors[name] = float_tensor(name, np.concatenate([gate, up], axis=1))
    _, weights = read(replace(checkpoint, tensors=tensors))
    np.testing.assert_array_equal(weights["layers.1.ffn.experts.5.up"], up[5])


def test_unsplit_latent_attention_of_older_files_is_read() -> None:
    checkpoint = changed(
        "deepseek_v2_lite",
        attention__key_length=20,
        attention__value_length=20,
        attention__head_count_kv=4,
        attention__key_length_mla=None,
        attention__value_length_mla=None,
    )
    tensors = dict(checkpoint.tensors)
    for layer in range(27):
        keys, values = (dequantize(tensors.pop(f"blk.{layer}.attn_{part}_b.weight")) for part in "kv")
        name = f"blk.{layer}.attn_kv_b.weight"
        both = np.concatenate([keys.swapaxes(1, 2), values], axis=1)
        tensors[name] = float_tensor(name, both.reshape(-1, both.shape[-1]))
    (spec, weights), (whole, others) = read(replace(checkpoint, tensors=tensors)), read(saved("deepseek_v2_lite")[1])
    assert spec == whole
    assert all(np.array_equal(weights[key], values) for key, values in others.items())


@pytest.mark.parametrize("name", ["glm4_moe", "glm4_moe_lite", "hy_v3"])
def test_complete_layers_of_multi_token_prediction_are_read(name: str) -> None:
    layers = {key: tensor for key, tensor in saved(name)[1].tensors.items() if key.startswith("blk.2.")}
    further = {key.replace("blk.2.", "blk.3."): tensor for key, tensor in layers.items()}
    checkpoint = changed(name, block_count=4, nextn_predict_layers=1)
    (spec, weights), (whole, others) = (
        read(replace(checkpoint, tensors=checkpoint.tensors | further)),
        read(saved(name)[1]),
    )
    assert spec == whole
    assert weights.keys() == others.keys()

    pair = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    around = dict.fromkeys(("enorm", "hnorm", "shared_head_norm"), pair[0, :64]) | {"eh_proj": pair}
    around = {f"blk.3.nextn.{key}.weight": values for key, values in around.items()}
    mtp = {key: float_tensor(key, values) for key, values in around.items()}
    spec, weights = read(replace(checkpoint, tensors=checkpoint.tensors | further | mtp))
    assert spec == replace(whole, mtp=whole.layers[-1])
    np.testing.assert_array_equal(weights["layers.3.mtp.embed_proj"], pair[:, :64])
    np.testing.assert_array_equal(weights["layers.3.mtp.state_proj"], pair[:, 64:])
    np.testing.assert_array_equal(weights["layers.3.attn.o"], weights["layers.2.attn.o"])
    with pytest.raises(UserError, match=r"blk\.3\..* is unexpected"):
        read(replace(saved(name)[1], tensors=checkpoint.tensors | further))


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_models_that_llama_cpp_identifies_by_a_number_are_identified_too() -> None:
    assert attentions(changed("llama4", expert_count=128))[0].qk_norm == ""
    assert attentions(changed("llama4"))[0].qk_norm == "l2"
    assert attentions(changed("gemma2", block_count=46))[0].scale == (64 // 4) ** -0.5
    assert attentions(changed("gemma3", block_count=62))[0].scale == (64 // 4) ** -0.5
    assert attentions(changed("gemma3", block_count=26))[0].scale == 32**-0.5


def test_windows_and_positions_may_be_given_layer_by_layer() -> None:
    slides = [True, False, False, True]
    attns = attentions(
        changed("granite_swa", attention__sliding_window_pattern=slides, attention__rope_pattern=[False, *[True] * 3])
    )
    assert [bool(attn.window) for attn in attns] == slides
    assert [attn.rope is None for attn in attns] == [True, False, False, False]
    assert None not in [attn.rope for attn in attentions(changed("granite_swa", attention__rope_pattern=None))]


def test_latent_attention_is_scaled_by_yarn_as_the_maker_says() -> None:
    (attn, *_) = describe(saved("deepseek_v2_lite")[1])[0].layers
    plain = describe(changed("deepseek_v2_lite", rope__scaling__type="none"))[0].layers[0].mixer
    magnitude = 0.1 * 0.707 * np.log(4) + 1
    assert attn.mixer.scale == pytest.approx(plain.scale * magnitude**2)
    without = describe(changed("deepseek_v2_lite", rope__scaling__yarn_log_multiplier=None))[0].layers[0].mixer
    assert isinstance(without, LatentAttention)
    assert (without.scale, without.rope.factor) == (plain.scale, pytest.approx(0.1 * np.log(4) + 1))


def test_limits_are_given_by_block_and_those_of_ling_3_end_before_the_block_that_drafts() -> None:
    limits = {"swiglu_clamp_exp": [0.0, 0.0, 4.0, 0.0], "swiglu_clamp_shexp": [0.0, 0.0, 5.0, 0.0]}
    blocks = {"block_count": 4, "nextn_predict_layers": 1, "attention__head_count_kv": [0, 0, 1, 1]}
    ffns = [layer.ffn for layer in read_spec(changed("bailing_hybrid", **limits, **blocks)).layers]
    assert [(ffn.expert.limit, ffn.shared.limit) for ffn in ffns[1:]] == [(0, 0), (4, 5)]


def attentions(checkpoint: Checkpoint) -> list[Attention]:
    return [layer.mixer for layer in read_spec(checkpoint).layers if isinstance(layer.mixer, Attention)]


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    return describe(checkpoint)[0]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_absent_unexpected_and_misshapen_tensors_are_named(name: str) -> None:
    checkpoint = saved(name)[1]
    tensors = dict(checkpoint.tensors)
    norms = (f"blk.1.{name}.weight" for name in ("attn_norm", "post_attention_norm"))
    lost = next(name for name in norms if name in tensors)
    bent = next(each for each in sorted(tensors) if each.endswith("attn_output.weight"))
    shape = tensors[bent].shape
    tensors[bent] = replace(tensors[bent], shape=(shape[0] + 1, shape[1]))
    tensors["blk.0.attn_new.weight"] = tensors[lost.replace("1", "0")]
    del tensors[lost]
    with pytest.raises(UserError) as refusal:
        read(replace(checkpoint, tensors=tensors))
    assert f"{lost} [64] is missing" in str(refusal.value)
    assert f"'{bent}' is {[shape[0] + 1, shape[1]]} instead of {list(shape)}" in str(refusal.value)
    assert "'blk.0.attn_new.weight' is unexpected" in str(refusal.value)


@pytest.mark.parametrize("name", ["gemma4", "gemma4_inputs", "gemma4_unified"])
def test_gemma_4_without_the_tensor_of_what_rotates_is_refused(name: str) -> None:
    checkpoint = saved(name)[1]
    others = {key: tensor for key, tensor in checkpoint.tensors.items() if key != "rope_freqs.weight"}
    with pytest.raises(UserError, match=r"tensor rope_freqs\.weight is missing"):
        describe(replace(checkpoint, tensors=others))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_key_that_no_family_reads_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"attention\.new_trait = 3, unknown"):
        describe(changed(name, attention__new_trait=3))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("deepseek_v3", {"expert_gating_func": 1}, r"expert_gating_func is 'softmax', not one of sigmoid"),
        ("deepseek_v3", {"expert_gating_func": 4}, "expert_gating_func is 4, not one of sigmoid"),
        ("deepseek_v3", {"attention__key_length": None}, r"lacks deepseek2\.attention\.key_length"),
        ("deepseek_v3", {"attention__key_length_mla": 8}, "qk_nope_head_dim is 0"),
        ("deepseek_v3", {"block_count": 1, "nextn_predict_layers": 1}, "num_hidden_layers is 0"),
        ("glm4_moe", {"nextn_predict_layers": "one"}, "nextn_predict_layers is 'one'"),
        ("granite", {"rope__scaling__finetuned": False}, r"granite\.rope\.scaling\.finetuned is False"),
        ("granite_swa", {"attention__sliding_window_pattern": [True]}, "sliding_window_pattern is"),
        ("granite_swa", {"attention__sliding_window_pattern": 2}, "sliding_window_pattern is 2"),
        ("granite_swa", {"attention__rope_pattern": [True]}, "rope_pattern is"),
        ("qwen2", {"attention__sliding_window": 8}, r"qwen2\.attention\.sliding_window = 8, unknown"),
        ("qwen3_moe", {"expert_used_count": 9}, r"qwen3moe\.expert_used_count is 9"),
        ("qwen3_moe", {"expert_weights_scale": 2.0}, r"expert_weights_scale = 2\.0, unknown"),
        ("qwen2", {"rope__scaling__yarn_log_multiplier": 0.1}, r"yarn_log_multiplier = 0\.1, unknown"),
        ("llama4", {"attention__sliding_window": 0}, "sliding_window = 0, unknown"),
        ("ernie4_5_moe", {"expert_used_count": [3, 3, 2]}, r"expert_used_count is \[3, 3, 2\]"),
    ],
)
def test_invalid_metadata_is_refused_by_the_files_own_key(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe(changed(name, **changes))


VALUES = st.one_of(st.integers(-2, 300), st.floats(), st.text(max_size=3), st.booleans(), st.lists(st.integers(0, 3)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(ARCHITECTURES)), st.data())
def test_any_metadata_is_described_or_refused(name: str, data: st.DataObject) -> None:
    checkpoint = saved(name)[1]
    key = data.draw(st.sampled_from([key for key in checkpoint.config if key != "general.architecture"]))
    with contextlib.suppress(UserError):
        read_spec(replace(checkpoint, config={**checkpoint.config, key: data.draw(VALUES)}))


WIDER = {"bailing_moe_v2": {"attention__key_length": 32, "attention__value_length": 32, "rope__dimension_count": 16}}
"""Metadata of heads that are narrower where llama.cpp has to read them."""


LAST_NORM = dict.fromkeys(("bailing_moe_v2", "bailing_hybrid", "mimo_v2_flash"), "layer_output_norm")
"""Other names than ``nextn.shared_head_norm`` of the norm after a layer of multi-token prediction."""


@pytest.mark.parametrize("name", ["glm4_moe", *LAST_NORM, "step3p7", "qwen3_5", "qwen3_5_moe"])
def test_a_layer_of_multi_token_prediction_is_read_from_gguf_too(name: str) -> None:
    model, checkpoint = with_mtp(name), changed(name, **WIDER.get(name, {}))
    (family,) = (family for family in FAMILIES if family.name == model.spec.family)
    weights = {key: float_tensor(key, value) for key, value in model.weights.items()}
    moved = with_tiled_heads(model.spec, weights) if name in TILED else weights
    prefix, layers = f"{ARCHITECTURES[name][0]}.", len(model.spec.layers)
    config = checkpoint.config | {f"{prefix}block_count": layers + 1, f"{prefix}nextn_predict_layers": 1}
    by_block = {key: each for key, each in config.items() if isinstance(each, list) and len(each) == layers}
    config |= {key: [*each, False if "recurrent" in key else each[-1]] for key, each in by_block.items()}
    tensors = maker_tensors(moved, gguf_rules(model.spec, family.gguf, 1))
    tensors |= {key: tensor for key, tensor in checkpoint.tensors.items() if key == "rope_freqs.weight"}
    last_norm = LAST_NORM.get(name, "nextn.shared_head_norm")
    assert {f"blk.{layers}.{last_norm}.weight", f"blk.{layers}.nextn.eh_proj.weight"} <= tensors.keys()
    spec, got = read(replace(checkpoint, config=config, tensors=tensors))
    assert replace(spec, mtp=None) == read_spec(checkpoint)
    for key in (key for key in got if key.startswith(f"layers.{layers}.")):
        np.testing.assert_array_equal(got[key], model.weights[key])
    assert f"layers.{layers}.mtp.norm" in got
