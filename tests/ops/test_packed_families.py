"""Every family in freedive's own formats: near exact arithmetic on the same rounded weights, at every level alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
import pytest
from tiny_models import TINY, Floats, Schedule, float_tensor, prompt, take_steps, tiny
from weights import LEVELS

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.packed import Packed, pack_model
from freedive.checkpoint.quantize import Target, quantize
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

TOKENS, TABLE = prompt(90, seed=4), (5, 1, 3)
WHOLE: Schedule = [[(0, 90)]]
CUT: Schedule = [[(0, 20)], [(0, 33)], [(0, 1)], [(0, 32)], [(0, 1)], [(0, 1)], [(0, 2)]]
GIVEN = 60
"""Tokens that count as given; latent attention takes another way for those that follow."""


@dataclass(frozen=True)
class Rounded:
    """A tiny model in one of our formats, and what the reference makes of what its weights have become."""

    packed: dict[str, Packed]
    logits: Floats
    chosen: list[Floats]


@cache
def rounded(name: str, target: Target) -> Rounded:
    model = tiny(name)
    tensors = {key: float_tensor(key, values) for key, values in model.weights.items()}
    quantised = quantize(tensors, params(model.spec), target)
    exact = {key: dequantize(tensor).reshape(tensor.shape) for key, tensor in quantised.items()}
    reference = ReferenceRunner(model.spec, exact)
    (logits,) = take_steps(reference, [TOKENS], WHOLE, [TABLE])
    chosen = [np.sort(routes[:, 0], -1) for routes in reference.routes]
    return Rounded(pack_model(quantised), logits, chosen)


def native(name: str, target: Target, level: str) -> NativeRunner:
    packed = rounded(name, target).packed
    return NativeRunner(tiny(name).spec, packed, num_threads=1, max_rows=90, num_pages=6, cache_format="f32", isa=level)


@cache
def at_best_level(name: str, target: Target) -> Floats:
    return take_steps(native(name, target, ""), [TOKENS], WHOLE, [TABLE], [GIVEN])[0]


def num_alike(runner: NativeRunner, chosen: list[Floats]) -> int:
    """Rows before the first token for which the runner has chosen other experts than the reference in its last step."""
    alike = np.ones(len(TOKENS), bool)
    for routes, expected in zip(runner.routes(), chosen, strict=True):
        alike &= (np.sort(routes[:, : expected.shape[1]], -1) == expected).all(-1)
    return len(TOKENS) if alike.all() else int(alike.argmin())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("name", TINY)
def test_rounded_weights_cost_nothing_more(
    name: str, target: Target, level: str, record_property: Callable[[str, object], None]
) -> None:
    """The error is under 5e-4 of what the logits amount to; and neither level nor cut shows in any bit.

    A tie of two experts may be broken otherwise, which is no error: rows from there on are not compared.
    """
    runner, exact = native(name, target, level), rounded(name, target)
    (got,) = take_steps(runner, [TOKENS], WHOLE, [TABLE], [GIVEN])
    rows = num_alike(runner, exact.chosen)
    assert rows > 40
    error = float(((got - exact.logits)[:rows] ** 2).sum() / (exact.logits[:rows] ** 2).sum())
    for key, value in (("family", name), ("kind", "packed"), ("distance", error)):
        record_property(key, value)
    assert error < 5e-4
    np.testing.assert_array_equal(got, at_best_level(name, target))
    (cut,) = take_steps(runner, [TOKENS], CUT, [TABLE], [GIVEN])
    np.testing.assert_array_equal(cut, got)
