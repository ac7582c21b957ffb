"""Folders as users have them: with extra files, parts without an index, names with spaces, adapters."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_checkpoint_formats import write_gguf, write_sharded

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.errors import NotFound, UserError

INDEX = "model.safetensors.index.json"


def opened(folder: Path) -> dict[str, Any]:
    return {name: dequantize(tensor).ravel()[0] for name, tensor in open_checkpoint(folder).tensors.items()}


def move(folder: Path, *names: str) -> None:
    """Renames the parts of a sharded folder, also in its index."""
    index = json.loads((folder / INDEX).read_text())
    for (tensor, old), new in zip(list(index["weight_map"].items()), names, strict=True):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
        index["weight_map"][tensor] = new
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_may_name_tensors_that_no_file_has(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["mtp.layers.0.norm.weight"] = "model-00002-of-00002.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert opened(tmp_path) == {"t1": 1, "t2": 2}


@pytest.mark.parametrize(
    "names", [("parts/a.safetensors", "parts/b.safetensors"), ("my model.safetensors", "b 2.safetensors")]
)
def test_parts_may_be_in_a_subfolder_and_have_spaces_in_their_names(names: tuple[str, str], tmp_path: Path) -> None:
    write_sharded(tmp_path)
    move(tmp_path, *names)
    assert opened(tmp_path) == {"t1": 1, "t2": 2}


def test_parts_without_an_index_are_one_model(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    assert opened(tmp_path) == {"t1": 1, "t2": 2}
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model-00001-of-00002\.safetensors does not exist"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_parts_without_an_index_is_refused(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    save_file({"t1": np.ones(2, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="'t1' is in another part, too"):
        open_checkpoint(tmp_path)


def test_parts_of_two_models_are_several_models(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    save_file({"t1": np.ones(2, np.float32)}, tmp_path / "other-00001-of-00001.safetensors")
    with pytest.raises(UserError, match=r"several models: model-00001-of-00002\.safetensors, other-00001"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["mmproj-F16.gguf", "mmproj.gguf", "mmproj-model-f16-00001-of-00002.gguf"])
def test_a_projector_beside_a_gguf_model_is_not_a_model(name: str, tmp_path: Path) -> None:
    for file in ("model.gguf", name):
        write_gguf(tmp_path / file, {file: (np.zeros((1, 4), np.float32), "F32")})
    assert list(open_checkpoint(tmp_path).tensors) == ["model.gguf"]


def test_the_folder_of_an_adapter_is_refused_with_its_base_model(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(UserError, match=r"an adapter of 'owner/base', which is not a whole model\. Merge it"):
        open_checkpoint(tmp_path)


def test_numbers_of_64_bits_are_read_as_32(tmp_path: Path) -> None:
    values = np.array([0.1, -3e-5, 7.0])
    save_file({"norm": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    tensor = open_checkpoint(tmp_path).tensors["norm"]
    assert tensor.format == "F32"
    np.testing.assert_array_equal(dequantize(tensor), values.astype(np.float32))


def test_an_empty_tensor_is_ignored(tmp_path: Path) -> None:
    header = {"none": {"dtype": "F32", "shape": [72, 0], "data_offsets": [0, 0]}}
    header["one"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", 1.0))
    assert opened(tmp_path) == {"one": 1}
