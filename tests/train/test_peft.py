"""Adapters match PEFT's documentation, and PEFT reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from others import (
    FAMILIES,
    adapted_at_random,
    batch,
    names_of_theirs,
    our_loss,
    their_loss,
    theirs,
)
from safetensors.torch import load_file

from freedive.train.finetune.base_model import open_base_model
from freedive.train.finetune.lora import Tuned
from freedive.train.finetune.peft import misread
from freedive.train.model.net import stacked_params


@pytest.mark.parametrize("name", [*FAMILIES, "olmoe"])
def test_adapters_applied_as_peft_documents_are_the_merged_weights(name: str, folders: Any, tmp_path: Path) -> None:
    base = open_base_model(str(folders(name)))
    settings, adapted = adapted_at_random(base, tmp_path)
    plain = names_of_theirs(base, base.weights())
    tuned_ = Tuned(stacked_params(base.model), base.weights(), adapted, settings.alpha / settings.rank)
    expected = names_of_theirs(base, dict(tuned_.merge()))
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    found = load_file(tmp_path / "adapter_model.safetensors")
    for key, a in ((key, found.pop(key)) for key in sorted(found) if ".lora_A." in key):
        b, module = found.pop(key.replace("lora_A", "lora_B")), key.removeprefix("base_model.model.").split(".lora_")[0]
        stack, scale = module.removesuffix(".base_layer"), settings.alpha / settings.rank
        if module in about["target_modules"]:
            assert about["rank_pattern"].get(module, about["r"]) == len(a)
            plain[f"{module}.weight"] += scale * b @ a
            continue
        (whole,) = (
            each
            for each in about["target_parameters"]
            if each.rpartition(".")[0] == stack and each.endswith("gate_up_proj") == module.endswith("base_layer")
        )
        count = len(plain[whole])
        delta = torch.einsum("ore,eri->eoi", b.view(len(b), -1, count), a.view(count, -1, a.shape[1]))
        plain[whole] += scale * (delta if delta.shape == plain[whole].shape else delta.mT)
    assert not found
    for each, weight in expected.items():
        torch.testing.assert_close(plain[each], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "mixtral", "olmoe", "gpt_oss"])
def test_peft_reads_adapters(name: str, folders: Any, tmp_path: Path) -> None:
    import peft

    base = open_base_model(str(folders(name)))
    settings, adapted = adapted_at_random(base, tmp_path)
    given = batch()
    tuned_ = Tuned(stacked_params(base.model), base.weights(), adapted, settings.alpha / settings.rank)
    with torch.no_grad():
        expected = their_loss(peft.PeftModel.from_pretrained(theirs(folders(name), name), tmp_path), given)
    torch.testing.assert_close(our_loss(base, tuned_, given), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_that_peft_misreads_are_reported(name: str, folders: Any, tmp_path: Path) -> None:
    base = open_base_model(str(folders(name)))
    adapted_at_random(base, tmp_path)
    lost = misread(json.loads((tmp_path / "adapter_config.json").read_text()), base.config["model_type"])
    beside_experts = ("qwen3_moe", "deepseek_v2", "deepseek_v3", "ernie4_5_moe")  # dense layers or shared experts
    stacks_of_other_kinds = ("granitemoeshared", "llama4")
    assert bool(lost) == (name in beside_experts or name in stacks_of_other_kinds), lost
