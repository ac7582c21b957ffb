"""Same request, same answer: no bit of a row's logits depends on the batch, the chunks, the level or the threads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import Schedule, pack_floats, prompt, take_steps, tiny
from weights import BEST_LEVEL, LEVELS, Floats, only, quantize

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import Packed, PackedTensor, pack
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.families import describe
from freedive.model import spec
from freedive.model.batch import Batch
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

MIXED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16", "F32")
"""Formats that the matrices of the quantised model get cyclically, so that neighbours differ."""

LENGTHS = (300, 41, 7)
PROMPTS = [prompt(length, seed=length) for length in LENGTHS]
TABLES = [[2, 11, 7, 0, 5, 13, 9, 3, 1, 12], [4, 6], [8]]

SCHEDULES: dict[str, Schedule] = {
    "chunks of 16": [[(0, 16)]] * 18 + [[(0, 12)]] + [[(1, 16)]] * 2 + [[(1, 9)]] + [[(2, 7)]],
    "two uneven chunks": [[(0, 257)], [(0, 43)], [(1, 3)], [(1, 38)], [(2, 6)], [(2, 1)]],
    "token by token": [[(0, 240)]] + [[(0, 1)]] * 60 + [[(1, 1)]] * 41 + [[(2, 1)]] * 7,
    "all at once": [[(0, 300), (1, 41), (2, 7)]],
    "in company": [[(2, 5), (0, 250), (1, 1)], [(1, 1), (0, 1), (2, 1)], [(0, 1), (1, 38), (2, 1)], [(1, 1), (0, 48)]],
}


@cache
def model(name: str) -> tuple[spec.ModelSpec, Mapping[str, Packed]]:
    """Returns a tiny model for the kernels; "quantised" is Llama with every format that its size allows."""
    if name != "quantised":
        return tiny(name).spec, tiny(name).packed
    llama = tiny("llama")
    packed = dict(pack_floats(llama.weights))
    matrices = [key for key, param in params(llama.spec).items() if param.role in ("linear", "embedding")]
    for index, key in enumerate(matrices):
        packed[key] = pack(quantize(key, llama.weights[key], MIXED[index % len(MIXED)]))
    return llama.spec, packed


def native(name: str, **options: Any) -> NativeRunner:
    return NativeRunner(*model(name), **{"num_threads": 1, "max_rows": 400, "num_pages": 14, **options})


@cache
def alone(name: str, cache_format: str) -> list[Floats]:
    """Returns the logits of every prompt alone, in one step, on one thread, at the machine's best level."""
    runner = native(name, cache_format=cache_format)
    return take_steps(runner, PROMPTS, [[(0, 300)], [(1, 41)], [(2, 7)]], TABLES)


def assert_same_bits(got: list[Floats], expected: list[Floats]) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("schedule", only(["in company"], SCHEDULES))
@pytest.mark.parametrize(
    ("name", "cache_format"),
    [
        *product(("mistral", "qwen2", "qwen3", "deepseek_v3", "gpt_oss", "quantised"), ("f32", "f16")),
        *product(("mistral", "qwen3", "gpt_oss"), ("int8",)),
        *product(("qwen3_5", "bailing_hybrid"), ("f16",)),
    ],
)
def test_logits_do_not_depend_on_schedules_or_levels(name: str, cache_format: str, schedule: str, level: str) -> None:
    runner = native(name, cache_format=cache_format, isa=level)
    assert_same_bits(take_steps(runner, PROMPTS, SCHEDULES[schedule], TABLES), alone(name, cache_format))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
@pytest.mark.parametrize("schedule", ["all at once", "in company"])
@pytest.mark.parametrize(
    ("name", "cache_format"),
    [
        *product(("quantised", "deepseek_v3", "gpt_oss", "qwen3_5", "kimi_linear"), ("f16",)),
        ("gpt_oss", "int8"),
    ],
)
def test_logits_do_not_depend_on_threads(name: str, cache_format: str, schedule: str, num_threads: int) -> None:
    runner = native(name, num_threads=num_threads, cache_format=cache_format)
    assert_same_bits(take_steps(runner, PROMPTS, SCHEDULES[schedule], TABLES), alone(name, cache_format))


