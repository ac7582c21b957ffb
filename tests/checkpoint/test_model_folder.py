"""A model folder is untrusted input: every number is checked, and the loaded weights match the description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import float_tensor
from weights import random_tensor

from freedive.checkpoint.model_folder import DESCRIPTION, STORE, read_model_folder, write_model_folder
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.checkpoint.weight_store import MAGIC
from freedive.errors import UserError
from freedive.model import spec
from freedive.model.description import MAX_EXPERTS_IN_ALL
from freedive.model.params import params
from freedive.native import _native

CHECKPOINT = Checkpoint("gguf", {"general.architecture": "x", "list": ["a", 1.5, True]}, {})


def description() -> spec.ModelSpec:
    rope = spec.Rope(4, (1.0, 0.1))
    attention = spec.Attention(2, 1, 4, rope, 0.5)
    latent = spec.LatentAttention(2, 0, 8, nope_dim=4, rope_dim=4, value_dim=4, rope=rope, scale=0.3)
    experts = spec.Experts(spec.Router(num_experts=3, num_chosen=2), spec.FeedForward(32))
    layers = (spec.Layer(attention, experts), spec.Layer(latent, spec.FeedForward(32)))
    return spec.ModelSpec("test", 10, 32, layers, 1e-5, 64, tied=True)


def tensors(model: spec.ModelSpec) -> dict[str, Tensor]:
    """Returns weights of ``model``: the embedding in blocks, all others as floats."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(param.shape, np.float32) for name, param in params(model).items()}
    return {name: float_tensor(name, w) for name, w in weights.items()} | {"embed": random_tensor("Q8_0", 10, 32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_model_folder(folder, description(), CHECKPOINT, tensors(description()))
    return folder


@pytest.fixture
def model_folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def change_description(model_folder: Path, path: str, value: Any) -> None:
    """Sets ``value`` at ``path``, which is names and indices separated by dots."""
    about = json.loads((model_folder / DESCRIPTION).read_text("utf-8"))
    *outer, last = (int(name) if name.isdigit() else name for name in path.split("."))
    inside = about
    for name in outer:
        inside = inside[name]
    inside[last] = value
    (model_folder / DESCRIPTION).write_text(json.dumps(about), "utf-8")


def change_header(model_folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the store's header with a matching checksum."""
    data = (model_folder / STORE).read_bytes()
    begin = len(MAGIC) + 16
    header = json.loads(data[begin : begin + int.from_bytes(data[len(MAGIC) :][:8], "little")])
    start = header["start"]
    change(header)
    text = json.dumps(header).encode()
    assert begin + len(text) <= start
    checksum = _native.checksum(np.frombuffer(text, np.uint8))
    head = MAGIC + len(text).to_bytes(8, "little") + checksum.to_bytes(8, "little") + text
    (model_folder / STORE).write_bytes(head + data[len(head) :])


def refuse(model_folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_model_folder(model_folder)


def test_a_model_folder_comes_back_whole(model_folder: Path) -> None:
    model, checkpoint, weights = read_model_folder(model_folder)
    assert (model, checkpoint) == (description(), CHECKPOINT)
    assert weights.keys() == {"embed", "norm", "layers.0.ffn.experts"} | {
        name for name in params(description()) if name.startswith("layers.") and ".experts." not in name
    }


ROUTER, FFN = "model.layers.0.ffn.router", "model.layers.0.ffn"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # numbers that contradict the weights
        ("model.vocab_size", 1 << 20, r"embed is \[10, 32\] instead of \[1048576, 32\]"),
        ("model.hidden_dim", 64, r"embed is \[10, 32\] instead of \[10, 64\]"),
        ("model.layers.1.ffn.dim", 64, r"ffn.gate is \[32, 32\] instead of \[64, 32\]"),
        (f"{FFN}.expert.dim", 16, r"experts \(gate\) is \[32, 32\] instead of \[16, 32\]"),
        (f"{FFN}.expert.bias", True, r"has the parts gate, up, down instead of gate, gate_bias"),
        (f"{ROUTER}.num_experts", 2, r"router is \[3, 32\] instead of \[2, 32\]"),
        ("model.layers.0.attention.num_heads", 1, r"attn.q is \[8, 32\] instead of \[4, 32\]"),
        ("model.layers.0.attention.sinks", True, "sinks is missing"),
        ("model.tied", False, "head is missing"),
        ("model.layers.0.post_norms", True, "post_norm is missing"),
        # numbers that are impossible or inconsistent
        (f"{ROUTER}.num_chosen", 200, "num_chosen is 200, more than the 3 experts"),
        (f"{ROUTER}.num_chosen", 0, "num_chosen is 0, not a whole number from 1"),
        (f"{ROUTER}.num_groups", 2, "num_groups is 2, which does not divide 3"),
        (f"{ROUTER}.kept_groups", 2, "kept_groups is 2 of 1"),
        (f"{ROUTER}.score", "tanh", "score is 'tanh', not one of 'softmax'"),
        ("model.vocab_size", 1 << 40, "vocab_size is 1099511627776, not a whole number"),
        ("model.vocab_size", 10.0, "vocab_size is 10.0, not a whole number"),
        ("model.vocab_size", True, "vocab_size is True, not a whole number"),
        ("model.max_context", -1, "max_context is -1"),
        ("model.norm_eps", "1", "norm_eps is '1', not a number"),
        ("model.norm_eps", float("nan"), "norm_eps is nan"),
        ("model.norm_eps", 1e300, r"norm_eps is 1e\+300"),
        ("model.norm_eps", 10**100, "norm_eps is 1000"),
        ("model.layers.0.attention.num_kv_heads", 0, r"layers.\*.attention.num_kv_heads is 0"),
        ("model.layers.0.attention.rope.dim", 6, "rope.dim is 6, not an even number up to 4"),
        ("model.layers.0.attention.rope.inv_freq", [1.0], "rope.inv_freq has 1 numbers for 4"),
        ("model.layers.0.attention.rope.inv_freq", 1.0, "inv_freq is not a list"),
        ("model.layers.0.attention.window", 1 << 62, "window is"),
        ("model.layers", [], "layers are 0"),
        ("model.layers.0.ffn.class", "Model", "ffn is not described as FeedForward or Experts"),
        ("model.layers.0.attention.secret", 1, "attention has fields that this version"),
        ("model.family", "x" * 1000, "family is 'xxx"),
        ("model", None, "description is not described as Model"),
        ("model", 3, "description is not described as Model"),
        ("model.class", "Rope", "description is not described as Model"),
        ("model.class", [], "description is not described as Model"),
        ("kind", "pickle", "does not describe a model"),
        ("config", [], "does not describe a model"),
    ],
)
def test_a_description_with_a_wrong_number_is_refused_by_its_name(
    path: str, value: Any, words: str, model_folder: Path
) -> None:
    change_description(model_folder, path, value)
    refuse(model_folder, words)


def test_a_description_of_more_experts_than_exist_is_refused_before_any_is_listed(model_folder: Path) -> None:
    about = json.loads((model_folder / DESCRIPTION).read_text("utf-8"))
    layer = about["model"]["layers"][0]
    layer["ffn"]["router"]["num_experts"] = spec.MAX_EXPERTS
    change_description(model_folder, "model.layers", [layer] * 100)
    refuse(model_folder, f"num_experts make 102400 in all layers, more than {MAX_EXPERTS_IN_ALL}")


def part(name: str, key: str, index: int, value: Any) -> Callable[[dict[str, Any]], object]:
    """Returns a change of a part's format (0), shape (1) or offset (2)."""
    return lambda header: header["tensors"][name]["parts"][key].__setitem__(index, value)


EXPERTS = "layers.0.ffn.experts"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (part(EXPERTS, "up", 2, 1 << 34), "experts' up ends beyond its record"),
        (part(EXPERTS, "up", 2, 1 << 62), "experts' up ends beyond its record"),
        (part(EXPERTS, "up", 2, 1 << 70), "offset of .* is 1180591620717411303424"),
        (part(EXPERTS, "up", 2, -64), "offset of .* is -64"),
        (part(EXPERTS, "up", 2, 63), "offset of .* is 63, not a multiple of 64"),
        (part(EXPERTS, "up", 0, "Q4_0"), "experts|damaged"),
        (part(EXPERTS, "up", 0, "Q9_9"), "is described by"),
        (part(EXPERTS, "up", 0, ["F32"]), "is described by"),
        (part(EXPERTS, "up", 1, [32, 64]), "ends beyond|damaged"),
        (part(EXPERTS, "up", 1, [1 << 40, 1 << 40]), "is described by"),
        (part(EXPERTS, "up", 1, [0, 32]), "is described by"),
        (part(EXPERTS, "up", 1, [-32, -32]), "is described by"),
        (part(EXPERTS, "up", 1, []), "is described by"),
        (part(EXPERTS, "up", 1, [1] * 9), "is described by"),
        (part("norm", "", 0, "Q8_0"), r"norm' cannot be Q8_0 \[32\]"),
        (part("layers.1.attn.k_b", "", 0, "Q8_0"), r"k_b' cannot be Q8_0 \[2, 4, 8\]"),
        (part("embed", "", 1, [10, 33]), r"embed' cannot be Q8_0 \[10, 33\]"),
        (lambda header: header["tensors"][EXPERTS]["checksums"].append(0), "not lie|damaged"),
        (lambda header: header["tensors"][EXPERTS]["checksums"].clear(), "is not inside the file"),
        (lambda header: header["tensors"][EXPERTS].update(checksums=3), "is not inside the file"),
        (lambda header: header["tensors"][EXPERTS].update(stride=1 << 40), "is not inside the file"),
        (lambda header: header["tensors"][EXPERTS].update(stride=64), "stride of .* is 64"),
        (lambda header: header["tensors"][EXPERTS].update(stride=0), "ends beyond its record"),
        (lambda header: header["tensors"][EXPERTS].update(parts={}), "is neither a tensor nor experts"),
        (lambda header: header["tensors"][EXPERTS]["parts"].pop("up"), "instead of gate, up, down|damaged"),
        (lambda header: header["tensors"].update(embed=3), "'embed' is described by 3"),
        (lambda header: header["tensors"].pop("norm"), "norm is missing|damaged"),
        (lambda header: header.update(start=0), "damaged"),
        (lambda header: header.update(start=1 << 50), "is not inside the file"),
        (lambda header: header.update(start="x"), "start is 'x'"),
        (lambda header: header.update(tensors=[]), "'tensors' is described by"),
        (lambda header: header.update(layout=["x"]), "layout is"),
    ],
)
def test_a_store_with_a_wrong_number_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, model_folder: Path
) -> None:
    change_header(model_folder, change)
    refuse(model_folder, f"model.fdv cannot be used: .*({words}).*quantize")


