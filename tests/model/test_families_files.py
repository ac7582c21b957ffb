"""The checkpoints of every family, in each published form, hold the same canonical weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from tiny_configs import TINY
from tiny_models import save

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe
from freedive.model.params import params

MIXTURES: tuple[str, ...] = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
MIXTURES += ("glm4_moe_lite", "ernie4_5_moe", "hunyuan_moe", "hy_v3", "pangu_pro_moe")


@cache
def saved(name: str, **options: Any) -> Checkpoint:
    """Returns the tiny model as transformers saves it, read into memory."""
    with TemporaryDirectory() as folder:
        save(name, Path(folder), **options)
        checkpoint = open_checkpoint(Path(folder))
        tensors = {key: replace(tensor, source=tensor.data.copy()) for key, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def weights(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Returns the canonical weights."""
    model, rules = describe(checkpoint)
    return {name: dequantize(tensor) for name, tensor in canonical_tensors(checkpoint, model, rules).items()}


def assert_same(checkpoint: Checkpoint, expected: Checkpoint) -> None:
    ours, theirs = weights(checkpoint), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


NAMED_OTHERWISE = {"step3p7", "sarvam_moe", "bailing_moe_v2", "bailing_hybrid"}
"""Tiny configurations that transformers does not write under their makers' names."""


@pytest.mark.parametrize("name", [name for name in TINY if name not in NAMED_OTHERWISE])
def test_rules_restore_what_the_maker_wrote(name: str) -> None:
    checkpoint = saved(name)
    model, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, model, rules)
    assert {key: tensor.shape for key, tensor in tensors.items()} == {k: p.shape for k, p in params(model).items()}
    restored = maker_tensors(tensors, rules)
    assert restored.keys() == checkpoint.tensors.keys()
    for key, tensor in restored.items():
        written = dequantize(checkpoint.tensors[key])
        np.testing.assert_allclose(dequantize(tensor), written, rtol=0, atol=3e-7)  # norms minus 1 are rounded


@pytest.mark.parametrize("name", TINY)
def test_transformers_own_form_holds_the_same_weights(name: str) -> None:
    """transformers fuses tensors that makers publish separately: the experts of a layer, gate and up."""
    assert_same(saved(name, save_original_format=False), saved(name))


# --- the text part of a multimodal model --------------------------------------------------------------------------


def wrapped(checkpoint: Checkpoint, inside: str, beside: str) -> Checkpoint:
    """Returns the same model as the text part of a vision model."""
    config = {
        "architectures": ["SomethingForConditionalGeneration"],
        "model_type": "something",
        "text_config": checkpoint.config,
        "vision_config": {"depth": 2},
        "image_token_id": 7,
    }
    tensors = {
        inside + name.removeprefix("model.") if name.startswith("model.") else beside + name: tensor
        for name, tensor in checkpoint.tensors.items()
    }
    for name in ("vision_tower.blocks.0.weight", "model.visual.merger.bias", "multi_modal_projector.linear_1.weight"):
        tensors[name] = tensors[f"{inside}norm.weight"]
    return Checkpoint("safetensors", config, tensors)


