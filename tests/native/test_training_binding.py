"""The training kernels check every array argument, so they never read or write out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from freedive.native import _native

SOURCE = np.random.default_rng(0)
ROWS, WIDTH, OUT = 6, 4, 3
TOKENS, CHOSEN, EXPERTS, HIDDEN, DIM = 6, 2, 3, 4, 5
HEADS, HEAD_DIM, TURNED = 2, 6, 4
VOCAB = 7


def some(*shape: int) -> Any:
    return SOURCE.standard_normal(shape, np.float32)


def training() -> Any:
    return _native.Training("", 2)


def linears() -> dict[str, Any]:
    return {"x": some(ROWS, WIDTH), "weights": [some(OUT, WIDTH)], "ys": [some(ROWS, OUT)]}


def linears_backward() -> dict[str, Any]:
    given = {"x": some(ROWS, WIDTH), "weights": [some(OUT, WIDTH)], "d_ys": [some(ROWS, OUT)]}
    return given | {"d_x": some(ROWS, WIDTH), "d_weights": [some(OUT, WIDTH)]}


def mixture_input() -> dict[str, Any]:
    choices = np.tile(np.arange(CHOSEN), (TOKENS, 1))
    matrices = {
        "gate": some(EXPERTS, DIM, HIDDEN),
        "up": some(EXPERTS, DIM, HIDDEN),
        "down": some(EXPERTS, HIDDEN, DIM),
    }
    return {"x": some(TOKENS, HIDDEN), "shares": some(TOKENS, CHOSEN), "choices": choices} | matrices


def mixture() -> dict[str, Any]:
    return mixture_input() | {"gate_up": some(TOKENS * CHOSEN, 2 * DIM), "y": some(TOKENS, HIDDEN)}


def mixture_backward() -> dict[str, Any]:
    given = mixture_input() | {"gate_up": some(TOKENS * CHOSEN, 2 * DIM), "d_y": some(TOKENS, HIDDEN)}
    names = ("x", "shares", "gate", "up", "down")
    return given | {f"d_{name}": np.empty_like(given[name]) for name in names}


def attention() -> dict[str, Any]:
    heads = {"q": some(TOKENS, HEADS, HEAD_DIM), "k": some(TOKENS, HEADS, HEAD_DIM - TURNED)}
    turning = {
        "v": some(TOKENS, HEADS, HEAD_DIM),
        "turning": some(TOKENS, TURNED),
        "angles": some(2, TOKENS, TURNED // 2),
    }
    numbers = {"neighbours": True, "begins": np.array([0, 2, TOKENS]), "scale": 1.0}
    return heads | turning | numbers | {"out": some(TOKENS, HEADS, HEAD_DIM), "log_sums": some(TOKENS * HEADS)}


def attention_backward() -> dict[str, Any]:
    given = attention()
    names = ("q", "k", "v", "turning")
    return (
        given | {"d_out": some(TOKENS, HEADS, HEAD_DIM)} | {f"d_{name}": np.empty_like(given[name]) for name in names}
    )


def cross_entropy() -> dict[str, Any]:
    given = {"x": some(ROWS, WIDTH), "head": some(VOCAB, WIDTH), "targets": np.arange(ROWS), "weights": some(ROWS)}
    return given | {"d_x": some(ROWS, WIDTH), "d_head": some(VOCAB, WIDTH)}


def rms_norm() -> dict[str, Any]:
    return {"x": some(ROWS, WIDTH), "weight": some(WIDTH), "eps": 1e-6, "y": some(ROWS, WIDTH)}


def rms_norm_backward() -> dict[str, Any]:
    given = {"x": some(ROWS, WIDTH), "weight": some(WIDTH), "eps": 1e-6, "d_y": some(ROWS, WIDTH)}
    return given | {"d_x": some(ROWS, WIDTH), "d_weight": some(WIDTH)}


OPERATIONS = (
    *(linears, linears_backward, mixture, mixture_backward, attention, attention_backward, cross_entropy),
    *(rms_norm, rms_norm_backward),
)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_arrays_that_fit_are_taken(operation: Any) -> None:
    getattr(training(), operation.__name__)(**operation())


def shorter(given: Any) -> Any:
    """Returns the array without its last row. A list of one array is changed in the same way."""
    return [shorter(given[0])] if isinstance(given, list) else np.ascontiguousarray(given[:-1])


def narrower(given: Any) -> Any:
    """Returns the array without its last column."""
    return [narrower(given[0])] if isinstance(given, list) else np.ascontiguousarray(given[..., :-1])


def deeper(given: Any) -> Any:
    """Returns the array with an additional first dimension."""
    return [deeper(given[0])] if isinstance(given, list) else given[None]


def flat(given: Any) -> Any:
    """Returns an empty array of one dimension."""
    return [flat(given[0])] if isinstance(given, list) else given.ravel()[:0]


ARRAYS = [
    (operation, name)
    for operation in OPERATIONS
    for name, given in operation().items()
    if isinstance(given, np.ndarray | list)
]


@pytest.mark.parametrize("change", [shorter, narrower, deeper, flat])
@pytest.mark.parametrize(("operation", "name"), ARRAYS)
def test_an_array_of_another_shape_is_refused(operation: Any, name: str, change: Any) -> None:
    given = operation()
    with pytest.raises(ValueError, match=r"wrong shape|end to end"):
        getattr(training(), operation.__name__)(**(given | {name: change(given[name])}))


@pytest.mark.parametrize("name", ["weights", "ys"])
def test_lists_of_other_lengths_are_refused(name: str) -> None:
    given = linears()
    with pytest.raises(ValueError, match="length"):
        training().linears(**(given | {name: given[name] * 2}))


@pytest.mark.parametrize("expert", [-1, EXPERTS, 2**40])
def test_an_expert_that_is_not_there_is_refused(expert: int) -> None:
    given = mixture()
    given["choices"][1, 0] = expert
    with pytest.raises(ValueError, match="no such expert"):
        training().mixture(**given)


@pytest.mark.parametrize("token", [-1, VOCAB, 2**40])
def test_a_token_that_is_not_there_is_refused(token: int) -> None:
    given = cross_entropy()
    given["targets"][1] = token
    with pytest.raises(ValueError, match="no such token"):
        training().cross_entropy(**given)


def test_adamw_without_averages_of_squares_is_refused() -> None:
    updates = _native.Updates([some(4)], [some(4)], [some(4)], [], [1.0], [0.1])
    training().nesterov(updates, 0.9, 1.0)
    with pytest.raises(ValueError, match="squares"):
        training().adamw(updates, 0.9, 0.99, 1.0, 1e-8, 1.0)


@pytest.mark.parametrize("place", range(4))
def test_updates_of_arrays_that_do_not_fit_are_refused(place: int) -> None:
    for wrong, complaint in (([some(5)], "shape"), ([some(4)] * 2, "length")):
        arrays = [[some(4)] for _ in range(4)]
        arrays[place] = wrong
        weights, gradients, momenta, squares = arrays
        with pytest.raises(ValueError, match=complaint):
            _native.Updates(weights, gradients, momenta, squares, [1.0], [0.1])


def test_matrices_that_are_no_stack_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        training().orthogonalise([some(4, 4)], 1.0, 1.0, 1.0, 1e-8, 1)
