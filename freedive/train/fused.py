"""Layers with gradients on kernels of our own, in float32. Equal inputs give equal bits, on any number of threads."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from freedive.native import _native


@cache
def kernels(num_threads: int, isa: str = "") -> _native.Training:
    """The kernels with threads of their own; at an instruction-set level, by default the machine's best."""
    return _native.Training(isa, num_threads)


atexit.register(kernels.cache_clear)  # threads end before Python does


def _kernels() -> _native.Training:
    return kernels(torch.get_num_threads())


def _array(x: Tensor) -> npt.NDArray[Any]:
    """The same memory, if it is contiguous."""
    array: npt.NDArray[Any] = x.detach().contiguous().numpy()
    return array


class FusedLinear(torch.autograd.Function):
    """``x`` [T, in] times ``weight`` [out, in], transposed: [T, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = x.new_empty(len(x), len(weight))
        _kernels().linear(*map(_array, (x, weight, y)))
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        d_x, d_weight = (
            torch.empty_like(each, memory_format=torch.contiguous_format) if needed else None
            for each, needed in zip((x, weight), ctx.needs_input_grad, strict=True)
        )
        outs = (None if each is None else each.numpy() for each in (d_x, d_weight))
        _kernels().linear_backward(_array(x), _array(weight), _array(d_y), *outs)
        return d_x, d_weight


class FusedFeedForward(torch.autograd.Function):
    """See :class:`freedive.train.experts.GroupedFeedForward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate_up, y = x.new_empty(chosen.numel(), 2 * gate.shape[1]), x.new_empty(x.shape)
        ctx.save_for_backward(x, shares, chosen, gate, up, down, gate_up)
        _kernels().mixture(*map(_array, (x, shares, chosen, gate, up, down, gate_up, y)))
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        given = ctx.saved_tensors
        x, shares, _, *matrices, _ = given
        gradients = [torch.empty(each.shape) for each in (x, shares, *matrices)]
        _kernels().mixture_backward(*map(_array, (*given, d_y, *gradients)))
        d_x, d_shares, *d_matrices = gradients
        return d_x, d_shares, None, *d_matrices


class FusedAttention(torch.autograd.Function):
    """Causal attention: ``q``, ``k`` and ``v`` [N, L, heads, dim], and so is the result."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        num, length, heads, _ = q.shape
        out, log_sums = q.new_empty(q.shape), q.new_empty(num, heads, length)
        _kernels().attention(_array(q), _array(k), _array(v), scale, out.numpy(), log_sums.numpy())
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        q, k, v, out, log_sums = map(_array, ctx.saved_tensors)
        gradients = [torch.empty(q.shape) for _ in range(3)]
        _kernels().attention_backward(
            q, k, v, ctx.scale, out, log_sums, _array(d_out), *(each.numpy() for each in gradients)
        )
        return *gradients, None


class FusedCrossEntropy(torch.autograd.Function):
    """See :class:`freedive.train.loss.ChunkedCrossEntropy`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        d_x, d_head = x.new_empty(x.shape), x.new_empty(head.shape)
        total = _kernels().cross_entropy(*map(_array, (x, head, targets, weights, d_x, d_head)))
        ctx.save_for_backward(d_x, d_head)
        return x.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_x, d_head = ctx.saved_tensors
        return d_x * d_total, d_head * d_total, None, None


class FusedRmsNorm(torch.autograd.Function):
    """``x`` [T, dim] by its root mean square, times ``weight`` [dim]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, y = x.contiguous(), x.new_empty(x.shape)
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        _kernels().rms_norm(_array(x), _array(weight), eps, y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        d_x, d_weight = x.new_empty(x.shape), x.new_empty(weight.shape)
        _kernels().rms_norm_backward(_array(x), _array(weight), ctx.eps, _array(d_y), d_x.numpy(), d_weight.numpy())
        return d_x, d_weight, None


def orthogonalise(stacks: Sequence[Tensor], coefficients: tuple[float, float, float], eps: float, turns: int) -> None:
    """See :func:`freedive.train.optim.orthogonal`; of contiguous stacks of matrices [..., rows, columns], in place."""
    arrays = [stack.detach().view(-1, *stack.shape[-2:]).numpy() for stack in stacks]
    _kernels().orthogonalise(arrays, *coefficients, eps, turns)
