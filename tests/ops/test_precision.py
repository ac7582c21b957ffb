"""Activations in 8 bits except for outliers: near exact, and equal in any batch."""

import numpy as np
import pytest
from test_packed_families import rounded
from tiny_models import Floats, Schedule, prompt, take_steps, tiny

from freedive.native import _native
from freedive.ops.native import NativeRunner

TABLE = [list(range(8))]
LENGTH, GIVEN = 200, 150


def logits(name: str, schedule: Schedule, precision: str, isa: str) -> Floats:
    model = tiny(name)
    runner = NativeRunner(
        model.spec, rounded(name, "i8").packed, num_threads=2, max_rows=256, num_pages=8, precision=precision, isa=isa
    )
    return take_steps(runner, [prompt(LENGTH)], schedule, TABLE, [GIVEN])[0]


@pytest.mark.parametrize("isa", _native.isa_levels())
@pytest.mark.parametrize(("precision", "bound"), [("balanced", 1e-3), ("fast", 3e-3)])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "deepseek_v3"])
def test_answers_do_not_depend_on_chunks_and_stay_close(name: str, precision: str, bound: float, isa: str) -> None:
    whole = logits(name, [[(0, LENGTH)]], precision, isa)
    cut = logits(name, [[(0, n)] for n in (1, 30, 64, 40, 15)] + [[(0, 1)]] * 50, precision, isa)
    assert np.array_equal(whole, cut)
    exact = logits(name, [[(0, LENGTH)]], "exact", isa)
    assert not np.array_equal(whole, exact)
    errors = ((whole - exact) ** 2).sum(-1) / (exact**2).sum(-1)
    assert np.median(errors[GIVEN:]) < bound
