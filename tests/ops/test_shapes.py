"""Descriptions that no tiny model has: odd sizes, other ropes or none, every grouping of heads."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from descriptions import PLAIN, SHAPES, VOCAB, model, weights
from tiny_models import Floats, pack_floats, prompt, take_steps
from weights import LEVELS

from freedive.errors import UserError
from freedive.model.spec import Attention, Model
from freedive.ops.native import NativeRunner
from freedive.ops.record import fuse, record
from freedive.ops.reference import ReferenceRunner


def native(described: Model, values: dict[str, Floats], level: str | None = None) -> NativeRunner:
    return NativeRunner(
        described, pack_floats(values), num_threads=1, max_rows=64, num_pages=4, cache_format="f32", isa=level
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SHAPES)
def test_native_equals_reference(name: str, level: str) -> None:
    described = SHAPES[name]
    values = weights(described)
    prompts, tables = [prompt(50, vocab=VOCAB), prompt(33, seed=1, vocab=VOCAB)], [[3, 0], [1, 2]]
    schedule = [[(0, 31), (1, 33)], [(0, 1)], [(0, 18)]]
    got = take_steps(native(described, values, level), prompts, schedule, tables)
    expected = take_steps(ReferenceRunner(described, values, num_pages=4), prompts, schedule, tables)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_layer_is_five_phases() -> None:
    described = model(replace(PLAIN, qk_norm="head", qkv_bias=True))
    names = [phase.op for phase in fuse(record(described))]
    assert names == ["embed", *["linear", "attention", "linear", "glu", "linear"] * 2, "select", "linear"]


def test_an_unknown_level_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    described = model(PLAIN)
    monkeypatch.setenv("FREEDIVE_ISA", "mmx")
    with pytest.raises(UserError, match=re.escape("level 'mmx' is not on this machine; it has: scalar")):
        native(described, weights(described))
    monkeypatch.setenv("FREEDIVE_ISA", "scalar")
    assert native(described, weights(described)).isa == "scalar"


def test_a_cache_beyond_all_memory_is_refused() -> None:
    described = model(PLAIN)
    with pytest.raises(UserError, match=r"A key-value cache of .* GiB does not fit\. Lower cache_tokens"):
        NativeRunner(described, pack_floats(weights(described)), num_threads=1, max_rows=8, num_pages=2**31 - 1)


def test_heads_wider_than_the_kernels_are_refused() -> None:
    described = model(Attention(num_heads=1, num_kv_heads=1, head_dim=640, rope=None, scale=0.05))
    with pytest.raises(UserError, match="640"):
        native(described, weights(described))
