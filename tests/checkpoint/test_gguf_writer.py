"""The gguf library and freedive's reader read what the GGUF writer writes; an incomplete file never
has its final name."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pace import seconds_on_an_idle_core
from weights import quantize, random_tensor

from freedive.checkpoint.gguf import FORMAT_IDS
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.tensor import Tensor
from freedive.errors import Unavailable, UserError

FLOATS = np.arange(12, dtype=np.float32)


def assert_holds(path: Path, tensors: dict[str, Tensor]) -> None:
    """Checks that both readers return ``tensors``, in order."""
    ours = open_checkpoint(path).tensors
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(ours) == list(theirs) == list(tensors)
    for name, tensor in tensors.items():
        assert (ours[name].shape, ours[name].format) == (tensor.shape, tensor.format)
        assert (tuple(theirs[name].shape), theirs[name].tensor_type.name) == (tensor.shape[::-1], tensor.format)
        assert ours[name].data.tobytes() == theirs[name].data.tobytes() == tensor.data.tobytes()


def tensors() -> dict[str, Tensor]:
    """Returns a tensor of every format, and tensors of one to four axes; NVFP4 is read as another format."""
    shapes = ((12,), (3, 4), (2, 3, 2), (2, 1, 3, 2))
    floats = {f"axes.{len(shape)}": quantize("", FLOATS.reshape(shape), "F32") for shape in shapes}
    return floats | {kind: random_tensor(kind, 3, 256) for kind in FORMAT_IDS.values() if kind != "NVFP4"}


def test_every_format_and_shape_is_read_back(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, tensors())
    assert_holds(tmp_path / "m.gguf", tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_tensors_lie_one_after_another_where_the_alignment_allows(alignment: int, tmp_path: Path) -> None:
    """llama.cpp refuses tensors at any other offset."""
    write_gguf(tmp_path / "m.gguf", {"general.alignment": alignment}, tensors())
    assert_holds(tmp_path / "m.gguf", tensors())
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    expected = reader.data_offset
    assert expected % alignment == 0
    for tensor in reader.tensors:
        assert tensor.data_offset == expected
        expected += -(-tensor.n_bytes // alignment) * alignment
    assert (tmp_path / "m.gguf").stat().st_size == expected


def test_a_computed_tensor_is_written_in_chunks(tmp_path: Path) -> None:
    whole = random_tensor("Q8_0", 6, 64)
    made = Tensor("w", (6, 64), "Q8_0", lambda begin, end: whole.data[begin:end])
    write_gguf(tmp_path / "m.gguf", {}, {"w": made})
    assert_holds(tmp_path / "m.gguf", {"w": whole})


def test_a_file_without_anything(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, {})
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert (checkpoint.config, checkpoint.tensors) == ({}, {})


# --- metadata ---------------------------------------------------------------------------------------------------------

INTEGERS = st.integers(-(2**63), 2**63 - 1)
ELEMENTS = (st.text(), st.booleans(), INTEGERS, st.integers(0, 2**64 - 1), st.floats(width=32, allow_nan=False))
VALUES = st.one_of(*ELEMENTS, *(st.lists(kind, max_size=5) for kind in ELEMENTS))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(min_size=1).map("x.{}".format), VALUES, max_size=6))
def test_any_metadata_is_read_back(metadata: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, metadata, {"w": quantize("w", FLOATS, "F32")})
        config = open_checkpoint(path).config
        assert config == metadata
        assert [type(value) for value in config.values()] == [type(value) for value in metadata.values()]
        fields = gguf.GGUFReader(path).fields
        for key, value in metadata.items():
            if value != []:  # the library reads an empty list as None
                assert fields[key].contents() == value


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (0, ["UINT32"]),
        (2**32 - 1, ["UINT32"]),
        (-1, ["INT32"]),
        (2**32, ["UINT64"]),
        (-(2**31) - 1, ["INT64"]),
        (True, ["BOOL"]),
        (1e-5, ["FLOAT32"]),
        ("a", ["STRING"]),
        ([1, 2], ["ARRAY", "INT32"]),
        ([1, 2**31], ["ARRAY", "UINT32"]),
        ([-1, 2**31], ["ARRAY", "INT64"]),
        ([2**63], ["ARRAY", "UINT64"]),
        ([1, 0.5], ["ARRAY", "FLOAT32"]),
        ([True], ["ARRAY", "BOOL"]),
        (["a"], ["ARRAY", "STRING"]),
    ],
)
def test_types_are_those_that_llama_cpp_expects(value: Any, kinds: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"key": value}, {})
    (field,) = (f for key, f in gguf.GGUFReader(tmp_path / "m.gguf").fields.items() if key == "key")
    assert [kind.name for kind in field.types] == kinds


def test_a_large_vocabulary_takes_a_moment(tmp_path: Path) -> None:
    vocabulary = [f"token {index}" for index in range(200_000)]

    def write() -> None:
        write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": vocabulary}, {})

    assert seconds_on_an_idle_core(write, times=3) < 1
    assert open_checkpoint(tmp_path / "m.gguf").config["tokenizer.ggml.tokens"] == vocabulary


def test_a_real_file_comes_back_whole(smollm2_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    write_gguf(tmp_path / "m.gguf", checkpoint.config, checkpoint.tensors)
    again = open_checkpoint(tmp_path / "m.gguf")
    assert again.config == checkpoint.config
    assert list(again.tensors) == list(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(again.tensors[name].data, tensor.data)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_format_that_gguf_lacks_is_refused_by_name(tmp_path: Path) -> None:
    tensor = Tensor("w", (1, 32), "F8", np.zeros((1, 32), np.uint8))
    with pytest.raises(UserError, match=r"the tensor blk\.0\.w, which is F8"):
        write_gguf(tmp_path / "m.gguf", {}, {"blk.0.w": tensor})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")
    (tmp_path / "notes.1.partial").write_text("the user's own")

    def fail(begin: int, end: int) -> Any:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        Unavailable, match=r"cannot be written to .*: No space left on device\. Make room for [1-9][0-9,]* MiB"
    ):
        write_gguf(path, {}, {"w": Tensor("w", (1, 4), "F32", fail)})
    assert path.read_bytes() == b"before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.gguf", "notes.1.partial"]