@pytest.mark.parametrize("schedule", ["token by token", "in company"])
def test_logits_of_generated_tokens_do_not_depend_on_schedules(schedule: str) -> None:
    """Latent attention folds the key matrices into the queries of generated tokens, but expands the keys of prompts."""
    given, runner = [270, 9, 1], native("deepseek_v3", num_threads=2)
    whole = take_steps(runner, PROMPTS, SCHEDULES["all at once"], TABLES, given)
    assert_same_bits(take_steps(runner, PROMPTS, SCHEDULES[schedule], TABLES, given), whole)
    assert any((a != b).any() for a, b in zip(whole, alone("deepseek_v3", "f16"), strict=True))


@pytest.mark.parametrize("cache_format", ["f16", "int8"])
def test_logits_do_not_depend_on_the_old_content_of_pages(cache_format: str) -> None:
    runner = native("quantised", num_threads=2, cache_format=cache_format)
    for seed in (1, 2):
        others = [prompt(length, seed=length + seed) for length in (320, 64, 32)]
        take_steps(runner, others, [[(0, 320)], [(1, 64)], [(2, 32)]], TABLES)
        got = take_steps(runner, PROMPTS, SCHEDULES["in company"], TABLES)
        assert_same_bits(got, alone("quantised", cache_format))


def test_logits_do_not_depend_on_the_pages() -> None:
    others = [[page + 1 if page % 2 == 0 else page - 1 for page in table] for table in TABLES]
    got = take_steps(native("quantised"), PROMPTS, SCHEDULES["in company"], others)
    assert_same_bits(got, alone("quantised", "f16"))


def test_only_output_rows_are_returned_and_they_are_equal() -> None:
    tokens = np.array(PROMPTS[1], np.int32)
    one = np.array([41], np.int32)
    pages = np.array([TABLES[1]], np.int32)
    for wanted in ([], [40], [3, 17, 40], [40, 3]):
        rows = np.array(wanted, np.int32)
        logits = native("quantised").step(Batch(tokens, one, one * 0, pages, rows, one))
        assert logits.shape == (len(wanted), 128)
        np.testing.assert_array_equal(logits, alone("quantised", "f16")[1][rows])


# --- the real default model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> tuple[spec.ModelSpec, Mapping[str, Tensor]]:
    checkpoint = open_checkpoint(smollm2_path)
    described, rules = describe(checkpoint)
    return described, canonical_tensors(checkpoint, described, rules)


@pytest.fixture(scope="module")
def packed(smollm2: tuple[spec.ModelSpec, Mapping[str, Tensor]]) -> Mapping[str, PackedTensor]:
    return {name: pack(tensor, num_threads=2) for name, tensor in smollm2[1].items()}


TEXT = prompt(24, seed=5, vocab=49152)
COMPANION = prompt(9, seed=6, vocab=49152)


@pytest.mark.parametrize("level", BEST_LEVEL)
def test_the_real_model_gives_the_same_bits(
    smollm2: tuple[spec.ModelSpec, Any], packed: Mapping[str, PackedTensor], level: str
) -> None:
    count, others = (3, 2) if level == "scalar" else (24, 9)  # the scalar level is slow
    prompts, half = [TEXT[:count], COMPANION[:others]], count // 2

    def logits(schedule: Schedule, **options: Any) -> Floats:
        runner = NativeRunner(smollm2[0], packed, num_threads=2, max_rows=40, num_pages=2, **options)
        return take_steps(runner, prompts, schedule, [[1], [0]])[0]

    best = logits([[(0, count)], [(1, others)]])
    got = logits([[(1, others - 1), (0, half)], [(0, count - half), (1, 1)]], isa=level)
    np.testing.assert_array_equal(got, best)


def test_the_real_model_is_near_the_reference(
    smollm2: tuple[spec.ModelSpec, Mapping[str, Tensor]], packed: Mapping[str, PackedTensor]
) -> None:
    described, tensors = smollm2
    schedule, table = [[(0, len(TEXT))]], [[0]]
    runner = NativeRunner(described, packed, num_threads=2, max_rows=40, num_pages=1)
    weights = {name: dequantize(tensor) for name, tensor in tensors.items()}
    (got,) = take_steps(runner, [TEXT], schedule, table)
    (expected,) = take_steps(ReferenceRunner(described, weights, num_pages=1), [TEXT], schedule, table)
    p, q = log_softmax(expected), log_softmax(got)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    assert divergence.mean() < 5e-3
    assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.9


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
