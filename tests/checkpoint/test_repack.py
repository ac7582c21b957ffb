"""GGUF formats with grids, ternary ones and NVFP4 are repacked without loss, and have the size that is reported."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from test_checkpoint_formats import random_blocks, write_gguf
from weights import random_tensor, unpack

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import FORMATS, pack
from freedive.checkpoint.repack import REPACKINGS, packed_format, repacked
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.native import _native


@pytest.mark.parametrize("kind", REPACKINGS)
def test_rows_are_repacked_alike_alone_and_in_many(kind: str) -> None:
    tensor = repacked(random_tensor(kind, 3000, 768))  # 9000 blocks, which are several chunks
    assert tensor.data.shape == (3000, 3 * BLOCKS[packed_format(kind)][1])
    for begin, end in ((0, 1), (2729, 2733), (2999, 3000)):
        np.testing.assert_array_equal(tensor.rows(begin, end), tensor.data[begin:end])


@pytest.mark.parametrize("kind", [*REPACKINGS, "F4G16"])
def test_a_reported_size_is_that_in_memory(kind: str) -> None:
    elements, num_bytes = BLOCKS[packed_format(kind)]
    in_memory = _native.packed_bytes(FORMATS[packed_format(kind)], 32, 1024) / (32 * 1024)
    assert in_memory == pytest.approx(num_bytes / elements, rel=0.03)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_ternary_numbers_that_the_gguf_library_quantises_are_read(kind: str) -> None:
    values = np.random.default_rng(0).integers(-1, 2, (40, 512)).astype(np.float32) * np.float32(0.375)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(unpack(pack(Tensor("w", values.shape, kind, data))), values)


@pytest.mark.parametrize(("shape", "scales"), [((70, 320), ()), ((70, 320), (0.3,)), ((3, 9, 512), (0.3, 0.7, 1.1))])
def test_nvfp4_has_the_scales_of_its_matrices(
    shape: tuple[int, ...], scales: tuple[float, ...], tmp_path: Path
) -> None:
    data = random_blocks("NVFP4", math.prod(shape[:-1]), shape[-1]).reshape(*shape[:-1], -1)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.NVFP4)
    tensors = {"a.weight": (data, "NVFP4")}
    if scales:
        factors = np.array(scales, np.float32)
        tensors |= {"a.scale": (factors, "F32"), "a.input_scale": (factors, "F32")}
        expected = expected * factors.reshape(-1, *[1] * (len(shape) - 1))
    write_gguf(tmp_path / "m.gguf", tensors)
    found = open_checkpoint(tmp_path / "m.gguf").tensors
    assert list(found) == ["a.weight"]
    np.testing.assert_allclose(dequantize(found["a.weight"]).reshape(shape), expected, rtol=2.0**-22, atol=0)
    matrix = Tensor("a", (expected[..., 0].size, shape[-1]), found["a.weight"].format, found["a.weight"].data)
    np.testing.assert_array_equal(unpack(pack(matrix)), dequantize(matrix))


def test_scales_of_gemma_4s_outputs_are_not_those_of_its_weights(tmp_path: Path) -> None:
    """They have the name that a scale of NVFP4 would have; a file of Gemma 4 also scales what its router reads."""
    data, factors = random_blocks("NVFP4", 6, 64).reshape(2, 3, -1), np.array([0.5, 2], np.float32)
    outputs = {
        "blk.0.ffn_down_exps.weight": (data, "NVFP4"),
        "blk.0.ffn_down_exps.scale": (factors, "F32"),
        "blk.0.ffn_down_exps.input_scale": (factors, "F32"),
    }
    router = {"blk.0.ffn_gate_inp.scale": (np.ones(64, np.float32), "F32")}
    values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.NVFP4)
    for others, scale in (({}, factors.reshape(2, 1, 1)), (router, np.float32(1))):
        write_gguf(tmp_path / "m.gguf", {**outputs, **others})
        found = open_checkpoint(tmp_path / "m.gguf").tensors
        assert ("blk.0.ffn_down_exps.scale" in found) == bool(others)
        np.testing.assert_array_equal(dequantize(found["blk.0.ffn_down_exps.weight"]), values * scale)


def test_scales_of_another_number_of_matrices_are_refused(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "m.gguf",
        {"a.weight": (random_blocks("NVFP4", 4, 64), "NVFP4"), "a.scale": (np.ones(3, np.float32), "F32")},
    )
    with pytest.raises(UserError, match=r"'a\.scale' is F32 \[3\] instead of F32 \[1\]"):
        open_checkpoint(tmp_path / "m.gguf")
