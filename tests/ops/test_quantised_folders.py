"""Quantised checkpoints as makers publish them, through naming, packing and kernels, equal their plain values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import Floats, prompt, save, take_steps

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.weight_store import pack_model
from freedive.families import describe
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

Named = dict[str, torch.Tensor]
Scheme = Callable[[str, torch.Tensor], tuple[Named, torch.Tensor]]
"""(name, weight) -> the tensors that replace it, and their values."""


def fp8(name: str, weight: torch.Tensor) -> tuple[Named, torch.Tensor]:
    """Quantises to one block of e4m3, whose scale covers all of a weight smaller than 128 x 128."""
    scale = weight.abs().max().reshape(1, 1) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}, codes.float() * scale


def int4(name: str, weight: torch.Tensor) -> tuple[Named, torch.Tensor]:
    """Quantises to symmetric groups of 32, with eight codes per word."""
    groups = weight.reshape(len(weight), -1, 32)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
    codes = (groups / scale.float()).round().clamp(-8, 7)
    nibbles = (codes + 8).reshape(len(weight), -1, 2).to(torch.uint8)
    words = (nibbles[..., 0] | nibbles[..., 1] << 4).contiguous().view(torch.int32)
    parts = {"packed": words, "scale": scale[..., 0], "shape": torch.tensor(weight.shape)}
    values = (codes * scale.float()).reshape(weight.shape)
    return {f"{name}_{ending}": part.contiguous() for ending, part in parts.items()}, values


def nvfp4(name: str, weight: torch.Tensor) -> tuple[Named, torch.Tensor]:
    """Quantises to groups of 16 as ModelOpt does: e2m1 codes, e4m3 scales, and a float for the matrix."""
    groups = weight.reshape(len(weight), -1, 16)
    whole = weight.abs().max() / (6 * 448)
    scale = (groups.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat([sizes, -sizes])
    steps = scale.float()[..., None] * whole
    codes = (groups[..., None] - table * steps[..., None]).abs().argmin(-1).reshape(len(weight), -1, 2).to(torch.uint8)
    parts = {name: codes[..., 0] | codes[..., 1] << 4, f"{name}_scale": scale, f"{name}_scale_2": whole}
    return parts, (table[codes.long()].reshape(groups.shape) * steps).reshape(weight.shape)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
}


def quantise(folder: Path, scheme: Scheme, config: dict[str, Any], parts: str) -> Path:
    """Quantises the projections whose names contain ``parts``; returns a copy of ``folder`` with their plain values."""
    quantised: Named = {}
    plain: Named = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight") and parts in name:
            tensors, plain[name] = scheme(name, weight)
            quantised |= tensors
        else:
            quantised[name] = plain[name] = weight
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    copy = folder / "plain"
    copy.mkdir()
    for place, named, extra in ((folder, quantised, {"quantization_config": config}), (copy, plain, {})):
        save_file(named, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps(settings | extra))
    return copy


@pytest.mark.parametrize(
    ("name", "scheme", "config", "parts", "format"),
    [
        ("qwen3", fp8, FP8, "", "F8G128"),
        ("qwen3_moe", fp8, FP8, "", "F8G128"),
        ("deepseek_v3", fp8, FP8, "", "F8G128"),
        ("deepseek_v3", int4, INT4, ".mlp.experts.", "Q4_0"),
        ("qwen3_moe", int4, INT4, "", "Q4_0"),
        ("qwen3_moe", nvfp4, NVFP4, "", "F4G16"),
    ],
)
def test_a_quantised_folder_answers_as_its_plain_values_do(
    name: str, scheme: Scheme, config: dict[str, Any], parts: str, format: str, tmp_path: Path
) -> None:
    save(name, tmp_path)
    plain = open_checkpoint(quantise(tmp_path, scheme, config, parts))
    checkpoint = open_checkpoint(tmp_path)
    model, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, model, rules)
    assert format in {tensor.format for tensor in tensors.values()}
    weights: dict[str, Floats] = {
        key: dequantize(tensor) for key, tensor in canonical_tensors(plain, *describe(plain)).items()
    }
    native = NativeRunner(model, pack_model(tensors), num_threads=1, max_rows=64, num_pages=4, cache_format="f32")
    reference = ReferenceRunner(model, weights, num_pages=4)
    got, expected = (
        take_steps(runner, [prompt(40)], [[(0, 33)], [(0, 7)]], [[1, 0]])[0] for runner in (native, reference)
    )
    error = ((got - expected) ** 2).sum() / (expected**2).sum()
    assert error < 1e-5  # latent attention stores the weights of keys and values as half floats
