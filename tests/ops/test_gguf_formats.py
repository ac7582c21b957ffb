"""A GGUF file in each format below four bits, from the file to logits, equals the reference on dequantised weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_formats import weight
from tiny_models import prompt, take_steps
from weights import random_tensor

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.repack import REPACKINGS, packed_format
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import pack_model
from freedive.commands.describe import decoder_facts
from freedive.families import describe
from freedive.model.params import Param
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

METADATA: dict[str, str | bool | int | float | Sequence[str | bool | int | float]] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}

SHAPES = {
    "token_embd.weight": (100, 256),
    "output_norm.weight": (256,),
    "blk.0.attn_norm.weight": (256,),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.attn_k.weight": (128, 256),
    "blk.0.attn_v.weight": (128, 256),
    "blk.0.attn_output.weight": (256, 256),
    "blk.0.ffn_norm.weight": (256,),
    "blk.0.ffn_gate.weight": (512, 256),
    "blk.0.ffn_up.weight": (512, 256),
    "blk.0.ffn_down.weight": (256, 512),
}


def tensors(kind: str) -> dict[str, Tensor]:
    """Returns random weights of ``kind``; those of NVFP4 have a scale for each matrix, as llama.cpp writes it."""
    found: dict[str, Tensor] = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        if kind != "NVFP4" or len(shape) == 1:
            found[name] = weight(Param(shape, "linear"), kind, seed)
            continue
        found[name] = random_tensor(kind, *shape, seed=seed)
        factor = np.array([0.02 * shape[1] ** -0.5 / dequantize(found[name]).std()], np.float32)
        scale = name.replace("weight", "scale")
        found[scale] = Tensor(scale, (1,), "F32", factor.view(np.uint8)[None])
    return found


@pytest.mark.parametrize("kind", [*REPACKINGS, "TQ2_0", "NVFP4"])
def test_a_gguf_file_answers_as_its_dequantised_weights_do(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA, tensors(kind))
    checkpoint = open_checkpoint(path)
    spec, rules = describe(checkpoint)
    weights = canonical_tensors(checkpoint, spec, rules)
    exact = {name: dequantize(tensor) for name, tensor in weights.items()}
    native = NativeRunner(spec, pack_model(weights), num_threads=1, max_rows=64, num_pages=4, cache_format="f32")
    reference = ReferenceRunner(spec, exact, num_pages=4)
    got, expected = (
        take_steps(runner, [prompt(40, vocab=100)], [[(0, 33)], [(0, 7)]], [[1, 0]])[0]
        for runner in (native, reference)
    )
    assert expected.std() > 0
    assert np.abs(got - expected).max() < 1e-3 * expected.std()


@pytest.mark.parametrize("kind", [*REPACKINGS, "TQ2_0", "NVFP4"])
def test_show_reports_what_the_weights_take_in_memory(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA, tensors(kind))
    elements, num_bytes = BLOCKS["F4G16" if kind == "NVFP4" else packed_format(kind)]
    sizes = [(math.prod(shape), len(shape) > 1) for shape in SHAPES.values()]
    taken = sum(size * num_bytes / elements if is_matrix else 4 * size for size, is_matrix in sizes)
    assert decoder_facts(path)["weights"].split()[1:3] == [f"{taken / 1e3:.1f}", "kB,"]
