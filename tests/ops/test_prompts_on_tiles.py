"""Prompts in bfloat16: no bit of a row depends on how prompts are cut, batched and mixed with generated rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from tiny_models import Floats, Schedule, float_tensor, prompt, take_steps, tiny, to_batch
from weights import only, quantize

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.weight_store import WeightStore, pack_model
from freedive.model.params import params
from freedive.native import _native
from freedive.ops.native import NativeRunner

TILES = [level for level in _native.isa_levels() if level.startswith("amx")]

LENGTHS, GIVEN = (520, 41, 1, 64, 256, 300, 560, 700), (513, 33, 1, 32, 256, 277, 560, 512)
"""Prompts that end at the ends of pages, splits of keys and blocks of rows, or one token after them; answers after
some of them."""

PROMPTS = [prompt(length, seed=length) for length in LENGTHS]
PAGES = np.random.default_rng(1).permutation(100).tolist()
ENDS = np.cumsum([-(-length // 32) for length in LENGTHS]).tolist()
TABLES = [PAGES[begin:end] for begin, end in zip([0, *ENDS], ENDS, strict=False)]

ALONE: Schedule = [[(request, length)] for request, length in enumerate(LENGTHS)]
TOGETHER: Schedule = [list(enumerate(LENGTHS))]
"""2,442 rows at once, so that experts have more rows than a block."""
AT_EDGES: Schedule = [
    [(0, 1), (4, 255), (1, 32)],
    [(0, 255), (4, 1), (1, 1), (2, 1)],
    [(1, 1), (3, 31), (0, 257), (5, 276)],
    [(3, 2), (1, 7), (0, 1), (5, 2), (6, 560)],
    [(5, 22), (3, 31), (7, 513)],
    [(0, 6), (7, 187)],
]
"""Steps with rows of both kinds in a sequence, whose chunks begin and end where arithmetic or memory changes."""

MIXED = {"gate": "Q4_0", "up": "F32", "down": "Q5_1", "q": "BF16", "k": "Q8_0", "v": "F32", "o": "F16"}
"""Formats of the matrices of a layer, such that those that are multiplied together differ."""

CASES = [
    ("qwen2_moe", "f16"),  # shared experts
    ("llama4", "f32"),  # routers that weigh inputs, attention to chunks
    ("gpt_oss", "int8"),  # sinks and windows
    ("gemma2", "f16"),  # soft caps
    ("mistral4_grouped", "f16"),  # latents
    ("kimi_linear", "f16"),  # latents and recurrences
]


@cache
def mixed(name: str) -> WeightStore:
    model = tiny(name)
    roles = {key: param.role for key, param in params(model.spec).items()}

    def kind(key: str) -> str:
        found = MIXED.get(key.split(".")[-1], "Q8_0") if roles[key] == "linear" else "F32"
        return found if model.weights[key].shape[-1] % 32 == 0 else "F32"

    tensors = {key: (weight, kind(key)) for key, weight in model.weights.items()}
    return pack_model(
        {key: float_tensor(key, w) if kind == "F32" else quantize(key, w, kind) for key, (w, kind) in tensors.items()}
    )


def native(name: str, level: str, **options: Any) -> NativeRunner:
    sizes = {"num_threads": 1, "max_rows": 2500, "num_pages": len(PAGES), "precision": "balanced"}
    return NativeRunner(tiny(name).spec, mixed(name), isa=level, **{**sizes, **options})


@cache
def alone(name: str, cache_format: str) -> list[Floats]:
    return take_steps(native(name, TILES[-1], cache_format=cache_format), PROMPTS, ALONE, TABLES, GIVEN)


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("schedule", [TOGETHER, AT_EDGES], ids=["together", "at edges"])
@pytest.mark.parametrize("case", only(CASES[:2], CASES), ids=" ".join)
def test_cuts_and_companions_change_no_bit(case: tuple[str, str], schedule: Schedule, level: str) -> None:
    name, cache_format = case
    runner = native(name, level, num_threads=3, cache_format=cache_format)
    got = take_steps(runner, PROMPTS, schedule, TABLES, GIVEN)
    for logits, expected in zip(got, alone(name, cache_format), strict=True):
        np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("level", _native.isa_levels())
@pytest.mark.parametrize(("request_", "begin"), [(1, 32), (0, 256)], ids=["end of a prompt", "end of a split"])
def test_a_sequence_without_rows_changes_no_bit(request_: int, begin: int, level: str) -> None:
    """Beside it, two rows that need two tasks of attention look like two sequences of one row each."""

    def steps(empty: list[tuple[int, int]]) -> Floats:
        runner, done = native("mistral", level, num_threads=2), [0] * len(LENGTHS)
        for step in ([(request_, begin)], [(request_, 2), *empty], [(request_, 1)]):
            logits = runner.step(to_batch(PROMPTS, step, done, TABLES, GIVEN))
            done[request_] += step[0][1]
        return logits

    np.testing.assert_array_equal(steps([(2, 0)]), steps([]))


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe"])
def test_routers_in_bfloat16_choose_as_exactly_as_those_in_floats(name: str, level: str) -> None:
    model = tiny(name)
    routes = [key for key, param in params(model.spec).items() if param.role == "router"]
    halves = {key: quantize(key, model.weights[key], "BF16") for key in routes}
    floats = {key: float_tensor(key, dequantize(tensor)) for key, tensor in halves.items()}
    others = {key: float_tensor(key, weight) for key, weight in model.weights.items() if key not in halves}
    got = []
    for routers in (halves, floats):
        weights = pack_model(others | routers)
        runner = NativeRunner(
            model.spec, weights, num_threads=1, max_rows=300, num_pages=10, precision="balanced", isa=level
        )
        got.append(take_steps(runner, [PROMPTS[5]], [[(0, 300)]], [list(range(10))], [300])[0])
    assert routes
    np.testing.assert_array_equal(*got)
