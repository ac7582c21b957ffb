"""Products of rows of prompts, which levels with tiles compute in bfloat16."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import test_kernels
from test_kernels import activations, product, widths
from weights import KERNELS, random_tensor

from freedive.checkpoint.packed import pack
from freedive.native import _native

PANEL = 32
MAX_NMSE = 2e-5
"""Of 8 bits of a weight, cut, and 8 bits of an activation, rounded: 3e-6 and 2e-6 where mantissas are uniform."""

TILES = [level for level in _native.isa_levels() if level.startswith("amx")]


multiply = partial(test_kernels.multiply, in_bf16=True)


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_products_of_prompts_are_near_those_of_the_dequantised_weights(kind: str, level: str) -> None:
    for k in widths(kind):
        tensor, x = random_tensor(kind, 40, k, seed=k), activations(33, k)
        got, expected = multiply(level, pack(tensor), x)[:, :40], product(tensor, x)
        assert ((got - expected) ** 2).sum() <= MAX_NMSE * (expected**2).sum()


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "Q8_0", "BF16"])
def test_a_row_of_a_prompt_does_not_depend_on_the_rows_beside_it(kind: str, level: str) -> None:
    packed, x = pack(random_tensor(kind, 40, 768, seed=3)), activations(70, 768)
    together = multiply(level, packed, x)
    for count in (1, 5, 16, 17, 40):
        np.testing.assert_array_equal(multiply(level, packed, x[70 - count :]), together[70 - count :])


@pytest.mark.parametrize("level", TILES)
def test_more_rows_than_a_task_takes_are_multiplied_too(level: str) -> None:
    packed, x = pack(random_tensor("Q4_0", 32, 32, seed=4)), activations(1030, 32)
    np.testing.assert_array_equal(multiply(level, packed, x)[1020:], multiply(level, packed, x[1020:]))


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_products_of_prompts_are_near_whatever_their_magnitude(kind: str, level: str) -> None:
    k = widths(kind)[-1]
    for size, factor in ((1e-7, 1), (1e-7, 1e5), (6e4, 1e-10), (6e4, 1e20)):
        tensor, x = random_tensor(kind, 32, k, scale=size, seed=6), activations(4, k) * np.float32(factor)
        got, expected = multiply(level, pack(tensor), x), product(tensor, x)
        assert ((got - expected) ** 2).sum() <= MAX_NMSE * (expected**2).sum()


@pytest.mark.parametrize("level", TILES)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_rows_that_are_not_finite_change_no_row_beside_them(kind: str, level: str) -> None:
    k = widths(kind)[-1]
    packed, x = pack(random_tensor(kind, 40, k, seed=7)), activations(37, k)
    expected = multiply(level, packed, x)
    bad = [0, 17, 36]
    x[bad, k // 2] = np.inf, np.nan, np.finfo(np.float32).max
    got = multiply(level, packed, x)
    np.testing.assert_array_equal(np.delete(got, bad, 0), np.delete(expected, bad, 0))
    assert not np.isfinite(got[bad[:2], :40]).any()


@pytest.mark.skipif(len(TILES) < 2, reason="this machine has no tiles")
@pytest.mark.parametrize("kind", KERNELS.values())
def test_tiles_give_the_bits_of_their_software_model(kind: str) -> None:
    for k in widths(kind):
        packed, x = pack(random_tensor(kind, 40, k, seed=k)), activations(20, k)
        np.testing.assert_array_equal(*(multiply(level, packed, x) for level in TILES))


@pytest.mark.parametrize("level", [level for level in _native.isa_levels() if level not in TILES])
def test_other_levels_refuse_products_in_bfloat16(level: str) -> None:
    with pytest.raises(ValueError, match="no products of rows in bfloat16"):
        multiply(level, pack(random_tensor("Q4_0", 32, 32, seed=4)), activations(1, 32))
