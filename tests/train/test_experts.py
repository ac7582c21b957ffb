"""Grouped experts and chunked losses equal the plain operations, and so do their gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.train.model.experts import GroupedFeedForward
from freedive.train.model.loss import ChunkedCrossEntropy

T, K, E, HIDDEN, DIM = 37, 3, 5, 8, 6


def some(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def inputs(num_used: int = E) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(9)
    chosen = torch.stack([torch.randperm(num_used, generator=generator)[:K] for _ in range(T)])
    matrices = some(E, DIM, HIDDEN, seed=2), some(E, DIM, HIDDEN, seed=3), some(E, HIDDEN, DIM, seed=4)
    return some(T, HIDDEN, seed=0), some(T, K, seed=1), chosen, *matrices


def token_by_token(x: Tensor, shares: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    def of(token: int, place: int) -> Tensor:
        expert = chosen[token, place]
        mixed = F.silu(gate[expert] @ x[token]) * (up[expert] @ x[token])
        return shares[token, place] * (down[expert] @ mixed)

    return torch.stack([sum((of(token, place) for place in range(K)), torch.zeros(())) for token in range(T)])


@pytest.mark.parametrize("num_used", [E, 3])
def test_grouped_experts_are_the_sum_of_each_token_s_own(num_used: int) -> None:
    given = inputs(num_used)  # with 3 in use, two experts have no rows
    weights = some(T, HIDDEN, seed=5).detach()
    leaves = [value for value in given if value.requires_grad]
    outs = [function(*given) for function in (GroupedFeedForward.apply, token_by_token)]
    torch.testing.assert_close(*outs)
    got, expected = (torch.autograd.grad((out * weights).sum(), leaves) for out in outs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_grouped_experts_are_the_slope() -> None:
    assert torch.autograd.gradcheck(GroupedFeedForward.apply, inputs())


@pytest.mark.parametrize("rows", [1, 5, 1024, 2100])
def test_the_chunked_loss_is_cross_entropy(rows: int) -> None:
    x, head = some(rows, HIDDEN, seed=6), some(11, HIDDEN, seed=7)
    targets = torch.randint(0, 11, (rows,), generator=torch.Generator().manual_seed(8))
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(9))
    chunked = ChunkedCrossEntropy.apply(x, head, targets, weights)
    plain = (F.cross_entropy(x @ head.T, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(chunked.double(), plain, rtol=1e-5, atol=1e-5)
    got, expected = (torch.autograd.grad(loss * 0.5, (x, head)) for loss in (chunked, plain))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_equal_inputs_give_equal_bits() -> None:
    given = inputs()
    outs = [partial(GroupedFeedForward.apply, *given)() for _ in range(3)]
    assert all(torch.equal(outs[0], out) for out in outs)
