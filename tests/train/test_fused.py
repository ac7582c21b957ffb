"""The layers on training kernels: torch's numbers and gradients at every instruction-set level, with the same bits for
any threads.

With factors of bfloat16 the numbers differ by rounding only. At the scalar level these products use the software model
of the tile registers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import BEST_LEVEL, LEVELS

from freedive.train.model import kernels
from freedive.train.model.experts import GroupedFeedForward
from freedive.train.model.fused import FusedAttention, FusedCrossEntropy, FusedFeedForward, FusedLinears, FusedRmsNorm
from freedive.train.model.optim import EPS_NORM, ITERATIONS, NEWTON_SCHULZ, orthogonal
from freedive.train.model.updates import orthogonalise

PRECISIONS = {kernels.FLOAT32: 2e-5, kernels.BFLOAT16: 2e-2}
"""The largest error of results, relative to the largest result."""


def use(monkeypatch: pytest.MonkeyPatch, level: str, threads: int, precision: str) -> None:
    """Makes layers use these kernels for any precision."""
    monkeypatch.setattr(kernels, "current", lambda given: kernels.kernels(threads, level, precision))


def fused(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Returns a layer whose precision is chosen by :func:`use`."""
    return partial(function.apply, "")


WAYS = [
    pytest.param((*level.values, threads, precision), marks=level.marks)
    for level, threads, precision in itertools.product(BEST_LEVEL, (1, 3), PRECISIONS)
]