@pytest.mark.parametrize(
    ("inside", "beside"),
    [("model.language_model.", ""), ("language_model.model.", "language_model."), ("model.", "")],
)
@pytest.mark.parametrize(
    "name", ["qwen3", "deepseek_v3", "mixtral", "gemma3", "llama4", "muse_glimmer", "qwen3_5", "qwen3_5_moe"]
)
def test_the_text_part_of_a_vision_model_is_run(
    name: str, inside: str, beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert_same(wrapped(saved(name), inside, beside), saved(name))
    assert "runs its text part" in caplog.text


def test_the_image_part_of_muse_glimmer_is_not_read() -> None:
    whole = wrapped(saved("muse_glimmer"), "model.language_model.", "")
    for name in ("vision_tower.norm", "vision_adapter.fc1", "vision_projection"):
        whole.tensors[f"model.{name}.weight"] = whole.tensors["model.language_model.norm.weight"]
    assert_same(whole, saved("muse_glimmer"))


def test_the_head_of_a_wrapped_model_is_outside_its_text_part() -> None:
    whole = wrapped(saved("qwen3"), "model.language_model.", "")
    whole.config["tie_word_embeddings"] = True
    model, _ = describe(whole)
    assert model.tied


def test_other_tensors_of_a_wrapped_model_are_unexpected() -> None:
    whole = wrapped(saved("qwen3"), "model.language_model.", "")
    whole.tensors["model.speech.weight"] = whole.tensors["model.language_model.norm.weight"]
    with pytest.raises(UserError, match=r"'model\.speech\.weight' is unexpected"):
        weights(whole)


# --- layers after the last one ------------------------------------------------------------------------------------


def with_mtp(checkpoint: Checkpoint, names: tuple[str, ...], **config: Any) -> Checkpoint:
    more = dict.fromkeys(names, checkpoint.tensors["model.norm.weight"])
    return Checkpoint("safetensors", {**checkpoint.config, **config}, {**checkpoint.tensors, **more})


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe_lite", "glm4_moe"])
def test_multi_token_prediction_by_other_names_is_ignored(name: str) -> None:
    names = ("model.layers.3.proj.weight", "model.layers.3.mlp.experts.0.up_proj.weight", "mtp.fc.weight")
    checkpoint = with_mtp(saved(name), names, num_nextn_predict_layers=1)
    assert len(describe(checkpoint)[0].layers) == 3
    assert describe(checkpoint)[0].mtp is None
    assert_same(checkpoint, saved(name))


def test_incomplete_multi_token_prediction_is_refused() -> None:
    checkpoint = with_mtp(saved("deepseek_v3"), ("model.layers.3.eh_proj.weight",), num_nextn_predict_layers=1)
    with pytest.raises(UserError, match=r"model\.layers\.3\.\S+ .*is missing"):
        weights(checkpoint)


def test_a_layer_too_many_is_unexpected_where_none_is_announced() -> None:
    name = "model.layers.3.self_attn.o_proj.weight"
    with pytest.raises(UserError, match=rf"'{name}' is unexpected"):
        weights(with_mtp(saved("deepseek_v3"), (name,), num_nextn_predict_layers=0))
    with pytest.raises(UserError, match=r"layers\.4\."):
        weights(with_mtp(saved("deepseek_v3"), ("model.layers.4.norm.weight",), num_nextn_predict_layers=1))


# --- tensors that do not fit --------------------------------------------------------------------------------------


def fault(checkpoint: Checkpoint, changes: Mapping[str, Tensor | None]) -> str:
    tensors = {key: value for key, value in {**checkpoint.tensors, **changes}.items() if value is not None}
    with pytest.raises(UserError) as caught:
        weights(replace(checkpoint, tensors=tensors))
    return str(caught.value)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_missing_a_misshapen_and_a_spare_expert_are_named_as_the_maker_does(name: str) -> None:
    checkpoint = saved(name)
    key = max(key for key in checkpoint.tensors if ".experts.2." in key)
    tensor = checkpoint.tensors[key]
    assert f"{key} {list(tensor.shape)} is missing" in fault(checkpoint, {key: None})
    wide = replace(tensor, shape=(tensor.shape[0], tensor.shape[1] + 1))
    assert f"'{key}' is {list(wide.shape)} instead of {list(tensor.shape)}" in fault(checkpoint, {key: wide})
    spare = key.replace(".experts.2.", ".experts.99.")
    assert f"'{spare}' is unexpected" in fault(checkpoint, {spare: tensor})


@pytest.mark.parametrize(
    ("name", "part"), [("deepseek_v3", "kv_b_proj.weight"), ("deepseek_v3", "e_score_correction_bias")]
)
def test_a_missing_tensor_that_holds_several_weights_is_named(name: str, part: str) -> None:
    checkpoint = saved(name)
    key = next(key for key in checkpoint.tensors if key.endswith(part))
    assert f"{key} {list(checkpoint.tensors[key].shape)} is missing" in fault(checkpoint, {key: None})
