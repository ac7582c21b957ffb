"""Makes checkpoints of real shapes with random weights: python bench/random_models.py NAME FORM...

A form is a format of GGUF files, or one of Hugging Face folders: BF16, or GPTQ (4 bits, groups of 128). GGUF files may
have more layers than the shape, and a given routing (:mod:`routing`).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from routing import routed
from shapes import SHAPES, VOCAB, Shape

from freedive.arrays import Bytes
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.packed import LAYOUT
from freedive.checkpoint.rules import Rules, maker_tensors
from freedive.checkpoint.safetensors import DTYPES, write_safetensors
from freedive.checkpoint.tensor import Tensor
from freedive.errors import UserError
from freedive.families import FAMILIES, describe_config
from freedive.families.family import Family
from freedive.families.names import gguf_rules, hub_rules
from freedive.hub.cache import packed_path
from freedive.model.params import params
from freedive.model.spec import ModelSpec

FOLDER = Path(os.environ.get("FREEDIVE_BENCH_MODELS", Path(__file__).parent.parent / "build" / "models"))
"""The folder of the checkpoints."""

BF16, GPTQ = "BF16", "GPTQ"

QUANTIZATION = {
    "quant_method": "gptq",
    "bits": 4,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
    "dynamic": {"-:.*mlp.gate$": {}},
}


def random_model(name: str, form: str, num_layers: int = 0, routing: str = "") -> Path:
    """Returns the model ``name`` of :data:`SHAPES` in ``form``, a GGUF file or a folder; makes it unless it exists.

    ``num_layers`` is that of the shape if it is 0; ``routing`` is one of :data:`routing.ROUTINGS`, or what random
    weights give. One tensor at a time is in memory.
    """
    shape = SHAPES[name]
    if form not in (*shape.formats, *shape.folders):
        raise UserError(f"{name} is not made as {form}", f"Choose one of {', '.join((*shape.formats, *shape.folders))}")
    if routing and (form in shape.folders or shape.config["tie_word_embeddings"]):
        raise UserError(f"{name} as {form} cannot have {routing} routing", "Choose a GGUF file with a head of its own")
    parts = name, f"{num_layers}L" if num_layers else "", form, routing
    stem = "-".join(filter(None, parts))
    path = FOLDER / (stem if form in shape.folders else f"{stem}.gguf")
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        FOLDER.mkdir(parents=True, exist_ok=True)
        shape = shape.with_layers(num_layers) if num_layers else shape
        if form in shape.folders:
            _save_folder(shape, form, path)
        else:
            _save_gguf(shape, form, routing, path)
    return path


def layers_for(name: str, form: str, num_bytes: float) -> int:
    """Returns the number of layers with which the GGUF file of ``name`` comes nearest to ``num_bytes``, at least 2."""

    def size(num_layers: int) -> int:
        shape = SHAPES[name].with_layers(num_layers)
        sizes = ((BLOCKS[_gguf_format(form, tensor, dims)], dims) for tensor, dims in _gguf_shapes(shape).items())
        return sum(math.prod(dims) // block * each for (block, each), dims in sizes)

    least, more = 2, 4
    layer = (size(more) - size(least)) / (more - least)
    return max(least, least + round((num_bytes - size(least)) / layer))


def discard(name: str) -> None:
    """Deletes the model ``name`` in every form, and what freedive packed from it."""
    for path in FOLDER.glob(f"{name}-*"):
        packed_path(path, LAYOUT).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _save_gguf(shape: Shape, form: str, routing: str, path: Path) -> None:
    _, family = _described(shape)
    architecture, config = family.gguf.architecture, shape.config
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        **shape.metadata,
    }
    keys = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in metadata.items()}
    tensors = {
        name: (routed(name, dims, routing) if routing else None) or _random(name, dims, _gguf_format(form, name, dims))
        for name, dims in _gguf_shapes(shape).items()
    }
    if shape.rope_divisors:
        tensors["rope_freqs.weight"] = _of(np.array(shape.rope_divisors, np.float32), "F32")
    write_gguf(path, keys | _gguf_vocabulary(), tensors)


def _save_folder(shape: Shape, form: str, path: Path) -> None:
    model, family = _described(shape)
    shapes = _maker_shapes(model, hub_rules(model, family.hub))
    config = {**shape.config, "dtype": "bfloat16"} | (_quantization(shape) if form == GPTQ else {})
    partial = path.with_name(path.name + ".new")
    partial.mkdir(exist_ok=True)
    (partial / "tokenizer.json").write_text(json.dumps(_hub_tokenizer()))
    (partial / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (partial / "config.json").write_text(json.dumps(config, indent=2))
    tensors = dict(_hub_tensors(shapes, shape.group if form == GPTQ else 0))
    write_safetensors(partial / "model.safetensors", tensors, "set FREEDIVE_BENCH_MODELS to a folder on another disk")
    partial.rename(path)


Shapes = Mapping[str, tuple[int, ...]]


def _described(shape: Shape) -> tuple[ModelSpec, Family]:
    model = describe_config(shape.config)
    (family,) = (family for family in FAMILIES if family.name == model.family)
    return model, family


def _gguf_shapes(shape: Shape) -> Shapes:
    model, family = _described(shape)
    return _maker_shapes(model, gguf_rules(model, family.gguf))


def _maker_shapes(model: ModelSpec, rules: Rules) -> Shapes:
    """Returns the maker's names and shapes of all weights."""
    unread = np.empty(0, np.uint8)
    canonical = {name: Tensor(name, param.shape, "F32", unread) for name, param in params(model).items()}
    return {name: tensor.shape for name, tensor in maker_tensors(canonical, rules).items()}


