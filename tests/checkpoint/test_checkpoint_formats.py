"""Tensors that are read from either container equal those that the libraries of the formats wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from pace import seconds_on_an_idle_core
from safetensors.numpy import save_file
from weights import HALVES

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.gguf import FORMAT_IDS
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError


def write_gguf(path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], str]], **metadata: Any) -> None:
    """Writes a GGUF file of ``tensors`` (bytes or floats, format) with the gguf library."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        (writer.add_uint16 if key.startswith("split") else writer.add_array)(key.replace("__", "."), value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: str, num_rows: int, width: int) -> np.ndarray[Any, Any]:
    """Returns random bytes with finite scales: every float16 field has a small exponent."""
    block, num_bytes = BLOCKS[kind]
    data = np.random.default_rng(0).integers(0, 256, (num_rows, width // block, num_bytes), np.uint8)
    high_bytes = {"F32": (3,), "F16": (1,), "BF16": (1,), "MXFP4": (0,), "IQ1_M": (55,), "NVFP4": range(4)}
    for at in high_bytes.get(kind) or (half + 1 for half in HALVES[kind]):
        data[..., at] &= 0x2F
    return data.reshape(num_rows, -1)


def test_format_tables_are_those_of_the_gguf_library() -> None:
    assert set(FORMAT_IDS.values()) == {name for name in BLOCKS if name in gguf.GGMLQuantizationType.__members__}
    for number, name in FORMAT_IDS.items():
        kind = gguf.GGMLQuantizationType[name]
        assert (kind.value, gguf.GGML_QUANT_SIZES[kind]) == (number, BLOCKS[name])


@pytest.mark.parametrize("kind", FORMAT_IDS.values())
def test_every_format_reads_as_the_gguf_library_reads_it(kind: str, tmp_path: Path) -> None:
    data = random_blocks(kind, 5, 512)
    write_gguf(tmp_path / "m.gguf", {"a.weight": (data, kind), "b.weight": (data[::-1].copy(), kind)})
    tensors = open_checkpoint(tmp_path / "m.gguf").tensors
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name in ("a.weight", "b.weight"):
        tensor, theirs = tensors[name], reference[name]
        if kind != "NVFP4":  # is joined with its scales
            assert (tensor.shape, tensor.format, tensor.data.shape[0]) == ((5, 512), kind, 5)
            assert tensor.data.tobytes() == theirs.data.tobytes()
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        assert np.isfinite(expected).all()
        values = dequantize(tensor)
        assert (values.dtype, values.shape) == (np.float32, (5, 512))
        np.testing.assert_array_equal(values, expected)


def test_metadata_arrives_as_plain_python_values(tmp_path: Path) -> None:
    values = {"strings": ["a", "", "→ é"], "numbers": [1, -2, 3], "floats": [0.5, -1.0], "flags": [True, False]}
    write_gguf(tmp_path / "m.gguf", {"x": (np.zeros((1, 4), np.float32), "F32")}, **values)
    config = open_checkpoint(tmp_path / "m.gguf").config
    assert {key: config[key] for key in values} == values
    assert config["general.architecture"] == "llama"
    assert [type(value) for value in config["floats"] + config["flags"]] == [float, float, bool, bool]


def test_nothing_is_copied(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"x": (np.ones((3, 4), np.float32), "F32")})
    save_file({"x": np.ones((3, 4), np.float32)}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for name in ("m.gguf", "m.safetensors"):
        data = open_checkpoint(tmp_path / name).tensors["x"].data
        assert not data.flags.writeable
        assert not data.flags.owndata


def test_real_smollm2_opens_whole_and_in_a_fraction_of_a_second(smollm2_path: Path) -> None:
    assert seconds_on_an_idle_core(lambda: open_checkpoint(smollm2_path), times=3) < 0.15
    checkpoint = open_checkpoint(smollm2_path)
    assert (len(checkpoint.config["tokenizer.ggml.tokens"]), len(checkpoint.tensors)) == (49152, 272)
    data_size = sum(tensor.data.size for tensor in checkpoint.tensors.values())
    assert data_size < smollm2_path.stat().st_size < 1.05 * data_size
    embedding = checkpoint.tensors["token_embd.weight"]
    rows = dequantize(Tensor("rows", (9, 576), embedding.format, embedding.data[:9]))
    assert 0.01 < rows.std() < 1


# --- several files ------------------------------------------------------------------------------------------------


def write_split(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    paths = [folder / f"m-{index + 1:05}-of-{count:05}.gguf" for index in range(count)]
    for index, path in enumerate(paths):
        tensor = np.full((2, 4), index, np.float32)
        split = {"split__no": index, "split__count": count, "split__tensors__count": count, **changes}
        write_gguf(path, {f"t{index}": (tensor, "F32")}, **split)
    return paths


def test_a_split_gguf_opens_from_any_part_and_from_its_folder(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    for path in (*paths, tmp_path):
        tensors = open_checkpoint(path).tensors
        assert {name: dequantize(tensor)[0, 0] for name, tensor in tensors.items()} == {"t0": 0, "t1": 1, "t2": 2}


def test_an_incomplete_split_gguf_is_refused(tmp_path: Path) -> None:
    first, middle, _ = write_split(tmp_path)
    middle.rename(tmp_path / "away.bin")
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf does not exist"):
        open_checkpoint(first)
    first.rename(tmp_path / "one.gguf")
    with pytest.raises(UserError, match="one part of a split model"):
        open_checkpoint(tmp_path / "one.gguf")


@pytest.mark.parametrize("changes", [{"split__no": 0}, {"split__count": 2}, {"split__tensors__count": 4}])
def test_parts_that_disagree_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged"):
        open_checkpoint(write_split(tmp_path, **changes)[0])


def write_sharded(folder: Path) -> None:
    weight_map = {}
    for index in (1, 2):
        name = f"model-{index:05}-of-00002.safetensors"
        save_file({f"t{index}": np.full((2, 3), index, np.float16)}, folder / name)
        weight_map[f"t{index}"] = name
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_sharded_folder_opens_by_its_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.config) == ("safetensors", {"model_type": "llama"})
    assert {name: dequantize(tensor)[1, 2] for name, tensor in checkpoint.tensors.items()} == {"t1": 1, "t2": 2}


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"t1": "../../etc/passwd"}, "no .safetensors file in its folder"),
        ({"t1": "../outside.safetensors"}, "no .safetensors file in its folder"),
        ({"t1": "/etc/x.safetensors"}, "no .safetensors file in its folder"),
        ({"t1": "a\\b.safetensors"}, "no .safetensors file in its folder"),
        ({"t1": "x\0.safetensors"}, "no .safetensors file in its folder"),
        ({"t1": 7}, "no .safetensors file in its folder"),
        ({"t1": ["model.safetensors"]}, "no .safetensors file in its folder"),
        ({"t1": "x" * 5000 + ".safetensors"}, "cannot be read"),
        ({"t1": "absent.safetensors"}, r"absent\.safetensors does not exist"),
        ({"t1": "a/../../outside.safetensors"}, "no .safetensors file in its folder"),
        ({"t1": "a/"}, "no .safetensors file in its folder"),
        ({}, "weight_map"),
        ([], "weight_map"),
        (None, "weight_map"),
    ],
)
def test_a_false_index_is_refused(weight_map: Any, words: str, tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=words):
        open_checkpoint(tmp_path)


def test_folders_without_one_clear_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no model"):
        open_checkpoint(tmp_path)
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        open_checkpoint(tmp_path)
    write_gguf(tmp_path / "b.gguf", {"x": (np.zeros((1, 4), np.float32), "F32")})
    with pytest.raises(UserError, match=r"several models: a\.safetensors, b\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["absent.gguf", "absent.safetensors", "x" * 5000, "config.json/x.gguf"])
def test_paths_to_nothing_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"does not exist|cannot be read"):
        open_checkpoint(tmp_path / name)


def test_formats_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    data = np.zeros((2, 36), np.uint8)
    write_gguf(tmp_path / "m.gguf", {"x": (data, "Q1_0")})
    with pytest.raises(UserError, match=r"'x' has the type Q1_0.*Q4_K"):
        open_checkpoint(tmp_path / "m.gguf")
    save_file({"x": np.zeros(2, np.int32)}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"'x' has the type I32.*BF16"):
        open_checkpoint(tmp_path / "m.safetensors")