@pytest.fixture(params=WAYS, ids=str)
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Makes layers use the kernels of a level; returns the largest relative error."""
    use(monkeypatch, *request.param)
    return PRECISIONS[request.param[2]]


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def linears(x: Tensor, *weights: Tensor) -> Tensor:
    """Multiplies x by all weights and concatenates the results."""
    return torch.cat(fused(FusedLinears)(x, *weights), 1)


def results(function: object, *given: object) -> list[Tensor]:
    """Returns the output, then the gradients of the arguments that have one."""
    out = function(*given)
    leaves = [each for each in given if isinstance(each, Tensor) and each.requires_grad]
    weights = some(*out.shape, seed=99).detach().to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def check(bound: float, function: object, oracle: object, *given: object) -> None:
    """Compares the results with those of the oracle in float64, within ``bound``."""
    wide = [
        each.detach().double().requires_grad_(each.requires_grad)
        if isinstance(each, Tensor) and each.is_floating_point()
        else each
        for each in given
    ]
    for got, expected in zip(results(function, *given), results(oracle, *wide), strict=True):
        torch.testing.assert_close(
            got.double(), expected, rtol=bound, atol=bound * max(float(expected.abs().max()), 1e-2)
        )


@pytest.mark.parametrize(
    ("rows", "ins", "outs"), [(1, 1, 1), (5, 8, 3), (37, 33, 50), (200, 16, 100), (7, 1100, 17), (4200, 4, 3)]
)
def test_linears_are_torch_s(bound: float, rows: int, ins: int, outs: int) -> None:
    def plain(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.cat([F.linear(x, weight) for weight in weights], 1)

    check(bound, linears, plain, some(rows, ins, seed=0), some(outs, ins, seed=1), some(9, ins, seed=2))


def test_a_weight_that_is_frozen_has_no_gradient(bound: float) -> None:
    x, frozen, weight = some(5, 8, seed=0), some(3, 8, seed=1).detach(), some(4, 8, seed=2)
    both = results(linears, x, frozen, weight)
    torch.testing.assert_close(both[0][:, 3:], results(linears, x, weight)[0], rtol=0, atol=0)
    assert [part.shape for part in both[1:]] == [x.shape, weight.shape]


@pytest.mark.parametrize("level", LEVELS)
def test_products_of_bfloat16_numbers_are_exact(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, level, 2, kernels.BFLOAT16)
    x, weight, d_y = (some(*shape, seed=3).detach().bfloat16().float() for shape in ((70, 90), (50, 90), (70, 50)))
    y, d_x, d_weight = (torch.empty(shape) for shape in ((70, 50), (70, 90), (50, 90)))
    kernels.current(kernels.BFLOAT16).linears(x.numpy(), [weight.numpy()], [y.numpy()])
    kernels.current("").linears_backward(x.numpy(), [weight.numpy()], [d_y.numpy()], d_x.numpy(), [d_weight.numpy()])
    for got, exact in ((y, x @ weight.T), (d_x, d_y @ weight), (d_weight, d_y.T @ x)):
        torch.testing.assert_close(got, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_have_gradients_of_zero(level: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, level, 2, precision)
    none, weight = torch.zeros(0, 90).numpy(), some(50, 90, seed=3).detach().numpy()
    made = torch.full((2, 50, 90), torch.nan)
    d_y, no_ints, no_weights = torch.zeros(0, 50).numpy(), torch.zeros(0).long().numpy(), torch.zeros(0).numpy()
    kernels.current("").linears_backward(none, [weight], [d_y], none.copy(), [made[0].numpy()])
    total = kernels.current("").cross_entropy(none, weight, no_ints, no_weights, none.copy(), made[1].numpy())
    assert total == 0
    assert not made.any()


def mixture(tokens: int, chosen: int, experts: int, hidden: int, dim: int, used: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(9)
    choices = torch.stack([torch.randperm(used, generator=generator)[:chosen] for _ in range(tokens)])
    shapes = (experts, dim, hidden), (experts, dim, hidden), (experts, hidden, dim)
    matrices = (some(*shape, seed=seed) for seed, shape in enumerate(shapes, 2))
    return some(tokens, hidden, seed=0), some(tokens, chosen, seed=1), choices, *matrices


MIXTURES = [
    (1, 1, 1, 4, 3, 1),
    (37, 3, 5, 8, 6, 5),
    (37, 3, 5, 8, 6, 3),
    (300, 2, 4, 40, 17, 4),
    (250, 1, 1, 32, 200, 1),
]


@pytest.mark.parametrize("shape", MIXTURES, ids=str)
def test_a_mixture_is_torch_s(bound: float, shape: tuple[int, ...]) -> None:
    check(bound, fused(FusedFeedForward), GroupedFeedForward.apply, *mixture(*shape))


def turn(x: Tensor, angles: Tensor, neighbours: bool) -> Tensor:
    """Rotates x [T, heads, dim] as complex numbers."""
    a, b = x.unflatten(-1, (-1, 2) if neighbours else (2, -1)).unbind(-1 if neighbours else -2)
    turned = torch.complex(a, b) * torch.complex(*angles)[:, None]
    return torch.stack([turned.real, turned.imag], -1 if neighbours else -2).flatten(2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turning: Tensor | None,
    begins: Tensor,
    scale: float,
    angles: Tensor | None = None,
    neighbours: bool = False,
) -> Tensor:
    if turning is not None and angles is not None:
        plain, last = q.split([k.shape[-1], turning.shape[-1]], -1)
        q = torch.cat([plain, turn(last, angles, neighbours)], -1)
        k = torch.cat([k, turn(turning[:, None], angles, neighbours).expand(-1, k.shape[1], -1)], -1)
    parts = []
    for part in zip(*(x.split(begins.diff().tolist()) for x in (q, k, v)), strict=True):
        q, k, v = (x.transpose(0, 1) for x in part)
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(parts)


def heads(lengths: list[int], count: int, dim: int) -> tuple[Any, ...]:
    begins = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    return *(some(sum(lengths), count, dim, seed=seed) for seed in range(3)), None, begins, 0.3


def latent_heads(lengths: list[int], count: int, plain: int, turned: int, neighbours: bool) -> tuple[Any, ...]:
    q, _, v, _, begins, scale = heads(lengths, count, plain + turned)
    k, turning = some(len(q), count, plain, seed=3), some(len(q), turned, seed=4)
    angles = some(len(q), turned // 2, seed=5).detach() * 9
    return q, k, v, turning, begins, scale, torch.stack([angles.cos(), angles.sin()]), neighbours


@pytest.mark.parametrize(
    ("lengths", "count", "dim"),
    [([1], 1, 1), ([5, 1], 2, 8), ([40, 3, 40], 3, 20), ([100], 1, 64), ([73, 36, 37], 2, 70)],
)
def test_attention_is_torch_s(bound: float, lengths: list[int], count: int, dim: int) -> None:
    check(bound, fused(FusedAttention), attend, *heads(lengths, count, dim))


@pytest.mark.parametrize("neighbours", [True, False])
def test_the_last_part_of_queries_and_keys_is_turned(bound: float, neighbours: bool) -> None:
    check(bound, fused(FusedAttention), attend, *latent_heads([40, 3, 40], 3, 12, 8, neighbours))


def losses(rows: int, hidden: int, vocab: int) -> tuple[Tensor, ...]:
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(8))
    return some(rows, hidden, seed=6), some(vocab, hidden, seed=7), targets, some(rows, seed=9).detach()


@pytest.mark.parametrize(("rows", "hidden", "vocab"), [(1, 3, 2), (50, 8, 11), (1000, 4, 33)])
def test_the_loss_is_cross_entropy(bound: float, rows: int, hidden: int, vocab: int) -> None:
    def plain(x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return (F.cross_entropy(x @ head.T, targets, reduction="none") * weights).sum()

    check(bound, fused(FusedCrossEntropy), plain, *losses(rows, hidden, vocab))


@pytest.mark.parametrize(("rows", "dim"), [(1, 3), (5, 8), (300, 40)])
def test_a_norm_is_torch_s(bound: float, rows: int, dim: int) -> None:
    def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    check(bound, fused(FusedRmsNorm), plain, some(rows, dim, seed=0), some(dim, seed=1), 1e-6)


SHAPES = [(1, 1), (7, 3), (3, 40, 60), (2, 3, 90, 33)]


def test_matrices_are_turned_as_torch_does(bound: float) -> None:
    stacks = [some(*shape, seed=seed).detach() for seed, shape in enumerate(SHAPES)]
    expected = [orthogonal(stack.double()) for stack in stacks]
    orthogonalise(stacks, NEWTON_SCHULZ, EPS_NORM, ITERATIONS, "")
    for got, exact in zip(stacks, expected, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=5 * bound, atol=5 * bound)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_any_number_of_threads_gives_equal_bits(level: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(threads: int) -> list[Tensor]:
        use(monkeypatch, level, threads, precision)
        stack = some(3, 40, 60, seed=5).detach()
        orthogonalise([stack], NEWTON_SCHULZ, EPS_NORM, ITERATIONS, "")
        return [
            stack,
            *results(linears, some(450, 48, seed=0), some(70, 48, seed=1)),
            *results(linears, some(4200, 8, seed=0), some(5, 8, seed=1)),
            *results(fused(FusedFeedForward), *mixture(500, 2, 4, 48, 32, 4)),
            *results(fused(FusedAttention), *heads([50, 7, 50], 2, 16)),
            *results(fused(FusedAttention), *latent_heads([50, 7, 50], 2, 10, 6, True)),
            *results(fused(FusedCrossEntropy), *losses(1000, 16, 50)),
            *results(fused(FusedRmsNorm), some(400, 40, seed=0), some(40, seed=1), 1e-6),
        ]

    one = made(1)
    for threads in (2, 3):
        assert all(map(torch.equal, one, made(threads)))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight = torch.zeros(3, 8).numpy(), torch.zeros(5, 7).numpy()
    with pytest.raises(ValueError, match="shape"):
        kernels.kernels(1).linears(x, [weight], [torch.zeros(3, 5).numpy()])
