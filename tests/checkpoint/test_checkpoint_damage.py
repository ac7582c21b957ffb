"""Damaged and hostile files end in a UserError: no other exception, no long wait, no large allocation."""

from __future__ import annotations

import json
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from freedive import files
from freedive.checkpoint import file
from freedive.checkpoint import gguf as gguf_reader
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.errors import UserError
from freedive.families import describe

SHAPES = {
    "token_embd.weight": (64, 32),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
    "output_norm.weight": (32,),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


def read_all(path: Path) -> None:
    """Does all that loading does before it converts the first weight, and reads the rows."""
    checkpoint = open_checkpoint(path)
    spec, rules = describe(checkpoint)
    for tensor in canonical_tensors(checkpoint, spec, rules).values():
        assert tensor.data.size < 100_000


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(64)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_token_list([f"token {index}" for index in range(64)])
    writer.add_token_types([1] * 64)
    writer.add_add_bos_token(True)
    for name, shape in SHAPES.items():
        data = np.ones(shape, np.float32)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def safetensors_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("safetensors") / "m.safetensors"
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    parts |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    parts |= {"ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names = {f"blk.0.{ours}.weight": f"model.layers.0.{theirs}.weight" for ours, theirs in parts.items()}
    names |= {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    save_file({names[name]: np.ones(shape, np.float16) for name, shape in SHAPES.items()}, path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def refusal(action: Callable[[], object]) -> str:
    """Returns the message of the UserError that ``action`` raises, or ""; any other exception fails the test."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def mutate(data: bytes, header: int, rng: random.Random) -> bytes:
    """Applies one to three random changes, mostly to bytes of the header."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(header, len(changed) - 1))
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                changed[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 3:
                changed[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del changed[at : at + rng.randint(1, 16)]
            case 5:
                changed[at:at] = changed[at : at + rng.randint(1, 16)]
            case 6:
                del changed[rng.randrange(9, len(changed)) :]
    return bytes(changed)


def survive(path: Path, versions: list[bytes]) -> int:
    """Returns how many of ``versions`` are refused; any error but a UserError fails the test."""
    refused = 0
    start = time.process_time()
    for data in versions:
        path.write_bytes(data)
        message = refusal(lambda: read_all(path))
        assert message.isprintable()
        refused += message != ""
    assert time.process_time() - start < 10 * len(versions) / 2000
    return refused


def header_size(data: bytes) -> int:
    return data.index(b"rope_freqs.weight") + 60


def test_undamaged_files_are_read(gguf_bytes: bytes, safetensors_bytes: bytes, folder: Path) -> None:
    assert survive(folder / "m.gguf", [gguf_bytes]) == 0
    assert survive(folder / "m.safetensors", [safetensors_bytes]) == 0


@pytest.mark.parametrize("seed", range(2))
def test_mutated_gguf_is_read_or_refused(seed: int, gguf_bytes: bytes, folder: Path) -> None:
    rng = random.Random(seed)
    header = header_size(gguf_bytes)
    refused = survive(folder / "m.gguf", [mutate(gguf_bytes, header, rng) for _ in range(2000)])
    assert refused > 1000


@pytest.mark.parametrize("extreme", [0, 2**40, 2**64 - 1])
def test_an_extreme_number_anywhere_in_a_gguf_header_is_survived(extreme: int, gguf_bytes: bytes, folder: Path) -> None:
    number = struct.pack("<Q", extreme)
    places = range(header_size(gguf_bytes))
    refused = survive(folder / "m.gguf", [gguf_bytes[:at] + number + gguf_bytes[at + 8 :] for at in places])
    assert refused > len(places) // 2


@pytest.mark.parametrize("seed", range(2))
def test_mutated_safetensors_is_read_or_refused(seed: int, safetensors_bytes: bytes, folder: Path) -> None:
    rng = random.Random(seed)
    header = 8 + int.from_bytes(safetensors_bytes[:8], "little")
    refused = survive(folder / "m.safetensors", [mutate(safetensors_bytes, header, rng) for _ in range(2000)])
    assert refused > 1000


def test_every_truncation_is_refused(gguf_bytes: bytes, safetensors_bytes: bytes, folder: Path) -> None:
    for name, data in (("m.gguf", gguf_bytes), ("m.safetensors", safetensors_bytes)):
        last = len(data) - 32  # the gguf library pads the last tensor
        cuts = [data[:size] for size in (*range(0, last, 7), last)]
        assert survive(folder / name, cuts) == len(cuts)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_mutated_json_is_read_or_refused(name: str, safetensors_bytes: bytes, folder: Path) -> None:
    (folder / "model-1.safetensors").write_bytes(safetensors_bytes)
    names = [key for key in json.loads(safetensors_bytes[8 : safetensors_bytes.index(b"}}") + 2]) if key[0] != "_"]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    )
    read_all(folder)
    text = (folder / name).read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        (folder / name).write_bytes(mutate(text, len(text), rng))
        refused += refusal(lambda: read_all(folder)) != ""
    assert refused > 250


# --- inconsistent files -------------------------------------------------------------------------------------------


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def gguf_file(*parts: bytes, num_tensors: int = 0, num_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + b"".join(parts) + bytes(64)


def tensor(name: bytes, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


GGUF_LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "other magic": (b"ggml" + bytes(100), "neither a GGUF nor a safetensors"),
    "only magic": (b"GGUF", "does not end"),
    "version 1": (gguf_file(version=1), "version 1"),
    "big-endian": (gguf_file(version=3 << 24), "big-endian"),
    "2**60 tensors": (gguf_file(num_tensors=2**60), "more than 262144"),
    "2**60 keys": (gguf_file(num_keys=2**60), "occurs twice|does not end"),
    "2**40-long key": (gguf_file(string(b"a", 2**40), num_keys=1), "does not end"),
    "2**64-long key": (gguf_file(string(b"a", 2**64 - 1), num_keys=1), "does not end"),
    "2**40 numbers": (
        gguf_file(string(b"a") + struct.pack("<IIQ", 9, 4, 2**40), num_keys=1),
        "more than 8388608",
    ),
    "2**61 strings": (
        gguf_file(string(b"a") + struct.pack("<IIQ", 9, 8, 2**61), num_keys=1),
        "more than 8388608",
    ),
    "2**64-long token": (
        gguf_file(string(b"a") + struct.pack("<IIQ", 9, 8, 3) + string(b"b", 2**64 - 1), num_keys=1),
        "does not end",
    ),
    "2**63 doubles": (
        gguf_file(string(b"a") + struct.pack("<IIQ", 9, 12, 2**63), num_keys=1),
        "more than 8388608",
    ),
    "nested array": (gguf_file(string(b"a") + struct.pack("<IIQ", 9, 9, 2) * 1000, num_keys=1), "unknown type 9"),
    "unknown value type": (gguf_file(string(b"a") + struct.pack("<I", 77), num_keys=1), "unknown type 77"),
    "duplicate key": (gguf_file((string(b"a") + struct.pack("<IB", 0, 1)) * 2, num_keys=2), "occurs twice"),
    "not UTF-8": (gguf_file(string(b"\xff\xfe") + struct.pack("<IB", 0, 1), num_keys=1), "UTF-8"),
    "duplicate tensor": (gguf_file(tensor(b"t", 4) + tensor(b"t", 4, offset=32), num_tensors=2), "twice"),
    "overlap": (gguf_file(tensor(b"t", 4) + tensor(b"u", 4, offset=8), num_tensors=2), "overlaps"),
    "zero dim": (gguf_file(tensor(b"t", 4, 0), num_tensors=1), "shape"),
    "no dims": (gguf_file(tensor(b"t"), num_tensors=1), "0 dimensions"),
    "five dims": (gguf_file(tensor(b"t", 1, 1, 1, 1, 1), num_tensors=1), "5 dimensions"),
    "2**32 dims": (gguf_file(string(b"t") + struct.pack("<I", 2**32 - 1), num_tensors=1), "dimensions"),
    "huge dims": (gguf_file(tensor(b"t", 2**63, 2**63, 2**63), num_tensors=1), "ends at byte"),
    "overflowing dims": (gguf_file(tensor(b"t", 2**32, 2**32), num_tensors=1), "ends at byte"),
    "far offset": (gguf_file(tensor(b"t", 4, offset=2**64 - 32), num_tensors=1), "ends at byte"),
    "type 999": (gguf_file(tensor(b"t", 4, kind=999), num_tensors=1), "has the type 999"),
    "type Q8_K": (gguf_file(tensor(b"t", 256, kind=15), num_tensors=1), "has the type Q8_K"),
    "ragged block": (gguf_file(tensor(b"t", 33, kind=8), num_tensors=1), "multiple of 32"),
    "alignment 0": (gguf_file(string(b"general.alignment") + struct.pack("<II", 4, 0), num_keys=1), "power of two"),
    "alignment 33": (gguf_file(string(b"general.alignment") + struct.pack("<II", 4, 33), num_keys=1), "power of two"),
    "text alignment": (
        gguf_file(string(b"general.alignment") + struct.pack("<I", 8) + string(b"x"), num_keys=1),
        "'x'",
    ),
    "terminal escape": (gguf_file(tensor(b"\x1b[2J\n" * 99, 4, 0), num_tensors=1), r"\\x1b\[2J"),
}


def st_file(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS_LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"1234567", "inside its header"),
    "2**60-long header": (struct.pack("<Q", 2**60) + bytes(99), "claims"),
    "not JSON": (st_file(b"{nonsense"), "cannot be parsed"),
    "not UTF-8": (st_file(b'{"\xff": 1}'), "cannot be parsed"),
    "an array": (st_file([1, 2]), "not an object"),
    "deep": (st_file(b"[" * 100_000), "cannot be parsed"),
    "long number": (st_file(b'{"a": ' + b"9" * 10_000 + b"}"), "cannot be parsed"),
    "duplicate name": (st_file(b'{"a": 1, "a": 2}'), "occurs twice"),
    "not an entry": (st_file({"a": 1}), "is described by"),
    "no offsets": (st_file({"a": {"dtype": "F32", "shape": [4]}}), "is described by"),
    "float dim": (st_file({"a": entry(shape=[4.0])}), "is described by"),
    "NaN dim": (st_file({"a": entry(shape=[float("nan")])}), "is described by"),
    "true dim": (st_file({"a": entry(shape=[True])}), "is described by"),
    "negative dim": (st_file({"a": entry(shape=[-4, -1])}), "is described by"),
    "huge dim": (st_file({"a": entry(shape=[2**70])}), "is described by"),
    "300,000 dims": (st_file({"a": entry(shape=[2**62] * 300_000)}), "is described by"),
    "empty where numbers are wanted": (st_file({"a": entry(shape=[0], offsets=(0, 16))}), "does not fill"),
    "empty beyond the end": (st_file({"a": entry(shape=[0], offsets=(80, 80))}), "ends at byte"),
    "reversed offsets": (st_file({"a": entry(offsets=(16, 0))}), "does not fill"),
    "wrong size": (st_file({"a": entry(offsets=(0, 20))}), "does not fill"),
    "beyond the end": (st_file({"a": entry(offsets=(60, 76))}), "ends at byte"),
    "overlap": (st_file({"a": entry(), "b": entry(offsets=(8, 24))}), "overlaps"),
    "type C64": (st_file({"a": entry("C64", [2])}), "has the type 'C64'"),
    "type I64": (st_file({"a": entry("I64", [2])}), "'a' has the type I64"),
    "type list": (st_file({"a": entry(["F32"])}), "is described by"),
    "lone surrogate": (st_file(b'{"\\ud800": 3}'), "ud800"),
}


@pytest.mark.parametrize("lie", GGUF_LIES)
def test_inconsistent_gguf_files_are_refused_by_name(lie: str, folder: Path) -> None:
    refuse(folder / "m.gguf", *GGUF_LIES[lie])


@pytest.mark.parametrize("lie", SAFETENSORS_LIES)
def test_inconsistent_safetensors_files_are_refused_by_name(lie: str, folder: Path) -> None:
    refuse(folder / "m.safetensors", *SAFETENSORS_LIES[lie])


def refuse(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    message = refusal(lambda: open_checkpoint(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert re.search(words, message)
    assert message.isprintable()
    assert len(message) < 600
    assert peak < 2_000_000 + 20 * len(data)


HUGE = {
    "a GGUF array of bytes": gguf_file(string(b"a") + struct.pack("<IIQ", 9, 0, 200) + bytes(200), num_keys=1),
    "GGUF arrays of empty strings": gguf_file(
        b"".join(string(b"%d" % i) + struct.pack("<IIQ", 9, 8, 60) + bytes(480) for i in range(2)), num_keys=2
    ),
    "GGUF tensors": gguf_file(b"".join(tensor(b"%d" % i, 4, offset=32 * i) for i in range(200)), num_tensors=200),
    "safetensors": st_file({f"t{i}": entry(shape=[0], offsets=(0, 0)) for i in range(20)}),
    "JSON of lists": st_file(b'{"a": [' + b"[]," * 200 + b"0]}"),
    "JSON of numbers": st_file(b'{"a": [' + b"0," * 200 + b"0]}"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_header_of_more_values_than_any_model_has_is_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is checked before the values are read; the bounds are lowered from millions to a hundred values and ten
    tensors."""
    for module, limit in ((files, "MAX_VALUES"), (file, "MAX_TENSORS")):
        for each in (module, gguf_reader):
            monkeypatch.setattr(each, limit, 10 if limit == "MAX_TENSORS" else 400 if name == "safetensors" else 100)
    path = folder / ("m.gguf" if "GGUF" in name else "m.safetensors")
    path.write_bytes(HUGE[name])
    assert "more than 10" in refusal(lambda: open_checkpoint(path))


def test_an_empty_tensor_is_ignored(folder: Path) -> None:
    """transformers writes an empty tensor for the shared experts of a model that has none."""
    header = {"a": entry(), "e": entry(shape=[72, 0], offsets=(16, 16)), "f": entry(shape=[0, 3], offsets=(16, 16))}
    (folder / "m.safetensors").write_bytes(st_file(header))
    assert set(open_checkpoint(folder / "m.safetensors").tensors) == {"a"}