def test_a_router_in_blocks_is_refused_whoever_wrote_it(tmp_path: Path) -> None:
    """Kernels read routers, and the matrices that make keys of latents, as floats."""
    model = description()
    made = tensors(model) | {"layers.0.ffn.router": random_tensor("Q8_0", 3, 32)}
    write_model_folder(tmp_path, model, CHECKPOINT, made)
    refuse(tmp_path, "router is Q8_0 instead of F32, F16, BF16")


def test_a_model_folder_that_should_be_a_makers_is_refused(model_folder: Path) -> None:
    """It cannot be quantised again, nor trained."""
    with pytest.raises(UserError, match=r"was written by freedive quantize.* Name the model that it was made from"):
        open_checkpoint(model_folder)


def test_a_damaged_or_missing_store_is_refused(model_folder: Path) -> None:
    data = (model_folder / STORE).read_bytes()
    (model_folder / STORE).write_bytes(data[:-1])
    refuse(model_folder, r"model\.fdv cannot be used: .*quantize")
    (model_folder / STORE).unlink()
    refuse(model_folder, r"model\.fdv cannot be used: .*quantize")


def test_swapped_words_of_a_store_are_detected_at_any_distance(model_folder: Path) -> None:
    data = (model_folder / STORE).read_bytes()
    begin = json.loads(data[32 : 32 + int.from_bytes(data[16:24], "little")])["start"]
    for distance in (8, 64, 512, 640):
        changed = bytearray(data)
        changed[begin : begin + 8], changed[begin + distance : begin + distance + 8] = (
            data[begin + distance : begin + distance + 8],
            data[begin : begin + 8],
        )
        assert changed != data
        (model_folder / STORE).write_bytes(changed)
        refuse(model_folder, "embed is damaged")


def test_a_checksum_depends_on_each_bit_and_on_the_order() -> None:
    data = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    seen = {_native.checksum(data[:length]) for length in range(1000)}
    for place in range(0, 8000):
        changed = data.copy()
        changed[place // 8] ^= 1 << place % 8
        seen.add(_native.checksum(changed))
    for distance in (64, 128, 192):  # high bits of words in one lane
        changed = data.copy()
        changed[7] ^= 128
        changed[7 + distance] ^= 128
        seen.add(_native.checksum(changed))
    assert len(seen) == 1000 + 8000 + 3
