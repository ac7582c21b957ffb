"""Every family in freedive's own formats: near exact arithmetic on the same rounded weights, with equal bits at every
level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import get_args

import numpy as np
import pytest
from tiny_models import TINY, Floats, Schedule, float_tensor, prompt, take_steps, tiny
from weights import BEST_LEVEL, only

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.packed import Packed
from freedive.checkpoint.quantize import Target, quantize
from freedive.checkpoint.weight_store import pack_model
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

PROMPTS = [prompt(20, seed=seed) for seed in range(6)]
WHOLE: Schedule = [[(0, 20)]]
CUT: Schedule = [[(0, 7)], [(0, 8)], [(0, 1)], [(0, 1)], [(0, 3)]]
GIVEN = 14
"""Tokens of a prompt that count as given; latent attention computes later ones in another way."""


@dataclass(frozen=True)
class Rounded:
    """A tiny model in one of freedive's formats, and the reference's results with its rounded weights."""

    packed: dict[str, Packed]
    answers: list[tuple[Floats, list[Floats]]]
    """The logits of each prompt, and the experts that each mixture chose."""


@cache
def rounded(name: str, target: Target) -> Rounded:
    model = tiny(name)
    tensors = {key: float_tensor(key, values) for key, values in model.weights.items()}
    quantised = quantize(tensors, params(model.spec), target)
    exact = {key: dequantize(tensor).reshape(tensor.shape) for key, tensor in quantised.items()}
    reference = ReferenceRunner(model.spec, exact)
    answers = []
    for tokens in PROMPTS:
        (logits,) = take_steps(reference, [tokens], WHOLE, [[0]])
        answers.append((logits, [np.sort(routes.experts, -1) for routes in reference.routes]))
    return Rounded(pack_model(quantised), answers)


def native(name: str, target: Target, level: str) -> NativeRunner:
    packed = rounded(name, target).packed
    return NativeRunner(tiny(name).spec, packed, num_threads=1, max_rows=20, num_pages=1, cache_format="f32", isa=level)


@cache
def at_best_level(name: str, target: Target) -> list[Floats]:
    runner = native(name, target, "")
    return [take_steps(runner, [tokens], WHOLE, [[0]], [GIVEN])[0] for tokens in PROMPTS]


def num_alike(runner: NativeRunner, chosen: list[Floats]) -> int:
    """Returns the number of rows before the first one whose experts differ from the reference's in the last step."""
    alike = np.ones(len(PROMPTS[0]), bool)
    for routes, expected in zip(runner.routes(), chosen, strict=True):
        alike &= (np.sort(routes.experts, -1) == expected).all(-1)
    return len(alike) if alike.all() else int(alike.argmin())


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("target", only({"i4g64"}, get_args(Target)))
@pytest.mark.parametrize("name", TINY)
def test_rounded_weights_cost_nothing_more(
    name: str, target: Target, level: str, record_property: Callable[[str, object], None]
) -> None:
    """The relative error is under 5e-4, and neither levels nor chunks change a bit.

    A tie of two experts may be resolved differently, which is no error: the rows of the prompt after it are not
    compared.
    """
    runner = native(name, target, level)
    answers = rounded(name, target).answers
    energy = error = num_rows = 0.0
    for tokens, (exact, chosen), best in zip(PROMPTS, answers, at_best_level(name, target), strict=True):
        (got,) = take_steps(runner, [tokens], WHOLE, [[0]], [GIVEN])
        rows = slice(num_alike(runner, chosen))
        error += float(((got - exact)[rows] ** 2).sum())
        energy += float((exact[rows] ** 2).sum())
        num_rows += rows.stop
        np.testing.assert_array_equal(got, best)
        (cut,) = take_steps(runner, [tokens], CUT, [[0]], [GIVEN])
        np.testing.assert_array_equal(cut, got)
    for key, value in (("family", name), ("kind", "packed"), ("distance", error / energy)):
        record_property(key, value)
    assert error < 5e-4 * energy
    assert num_rows > 80
