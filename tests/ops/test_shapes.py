"""Descriptions that no tiny model has: odd sizes, other ropes or none, every grouping of heads."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import Floats, pack_floats, prompt, take_steps
from weights import LEVELS

from freedive.errors import UserError
from freedive.model.params import params
from freedive.model.spec import Attention, FeedForward, Layer, Model, Rope
from freedive.ops.native import NativeRunner
from freedive.ops.record import fuse, record
from freedive.ops.reference import ReferenceRunner


def rope(dim: int, *, interleaved: bool = False, factor: float = 1.0) -> Rope:
    return Rope(dim, tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)), factor, interleaved)


PLAIN = Attention(num_heads=4, num_kv_heads=2, head_dim=16, rope=rope(16), scale=0.25)
ATTENTIONS = {
    "neighbours rotate": replace(PLAIN, rope=rope(16, interleaved=True)),
    "part of a head rotates": replace(PLAIN, rope=rope(6)),
    "part of a head rotates by neighbours": replace(PLAIN, rope=rope(10, interleaved=True, factor=1.3)),
    "no rope": replace(PLAIN, rope=None),
    "odd heads": Attention(num_heads=3, num_kv_heads=1, head_dim=20, rope=rope(20), scale=0.3),
    "narrow heads": Attention(num_heads=5, num_kv_heads=5, head_dim=6, rope=rope(6), scale=0.4),
    "many heads to one": Attention(num_heads=20, num_kv_heads=1, head_dim=16, rope=rope(16), scale=0.25),
    "wide heads": Attention(num_heads=2, num_kv_heads=1, head_dim=576, rope=rope(64), scale=0.05),
    "a window of one": replace(PLAIN, window=1),
    "a window of a page": replace(PLAIN, window=32),
    "norms on odd heads": Attention(num_heads=4, num_kv_heads=2, head_dim=20, rope=rope(8), scale=0.3, qk_norm="head"),
    "all biases": replace(PLAIN, qkv_bias=True, out_bias=True),
}


def model(attention: Attention, *, hidden: int = 44, ffn: int = 50, bias: bool = False) -> Model:
    """Two layers; the second sees through another window, with another rope."""
    other = replace(attention, window=17, rope=attention.rope and replace(attention.rope, factor=0.9))
    forward = FeedForward(ffn, bias=bias)
    return Model("test", 77, hidden, (Layer(attention, forward), Layer(other, forward)), 1e-5, 512, tied=False)


def weights(described: Model) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(param.shape) * 2 / param.shape[-1] ** 0.5).astype(np.float32)
        if len(param.shape) == 2
        else (1 + 0.3 * rng.standard_normal(param.shape)).astype(np.float32)
        for name, param in params(described).items()
    }


def native(described: Model, values: dict[str, Floats], level: str | None = None) -> NativeRunner:
    return NativeRunner(
        described, pack_floats(values), num_threads=1, max_rows=64, num_pages=4, cache_format="f32", isa=level
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_native_equals_reference(name: str, level: str) -> None:
    described = model(ATTENTIONS[name], bias="bias" in name)
    values = weights(described)
    prompts, tables = [prompt(50, vocab=77), prompt(33, seed=1, vocab=77)], [[3, 0], [1, 2]]
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