def _quantization(shape: Shape) -> dict[str, Any]:
    return {"quantization_config": {**QUANTIZATION, "group_size": shape.group}}


def _hub_tensors(shapes: Shapes, group: int) -> Iterator[tuple[str, Tensor]]:
    """Yields tensors in BF16; with a ``group``, the matrices of experts and attention as GPTQ tensors."""
    for name, shape in shapes.items():
        product = len(shape) == 2 and not re.search(r"embed_tokens|lm_head|mlp\.gate\.|bias", name)
        if not (group and product):
            yield name, _random(name, shape, BF16)
            continue
        rows, width = shape
        prefix, groups = name.removesuffix("weight"), width // group
        yield f"{prefix}qweight", _random(f"{prefix}qweight", (width // 8, rows), "I32")
        zeros = np.uint32(0x77777777)  # 8, which GPTQ stores less one
        yield f"{prefix}qzeros", _constant((groups, rows // 8), "I32", zeros)
        signs = np.random.default_rng(zlib.crc32(name.encode())).choice(np.array([-1, 1], np.float16), (groups, rows))
        yield f"{prefix}scales", _of(signs * np.float16(0.2 * width**-0.5), "F16")
        yield f"{prefix}g_idx", _of(np.repeat(np.arange(groups, dtype=np.int32), group), "I32")


def _gguf_format(form: str, name: str, shape: tuple[int, ...]) -> str:
    """Returns the format of the tensor ``name`` that llama.cpp's tool chooses (but Q4_K_M has Q6_K in even layers)."""
    if len(shape) == 1 or re.search(r"\.bias$|ffn_gate_inp|ssm_conv1d", name):
        return "F32"
    format = form
    if form == "Q4_K_M":
        format = "Q6_K" if re.search(r"blk\.\d*[02468]\.(attn_v|attn_kv_b|ffn_down)", name) else "Q4_K"
    if form == "MXFP4":
        format = "MXFP4" if "_exps" in name else "Q8_0"
    if name == "output.weight" and format != "Q8_0":
        format = "Q6_K"
    return format if shape[-1] % BLOCKS[format][0] == 0 else NARROW[format]


NARROW = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""Formats for rows that are no multiple of 256 long."""


MEANS = {"norm.weight": 1.0, "ssm_a": -1.0, "layer_output_scale.weight": 1.0, "layer_scalar": 1.0}
"""End of a vector's name -> the mean of its random values; rates of decay are negative in GGUF."""


def _random(name: str, shape: tuple[int, ...], format: str) -> Tensor:
    """Returns weights of about the size 1 / sqrt(width), generated when they are read, with the same
    values each time."""

    def make(begin: int, end: int) -> Bytes:
        source = np.random.default_rng((zlib.crc32(name.encode()), begin))
        if len(shape) == 1:
            values = next((mean for end, mean in MEANS.items() if name.endswith(end)), 0.0)
            return _as_floats(values + 0.02 * source.standard_normal((1, *shape), np.float32), format)
        return random_rows(format, end - begin, shape[-1], source)

    return Tensor(name, shape, format, make)


def random_rows(format: str, rows: int, width: int, source: np.random.Generator) -> Bytes:
    """Returns random rows with mean zero; otherwise all tokens would be similar and choose the same experts."""
    size = width**-0.5
    if format in ("F32", "BF16"):
        return _as_floats(source.standard_normal((rows, width), np.float32) * np.float32(size), format)
    block, num_bytes = BLOCKS.get(format, (1, DTYPES.get(format, 0)))
    data = np.frombuffer(source.bytes(rows * width // block * num_bytes), np.uint8).reshape(-1, num_bytes).copy()
    for at, part in SCALES.get(format, {}).items():
        data[:, at : at + 2] = np.frombuffer(np.float16(part * size).tobytes(), np.uint8)
    if len(SCALES.get(format, {})) == 1:  # codes are not centred on zero, so blocks get random signs
        data[:, at + 1] ^= source.integers(0, 2, len(data), np.uint8) << 7
    if format == "MXFP4":
        data[:, 0] = 127 + round(math.log2(size / 3))
    return data.reshape(rows, -1)


SCALES: dict[str, dict[int, float]] = {
    "Q8_0": {0: 1 / 74},
    "Q4_0": {0: 1 / 4.6},
    "Q5_0": {0: 1 / 9.2},
    "Q4_K": {0: 1 / 150, 2: 1 / 20},
    "Q6_K": {208: 1 / 1400},
}
"""The offset of a block's half-float scales, and their value for random codes of size 1."""


def _as_floats(values: Any, format: str) -> Bytes:
    """Converts float32 [rows, width] to bytes; BF16 rounds towards zero."""
    if format == "F32":
        return np.ascontiguousarray(values, np.float32).view(np.uint8)
    return np.ascontiguousarray(values.astype(np.float32).view(np.uint16)[:, 1::2]).view(np.uint8)


def _constant(shape: tuple[int, ...], format: str, value: Any) -> Tensor:
    return _of(np.full(shape, value), format)


def _of(values: Any, format: str) -> Tensor:
    return Tensor("", values.shape, format, np.atleast_2d(values).view(np.uint8))


def _byte_letters() -> list[str]:
    """Returns the character of each byte in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


LETTERS = _byte_letters()
MERGE = LETTERS[0], LETTERS[1]  # readers need at least one merge
TOKENS = [*LETTERS, "".join(MERGE), *(f"<{number}>" for number in range(len(LETTERS) + 1, VOCAB))]


def _gguf_vocabulary() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [1] * 257 + [4] * (VOCAB - 257),
        "tokenizer.ggml.merges": [" ".join(MERGE)],
        "tokenizer.ggml.eos_token_id": VOCAB - 1,
    }


def _hub_tokenizer() -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(MERGE)]},
    }


if __name__ == "__main__":
    try:
        for wanted in sys.argv[2:]:
            print(random_model(sys.argv[1], wanted))
    except UserError as error:
        sys.exit(f"error: {error}")
