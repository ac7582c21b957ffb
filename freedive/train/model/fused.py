"""Layers with gradients on freedive's training kernels; all tensors are float32, products may round their factors.

The first argument ``precision`` of each layer is one of kernels.PRECISIONS, but not ``auto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from freedive.train.model import kernels
from freedive.train.model.kernels import array


class FusedLinears(torch.autograd.Function):
    """Multiplies ``x`` [T, in] by the transpose of each of ``weights`` [out, in]; returns a tuple of [T, out]."""

    @staticmethod
    def forward(ctx: Any, precision: str, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.precision = precision
        ys = tuple(x.new_empty(len(x), len(weight)) for weight in weights)
        kernels.current(precision).linears(array(x), list(map(array, weights)), [y.numpy() for y in ys])
        return ys

    @staticmethod
    def backward(ctx: Any, *d_ys: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        gradients = [
            torch.empty(each.shape) if needed else None
            for each, needed in zip((x, *weights), ctx.needs_input_grad[1:], strict=True)
        ]
        d_x, *d_weights = (None if each is None else each.numpy() for each in gradients)
        arrays = list(map(array, weights)), list(map(array, d_ys))
        kernels.current(ctx.precision).linears_backward(array(x), *arrays, d_x, d_weights)
        return None, *gradients


class FusedFeedForward(torch.autograd.Function):
    """Computes :class:`freedive.train.model.experts.GroupedFeedForward` on the kernels."""

    @staticmethod
    def forward(
        ctx: Any, precision: str, x: Tensor, shares: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        ctx.precision = precision
        width = kernels.current(precision).kept_width(gate.shape[1])
        gate_up, y = x.new_empty(chosen.numel(), 2 * width), x.new_empty(x.shape)
        ctx.save_for_backward(x, shares, chosen, gate, up, down, gate_up)
        given = array(x), array(shares), array(chosen), array(gate), array(up), array(down)
        kernels.current(precision).mixture(*given, gate_up.numpy(), y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        given = ctx.saved_tensors
        x, shares, _, *matrices, _ = given
        gradients = [torch.empty(each.shape) for each in (x, shares, *matrices)]
        arrays = [array(each) for each in (*given, d_y)]
        kernels.current(ctx.precision).mixture_backward(*arrays, *(each.numpy() for each in gradients))
        d_x, d_shares, *d_matrices = gradients
        return None, d_x, d_shares, None, *d_matrices


class FusedAttention(torch.autograd.Function):
    """Causal attention within each of several packed sequences; ``q``, ``k``, ``v`` and the result are [T, heads, dim].

    ``begins`` int64 [sequences + 1] are the first rows of the sequences and the end of the last. ``turning`` [T,
    rope_dim] is the rotary part of the keys, which all heads share: ``k`` is shorter by it, and queries and keys are
    rotated in their last ``rope_dim`` dimensions by ``angles`` [2, T, rope_dim / 2], cosines and sines. ``neighbours``
    rotates adjacent pairs, otherwise pairs of the two halves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        precision: str,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        turning: Tensor | None,
        begins: Tensor,
        scale: float,
        angles: Tensor | None = None,
        neighbours: bool = False,
    ) -> Tensor:
        out, log_sums = q.new_empty(q.shape), q.new_empty(len(q) * q.shape[1])
        ctx.save_for_backward(q, k, v, turning, angles, begins, out, log_sums)
        ctx.precision, ctx.how = precision, (neighbours, scale)
        kernels.current(precision).attention(*_attended((q, k, v, turning, angles), begins, ctx.how, out, log_sums))
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        *given, begins, out, log_sums = ctx.saved_tensors
        gradients = [None if x is None else torch.empty(x.shape) for x in given[:4]]
        arrays = _attended(given, begins, ctx.how, out, log_sums, d_out, *gradients)
        kernels.current(ctx.precision).attention_backward(*arrays)
        return None, *gradients, None, None, None, None


def _attended(
    given: Iterable[Tensor | None], begins: Tensor, how: tuple[bool, float], *rest: Tensor | None
) -> tuple[Any, ...]:
    """Converts the arguments of attention to arrays in the order of the kernels."""
    inputs, others = ([None if x is None else array(x) for x in some] for some in (given, rest))
    neighbours, scale = how
    return *inputs, neighbours, array(begins), scale, *others


class FusedCrossEntropy(torch.autograd.Function):
    """Computes :class:`freedive.train.model.loss.ChunkedCrossEntropy` on the kernels."""

    @staticmethod
    def forward(ctx: Any, precision: str, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        d_x, d_head = x.new_empty(x.shape), x.new_empty(head.shape)
        given = array(x), array(head), array(targets), array(weights)
        total = kernels.current(precision).cross_entropy(*given, d_x.numpy(), d_head.numpy())
        ctx.save_for_backward(d_x, d_head)
        return x.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_x, d_head = ctx.saved_tensors
        return None, d_x * d_total, d_head * d_total, None, None


class FusedRmsNorm(torch.autograd.Function):
    """Divides ``x`` [T, dim] by its root mean square and multiplies it by ``weight`` [dim]."""

    @staticmethod
    def forward(ctx: Any, precision: str, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, y = x.contiguous(), x.new_empty(x.shape)
        ctx.save_for_backward(x, weight)
        ctx.precision, ctx.eps = precision, eps
        kernels.current(precision).rms_norm(array(x), array(weight), eps, y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        d_x, d_weight = x.new_empty(x.shape), x.new_empty(weight.shape)
        arrays = (array(x), array(weight)), (array(d_y), d_x.numpy(), d_weight.numpy())
        kernels.current(ctx.precision).rms_norm_backward(*arrays[0], ctx.eps, *arrays[1])
        return None, d_x, d_weight, None
