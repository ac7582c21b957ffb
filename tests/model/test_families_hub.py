"""The decoder of any checkpoint as a new Hugging Face folder, which freedive and transformers read alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_configs import TINY
from tiny_gguf import ARCHITECTURES, TILED, save_both
from tiny_models import maker_class, maker_model

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.safetensors import write_safetensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import as_hub, describe, describe_config

READ_BY_TRANSFORMERS = ("llama2", "mixtral", "qwen2", "qwen3_moe", "gpt_oss", "granitemoeshared", "gemma3")


def rewritten(path: Path, folder: Path) -> Path:
    """Returns ``folder``, to which the checkpoint at ``path`` is written."""
    checkpoint = open_checkpoint(path)
    model, rules = describe(checkpoint)
    model = replace(model, mtp=None)
    config, hub = as_hub(checkpoint, model)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tensors = canonical_tensors(checkpoint, model, rules)
    write_safetensors(folder / "model.safetensors", maker_tensors(tensors, hub), "")
    again = open_checkpoint(folder)
    assert describe(again)[0] == model
    read = canonical_tensors(again, *describe(again))
    for name, tensor in tensors.items():
        if name.endswith(".rate"):  # a Hugging Face folder has its logarithm
            np.testing.assert_allclose(dequantize(read[name]), dequantize(tensor), rtol=3e-7)
        else:
            assert (read[name].data == tensor.data).all(), name
    return folder


FACTORS_OF_EACH = {"llama", "exaone4", "step3p7"}
"""Tiny configurations whose GGUF files have a factor for each frequency, which no config.json has."""


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in FACTORS_OF_EACH | TILED])
def test_a_gguf_file_becomes_a_folder(name: str, tmp_path: Path) -> None:
    folder = rewritten(save_both(name, tmp_path), tmp_path / "again")
    if name in READ_BY_TRANSFORMERS:
        slow = {"attn_implementation": "eager", "experts_implementation": "eager"}
        tokens = torch.arange(3, 43)[None]
        with torch.no_grad():
            expected, got = (
                maker_class(name).from_pretrained(each, dtype=torch.float32, **slow).eval()(tokens).logits
                for each in (tmp_path, folder)
            )
        torch.testing.assert_close(got, expected)


def test_a_model_that_no_config_json_describes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No config\.json can describe this llama file"):
        rewritten(save_both("llama", tmp_path), tmp_path / "again")  # each frequency has a factor of its own


def test_value_heads_in_llama_cpps_order_are_what_no_config_json_says(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No config\.json can describe this qwen3_5 file"):
        rewritten(save_both("qwen3_5", tmp_path), tmp_path / "again")


@pytest.mark.parametrize("heads", [(2, 2), (1, 4)])
def test_value_heads_that_have_one_order_only_make_a_folder(
    heads: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = dict(zip(("linear_num_key_heads", "linear_num_value_heads"), heads, strict=True))
    monkeypatch.setitem(ARCHITECTURES, "qwen3_5", ("qwen35", changes))
    rewritten(save_both("qwen3_5", tmp_path), tmp_path / "again")


@pytest.mark.parametrize("name", TINY)
def test_a_folder_stays_what_it_is(name: str) -> None:
    config = json.loads(maker_model(name).config.to_json_string())
    config["architectures"] = [maker_class(name).__name__]
    model = describe_config(config)
    said, _ = as_hub(Checkpoint("safetensors", config, {}), model)
    assert describe_config(said) == model
    assert said["architectures"] == config["architectures"]


def test_the_text_part_of_a_wrapped_model_stands_alone() -> None:
    text = json.loads(maker_model("gemma3").config.to_json_string())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    said, _ = as_hub(Checkpoint("safetensors", config, {}), model := describe_config(config))
    assert describe_config(said) == model
    assert (said["architectures"], said["model_type"]) == (["Gemma3ForCausalLM"], "gemma3_text")
