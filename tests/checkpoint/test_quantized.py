"""Every quantised safetensors scheme is read as published; missing and inconsistent parts are named.

The schemes are implemented here a second time, number by number, from their descriptions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from weights import Floats, unpack

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import pack
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError

X = "model.layers.0.mlp.up_proj"
Array = np.ndarray[Any, Any]


@dataclass
class Example:
    """A quantised weight: its tensors, their configuration, and the expected values."""

    tensors: dict[str, torch.Tensor]
    quantization: dict[str, Any]
    format: str
    values: Floats
    name: str = f"{X}.weight"

    def open(self, folder: Path) -> Checkpoint:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / "model.safetensors")
        config = {"model_type": "llama", "quantization_config": self.quantization}
        (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(folder)


def random_codes(*shape: int, below: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, below, shape)


def random_scales(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).uniform(1e-3, 2e-2, shape), dtype=torch.float32)


def words(codes: Array, bits: int, axis: int) -> torch.Tensor:
    """Returns 32-bit words of unsigned ``codes``, the first in the lowest bits; zeros fill the last word
    of ``axis``."""
    per_word = 32 // bits
    moved = np.moveaxis(codes.astype(np.uint64), axis, -1)
    moved = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, -moved.shape[-1] % per_word)])
    parts = moved.reshape(*moved.shape[:-1], -1, per_word)
    joined = sum(parts[..., i] << np.uint64(bits * i) for i in range(per_word))
    return torch.tensor(np.moveaxis(np.asarray(joined).astype(np.uint32).view(np.int32), -1, axis).copy())


def spread(values: Array | torch.Tensor, group: int, axis: int = 1) -> Array:
    return np.repeat(np.asarray(values, np.float64), group, axis)


# --- the schemes --------------------------------------------------------------------------------------------------


def f8(
    *shape: int, block: tuple[int, int] = (128, 128), ending: str = "_scale_inv", dtype: Any = torch.float32
) -> Example:
    codes = torch.tensor(random_codes(*shape, below=256).astype(np.uint8))
    codes[codes & 127 == 127] = 0
    *outer, rows, width = shape
    scale = random_scales(*outer, -(-rows // block[0]), -(-width // block[1])).to(dtype)
    each = scale.float().repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :width]
    weight = codes.view(torch.float8_e4m3fn)
    values = (weight.float() * each).numpy()
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return Example({f"{X}.weight": weight, f"{X}.weight{ending}": scale}, config, "F8G128", values)


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, **weights}}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


def per_row(example: Example, scale: torch.Tensor) -> Example:
    """Returns the same FP8 codes with one ``scale`` per row or for all, in the format of compressed-tensors."""
    weight = example.tensors[f"{X}.weight"]
    tensors = {f"{X}.weight": weight, f"{X}.weight_scale": scale, f"{X}.input_scale": torch.tensor(0.5)}
    values = (weight.float() * scale.float()).numpy()
    return Example(tensors, compressed("float-quantized", num_bits=8), "F8G128", values)


def static(example: Example) -> Example:
    """Returns the same FP8 codes with one scale for all and one for activations, as in Ministral 3."""
    weight, scale = example.tensors[f"{X}.weight"], torch.tensor(0.25)
    tensors = {f"{X}.weight": weight, f"{X}.weight_scale_inv": scale, f"{X}.activation_scale": torch.tensor(0.5)}
    config = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    return Example(tensors, config, "F8G128", (weight.float() * scale).numpy())


def packed(rows: int, width: int, group: int, format: str, *, bits: int = 4, zeros: bool = False) -> Example:
    codes, half = random_codes(rows, width, below=1 << bits), 1 << bits - 1
    scales = random_scales(rows, width // group).bfloat16()
    offsets = (
        random_codes(rows, width // group, below=1 << bits, seed=2) if zeros else np.full((rows, width // group), half)
    )
    tensors = {
        f"{X}.weight_packed": words(codes, bits, 1),
        f"{X}.weight_scale": scales,
        f"{X}.weight_shape": torch.tensor([rows, width]),
    }
    if zeros:
        tensors[f"{X}.weight_zero_point"] = words(offsets, bits, 0)
    values = (codes - spread(offsets, group)) * spread(scales.float(), group)
    config = compressed("pack-quantized", num_bits=bits, group_size=group)
    return Example(tensors, config, format, values.astype(np.float32))


def int8() -> Example:
    codes, scales = random_codes(70, 256, below=256) - 128, random_scales(70, 1).bfloat16()
    tensors = {f"{X}.weight": torch.tensor(codes, dtype=torch.int8), f"{X}.weight_scale": scales}
    values = (codes * np.asarray(scales.float())).astype(np.float32)
    return Example(tensors, compressed("int-quantized", num_bits=8), "I8G128", values)


def gpt_oss() -> Example:
    blocks = torch.tensor(random_codes(3, 10, 2, 16, below=256), dtype=torch.uint8)
    scales = torch.tensor(random_codes(3, 10, 2, below=9, seed=1) + 118, dtype=torch.uint8)
    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2).numpy()
    tensors = {f"{X}_blocks": blocks, f"{X}_scales": scales}
    return Example(tensors, {"quant_method": "mxfp4"}, "MXFP4", values)


def mxfp4_packed() -> Example:
    whole = gpt_oss()
    blocks, scales = whole.tensors[f"{X}_blocks"][0], whole.tensors[f"{X}_scales"][0]
    tensors = {f"{X}.weight_packed": blocks.reshape(10, 32), f"{X}.weight_scale": scales}
    return Example(tensors, compressed("mxfp4-pack-quantized"), "MXFP4", whole.values[0])


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nvfp4(width: int, *, maker: str, shape: tuple[int, ...]) -> Example:
    """Returns a weight in the layout of ``maker``; compressed-tensors divides by the scale of the matrix."""
    codes, scales = random_codes(70, width, below=16), torch.rand(70, width // 16).mul(400).to(torch.float8_e4m3fn)
    pairs = torch.tensor((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
    whole = torch.full(shape, 1.7e-5 if maker == "modelopt" else 6.1e4)
    factor = whole.item() if maker == "modelopt" else 1 / whole.item()
    values = (E2M1[codes] * spread(scales.float(), 16) * factor).astype(np.float32)
    names = ("weight", "weight_scale_2") if maker == "modelopt" else ("weight_packed", "weight_global_scale")
    tensors = {f"{X}.{names[0]}": pairs, f"{X}.weight_scale": scales, f"{X}.{names[1]}": whole}
    if maker == "modelopt":
        return Example(tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "F4G16", values)
    tensors[f"{X}.input_global_scale"] = torch.ones(1)
    return Example(tensors, compressed("nvfp4-pack-quantized", type="float", group_size=16), "F4G16", values)


def gptq(
    format: str, *, bits: int = 4, sym: bool = False, version: int = 1, group: int = 128, order: str = ""
) -> Example:
    rows, width = 64, 256
    codes = random_codes(rows, width, below=1 << bits)
    of = np.arange(width) // (width if group == -1 else group)
    if order:
        of = np.random.default_rng(3).permutation(of)
    groups = int(of.max()) + 1
    zeros = np.full((rows, groups), 1 << bits - 1) if sym else random_codes(rows, groups, below=1 << bits, seed=2)
    zeros = zeros + (version == 1 and not sym)  # version 1 stores 1 to 16 less one
    scales = random_scales(groups, rows).half()
    tensors = {
        f"{X}.qweight": words(codes.T, bits, 0),
        f"{X}.qzeros": words((zeros - (version == 1)).T, bits, 1),
        f"{X}.scales": scales,
        f"{X}.g_idx": torch.tensor(of, dtype=torch.int32),
    }
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": bool(order)}
    config |= {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    values = (codes - zeros[:, of]) * np.asarray(scales.float(), np.float64).T[:, of]
    return Example(
        tensors, config, format, values.astype(np.float16 if format == "F16" else np.float32).astype(np.float32)
    )


def awq(format: str, group: int) -> Example:
    rows, width, order = 64, 256, [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = random_codes(rows, width, below=16), random_codes(rows, width // group, below=16, seed=2)
    scales = random_scales(width // group, rows).half()

    def shuffled(matrix: Array) -> torch.Tensor:
        """Reorders each eight outputs as the 4-bit codes in a word are."""
        return words(matrix.T.reshape(-1, rows // 8, 8)[..., order].reshape(-1, rows), 4, 1)

    tensors = {f"{X}.qweight": shuffled(codes), f"{X}.qzeros": shuffled(zeros), f"{X}.scales": scales}
    values = (codes - spread(zeros, group)) * spread(scales.float().T, group)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Example(tensors, config, format, values.astype(np.float32))


EXAMPLES: dict[str, Callable[[], Example]] = {
    "FP8": lambda: f8(256, 384),
    "FP8, ragged blocks": lambda: f8(130, 200),
    "FP8, less than a block": lambda: f8(70, 45),
    "FP8, exponents": lambda: f8(130, 200, dtype=torch.float8_e8m0fnu),
    "FP8, bf16 scales of another name": lambda: f8(130, 200, ending="_scale", dtype=torch.bfloat16),
    "FP8, stacked experts": lambda: f8(3, 130, 200),
    "FP8 by row": lambda: per_row(f8(130, 200), random_scales(130, 1).bfloat16()),
    "FP8 by tensor": lambda: per_row(f8(130, 200), torch.tensor(0.25)),
    "FP8 by tensor, static": lambda: static(f8(130, 200)),
    "FP8 by tensor of one": lambda: per_row(f8(130, 200), torch.tensor([0.25])),
    "int4, groups of 32": lambda: packed(70, 96, 32, "Q4_0"),
    "int4, groups of 64": lambda: packed(70, 192, 64, "I4G64"),
    "int4, groups of 128": lambda: packed(70, 256, 128, "I4G128"),
    "int4, groups of 96": lambda: packed(70, 192, 96, "Q4_0"),
    "int4, groups of 16": lambda: packed(70, 96, 16, "F16"),
    "int4 by row": lambda: packed(70, 256, 256, "I4G128"),
    "int4, zero points, groups of 32": lambda: packed(70, 96, 32, "I4G32Z", zeros=True),
    "int4, zero points, groups of 64": lambda: packed(70, 192, 64, "I4G64Z", zeros=True),
    "int4, zero points, groups of 128": lambda: packed(70, 256, 128, "I4G128Z", zeros=True),
    "int8, packed": lambda: packed(70, 96, 32, "Q8_0", bits=8),
    "int8": int8,
    "MXFP4 of gpt-oss": gpt_oss,
    "MXFP4, packed": mxfp4_packed,
    "NVFP4": lambda: nvfp4(256, maker="compressed-tensors", shape=(1,)),
    "NVFP4 of ModelOpt": lambda: nvfp4(256, maker="modelopt", shape=()),
    "NVFP4, a part of a block": lambda: nvfp4(352, maker="modelopt", shape=(1,)),
    "GPTQ": lambda: gptq("I4G128Z"),
    "GPTQ, symmetric": lambda: gptq("I4G128", sym=True),
    "GPTQ, symmetric, version 2": lambda: gptq("I4G128", sym=True, version=2),
    "GPTQ, version 2, groups of 32": lambda: gptq("I4G32Z", version=2, group=32),
    "GPTQ, int8": lambda: gptq("I8G128", bits=8, sym=True),
    "GPTQ, int8 with zero points": lambda: gptq("F16", bits=8, version=2),
    "GPTQ, one group": lambda: gptq("I4G128Z", group=-1),
    "GPTQ, scattered inputs": lambda: gptq("F16", order="random", group=32),
    "AWQ": lambda: awq("I4G128Z", 128),
    "AWQ, groups of 64": lambda: awq("I4G64Z", 64),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_quantised_weight_is_one_tensor_with_the_published_values(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]()
    checkpoint = example.open(tmp_path)
    assert checkpoint.config == {"model_type": "llama"}
    assert list(checkpoint.tensors) == [example.name]
    tensor = checkpoint.tensors[example.name]
    assert (tensor.shape, tensor.format) == (example.values.shape, example.format)
    rtol = 1e-3 if example.format == "F16" else 1e-6  # half floats round; elsewhere float32 rounds exact products
    np.testing.assert_allclose(dequantize(tensor), example.values, rtol=rtol, atol=0)
    num_rows = len(tensor.data)
    np.testing.assert_array_equal(tensor.rows(num_rows // 3, num_rows - 1), tensor.data[num_rows // 3 : -1])


@pytest.mark.parametrize("name", EXAMPLES)
def test_packing_it_loses_nothing(name: str, tmp_path: Path) -> None:
    tensor = next(iter(EXAMPLES[name]().open(tmp_path).tensors.values()))
    expected = dequantize(tensor).reshape(-1, tensor.shape[-1])
    matrix = Tensor(tensor.name, expected.shape, tensor.format, tensor.data)
    np.testing.assert_array_equal(unpack(pack(matrix)), expected)


def test_weights_that_are_not_quantised_stay_as_they_are(tmp_path: Path) -> None:
    example = packed(70, 96, 32, "Q4_0")
    example.tensors |= {"lm_head.weight": torch.ones(3, 5), f"{X}.bias": torch.ones(70)}
    tensors = example.open(tmp_path).tensors
    assert {name: tensor.format for name, tensor in tensors.items()} == {
        "lm_head.weight": "F32",
        f"{X}.bias": "F32",
        f"{X}.weight": "Q4_0",
    }


def test_a_wrapped_model_declares_its_quantisation_outside_its_text_part(tmp_path: Path) -> None:
    example = packed(70, 96, 32, "Q4_0")
    example.open(tmp_path)
    config = {"text_config": {"model_type": "llama", "quantization_config": example.quantization}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"text_config": {"model_type": "llama"}}
    assert checkpoint.tensors[f"{X}.weight"].format == "Q4_0"


# --- damage -------------------------------------------------------------------------------------------------------


def refusal(example: Example, folder: Path) -> str:
    """Returns the message of the UserError that opening and packing raise, or ""."""
    try:
        for tensor in example.open(folder).tensors.values():
            assert tensor.data.nbytes < 1 << 20
            if len(tensor.shape) == 2:
                pack(tensor)
    except UserError as error:
        return str(error)
    return ""


def companions(example: Example) -> list[str]:
    """Returns the tensors that the weight needs."""
    optional = (".activation_scale", ".input_scale", ".input_global_scale", ".g_idx", "_zero_point")
    return [name for name in example.tensors if not name.endswith(optional)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_missing_companion_is_named(name: str, tmp_path: Path) -> None:
    for missing in companions(EXAMPLES[name]()):
        example = EXAMPLES[name]()
        del example.tensors[missing]
        if any(tensor.dtype not in (torch.float32, torch.bfloat16, torch.half) for tensor in example.tensors.values()):
            assert X in refusal(example, tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_companions_of_another_shape_or_type_are_named(name: str, tmp_path: Path) -> None:
    """FP8 scales are excepted, since makers do not agree on their axes of 1."""
    _, *parts = EXAMPLES[name]().tensors
    for part in parts:
        tensor = EXAMPLES[name]().tensors[part]
        if tensor.dim() == 0 or part.endswith(("input_scale", "input_global_scale", "activation_scale")):
            continue
        raw = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
        changes = [torch.cat([raw, raw]).view(tensor.dtype), raw[..., :-1].view(tensor.dtype), raw.to(torch.complex64)]
        changes += [] if "FP8" in name else [raw[None].view(tensor.dtype)]
        for changed in changes:
            example = EXAMPLES[name]()
            example.tensors[part] = changed
            assert part in (words := refusal(example, tmp_path)) or X in words, f"{part} {list(changed.shape)}"


NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "FP4" not in name and "experts" not in name])
def test_scales_that_are_not_finite_are_found_when_packing(name: str, tmp_path: Path) -> None:
    for value in NOT_FINITE:
        example = EXAMPLES[name]()
        unread = ("input_scale", "activation_scale")
        (scale,) = (tensor for key, tensor in example.tensors.items() if "scale" in key and not key.endswith(unread))
        scale.view(-1)[-1] = value
        assert f"{X}.weight' has NaN or infinite" in refusal(example, tmp_path)


def test_numbers_that_are_not_finite_are_found_when_packing(tmp_path: Path) -> None:
    for code in (0x7F, 0xFF):
        example = f8(130, 200)
        example.tensors[f"{X}.weight"].view(torch.uint8)[129, 199] = code
        assert f"{X}.weight' has NaN" in refusal(example, tmp_path)
    for value in NOT_FINITE:
        example = nvfp4(256, maker="modelopt", shape=())
        example.tensors[f"{X}.weight_scale_2"] = torch.tensor(value)
        assert f"{X}.weight' has NaN" in refusal(example, tmp_path)
    for example in (nvfp4(256, maker="modelopt", shape=()), nvfp4(256, maker="compressed-tensors", shape=(1,))):
        example.tensors[f"{X}.weight_scale"].view(torch.uint8)[69, 15] = 0x7F
        assert f"{X}.weight' has NaN" in refusal(example, tmp_path)
    example = nvfp4(256, maker="compressed-tensors", shape=(1,))
    example.tensors[f"{X}.weight_global_scale"][0] = 0
    assert f"{X}.weight' has NaN" in refusal(example, tmp_path)
    example = mxfp4_packed()
    example.tensors[f"{X}.weight_scale"][9, 1] = 255
    assert f"{X}.weight' has NaN" in refusal(example, tmp_path)
    for dtype in (torch.float32, torch.half, torch.bfloat16):
        for shape in ((5,), (5, 7)):
            for value in NOT_FINITE:
                plain = torch.ones(shape, dtype=dtype)
                plain.view(-1)[-1] = value
                tensors = Example({"w": plain}, {}, "", np.empty(0, np.float32)).open(tmp_path).tensors
                with pytest.raises(UserError, match="'w' has NaN or infinite"):
                    pack(tensors["w"])


@pytest.mark.parametrize(("kind", "largest"), [("F4G16", 2.0**116), ("F8G128", 2.0**119), ("MXFP4", 2.0**125)])
def test_scales_that_make_weights_infinite_are_found_when_packing(kind: str, largest: float) -> None:
    """The largest code of e2m1 is 6, that of e4m3 448; ``largest`` is the last power of two that is a scale."""
    for scale, refused in ((largest, False), (2 * largest, True)):
        elements, num_bytes = BLOCKS[kind]
        data = np.zeros((33, 256 // elements, num_bytes), np.uint8)
        if kind == "F4G16":
            data[..., 4:20] = 0x7E
        if kind == "MXFP4":
            data[..., 0] = np.log2(scale) + 127
        else:
            data[..., :4] = np.full((*data.shape[:2], 1), scale, np.float32).view(np.uint8)
        data[32, -1, -1] = 0x7E if kind == "F8G128" else 0x70
        tensor = Tensor("w", (33, 256), kind, data.reshape(33, -1))
        with np.errstate(over="ignore"):
            assert np.isinf(dequantize(tensor)).any() == refused
        with pytest.raises(UserError, match="'w' has NaN or infinite") if refused else nullcontext():
            pack(tensor)


LIES: dict[str, tuple[Callable[[], Example], dict[str, Any], str]] = {
    "an unknown method": (lambda: f8(70, 45), {"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
    "no method": (lambda: f8(70, 45), {"quant_method": None}, "None"),
    "a list for a method": (lambda: f8(70, 45), {"quant_method": ["fp8"]}, "fp8"),
    "wrong blocks": (lambda: f8(256, 384), {"weight_block_size": [64, 128]}, r"weight_scale_inv.* \[2, 3\]"),
    "narrow blocks": (lambda: f8(256, 384, block=(128, 64)), {"weight_block_size": [128, 64]}, "every 64 inputs"),
    "no blocks": (lambda: f8(256, 384), {"weight_block_size": [0, 128]}, r"blocks of \[0, 128\]"),
    "words for blocks": (lambda: f8(256, 384), {"weight_block_size": "128"}, "'128'"),
    "3 bits": (lambda: gptq("I4G128Z"), {"bits": 3}, r"\[3\] bits"),
    "no bits": (lambda: gptq("I4G128Z"), {"bits": None}, r"\[None\] bits"),
    "bits of several kinds": (lambda: packed(70, 96, 32, "Q4_0"), {"config_groups": {}}, "bits"),
    "groups of 0": (lambda: gptq("I4G128Z"), {"group_size": 0}, "groups of 0"),
    "groups of text": (lambda: gptq("I4G128Z"), {"group_size": "128"}, "groups of '128'"),
    "groups of another size": (lambda: gptq("I4G128Z"), {"group_size": 64}, r"\[2, 64\] instead of \[4, 64\]"),
    "not symmetric": (lambda: gptq("I4G128Z"), {"sym": True}, "has zero points"),
    "not in order": (lambda: gptq("F16", order="random"), {"desc_act": False}, "has a g_idx"),
    "AWQ for another machine": (lambda: awq("I4G128Z", 128), {"version": "gemv"}, "gemm"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_invalid_configurations_are_refused(lie: str, tmp_path: Path) -> None:
    make, changes, expected = LIES[lie]
    example = make()
    example.quantization |= changes
    words = refusal(example, tmp_path)
    assert re.search(expected, words), words


ODD_VALUES: tuple[Any, ...] = (None, True, 0, -1, 4.0, 1 << 40, float("nan"), "4", [], [4], [[4], {}])
ODD_VALUES += ({}, {"weights": [4]}, {"a": {}})


@pytest.mark.parametrize("name", EXAMPLES)
def test_odd_values_in_a_configuration_are_survived(name: str, tmp_path: Path) -> None:
    for value in ODD_VALUES:
        for key in EXAMPLES[name]().quantization:
            example = EXAMPLES[name]()
            example.quantization[key] = value
            refusal(example, tmp_path)
        for key in ("num_bits", "group_size", "block_structure"):
            example = EXAMPLES[name]()
            for group in example.quantization.get("config_groups", {}).values():
                group["weights"][key] = value
                refusal(example, tmp_path)


def test_nvfp4_rows_that_kernels_cannot_read_are_refused(tmp_path: Path) -> None:
    assert "has 336 inputs instead of a multiple of 32" in refusal(nvfp4(336, maker="modelopt", shape=()), tmp_path)


def test_outputs_that_fill_no_whole_words_are_refused(tmp_path: Path) -> None:
    tensors = {f"{X}.{name}": torch.zeros(shape, dtype=kind) for name, shape, kind in GPTQ_OF_65}
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    example = Example(tensors, config, "", np.empty(0))
    with pytest.raises(UserError, match="zero points of 65 outputs, whose 4 bits fill no whole words"):
        example.open(tmp_path)


GPTQ_OF_65 = (
    ("qweight", (16, 65), torch.int32),
    ("qzeros", (1, 8), torch.int32),
    ("scales", (1, 65), torch.float16),
)


def test_a_g_idx_beyond_its_groups_is_refused(tmp_path: Path) -> None:
    for value in (-1, 99, 2**31 - 1):
        example = gptq("F16", order="random")
        example.tensors[f"{X}.g_idx"][7] = value
        assert "beyond its 2 groups" in refusal(example, tmp_path)


def test_a_weight_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    example = gptq("I4G128Z")
    example.tensors[f"{X}.weight"] = torch.ones(64, 256)
    assert "twice" in refusal(example, tmp_path)


@pytest.mark.parametrize(
    "name", ["FP8, ragged blocks", "int4, zero points, groups of 32", "GPTQ", "AWQ", "MXFP4, packed"]
)
def test_mutated_headers_and_configurations_are_read_or_refused(name: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    EXAMPLES[name]().open(tmp_path)
    originals = {file: (tmp_path / file).read_bytes() for file in ("model.safetensors", "config.json")}
    refused = 0
    for index in range(300):
        file = ("model.safetensors", "config.json")[index % 2]
        data = bytearray(originals[file])
        size = len(data) if file == "config.json" else 8 + int.from_bytes(data[:8], "little")
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(size)] = rng.choice(b'0123456789"{}[],:aFI')
        (tmp_path / file).write_bytes(data)
        try:
            for tensor in open_checkpoint(tmp_path).tensors.values():
                assert tensor.data.nbytes < 1 << 20
        except UserError as error:
            refused += str(error).isprintable()
        (tmp_path / file).write_bytes(originals[file])
    assert refused > 100
