"""Layers with gradients on kernels of our own. Equal inputs give equal bits, on any number of threads.

All is float32; only the factors of products may be rounded to bfloat16 as they are packed, where :func:`prepare` said
so. Weights so packed are the shadow weights of others: they live for a pass, and gradients go to the float32 ones.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from freedive import machine
from freedive.errors import UserError
from freedive.native import _native

TILES = "amx"
"""The instruction-set level with tile registers."""


AUTO, FLOAT32, BFLOAT16 = PRECISIONS = ("auto", "float32", "bfloat16")
_precision = FLOAT32


def resolved(wanted: str) -> str:
    """The precision of products that ``wanted`` stands for: ``auto`` is bfloat16 where tile registers multiply it."""
    if wanted not in PRECISIONS:
        raise UserError(f"precision is {wanted!r}", f"Choose of {', '.join(PRECISIONS)}")
    fastest = BFLOAT16 if TILES in _native.isa_levels() else FLOAT32
    return fastest if wanted == AUTO else wanted


def precision() -> str:
    """That of products from now on."""
    return _precision


def prepare(wanted: str) -> None:
    """Train with ``wanted`` precision, on all cores."""
    global _precision
    _precision = resolved(wanted)
    _keep_freed_memory()
    torch.set_num_threads(machine.physical_cores())


@cache
def _keep_freed_memory() -> None:
    """What one step frees is what the next one takes."""
    _native.keep_freed_memory(machine.available_memory() // 2)


@cache
def kernels(num_threads: int, isa: str = "", precision: str = FLOAT32) -> _native.Training:
    """The kernels with threads of their own; at an instruction-set level, by default the machine's best."""
    return _native.Training(isa, num_threads, precision == BFLOAT16)


def peak_flops() -> float:
    """The operations a second that a product of large matrices reaches here, the best of several."""
    return _peak_flops(torch.get_num_threads(), _precision)


@cache
def _peak_flops(num_threads: int, precision: str) -> float:
    size, layers = 768, kernels(num_threads, precision=precision)
    x, weight, y = torch.ones(3, size, size).unbind()
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        layers.linears(x.numpy(), [weight.numpy()], [y.numpy()])
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


atexit.register(kernels.cache_clear)  # threads end before Python does


def _kernels() -> _native.Training:
    return kernels(torch.get_num_threads(), precision=_precision)


def _array(x: Tensor) -> npt.NDArray[Any]:
    """The same memory, if it is contiguous."""
    array: npt.NDArray[Any] = x.detach().contiguous().numpy()
    return array


class FusedLinears(torch.autograd.Function):
    """``x`` [T, in] times each of ``weights`` [out, in], transposed: a tuple of [T, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ys = tuple(x.new_empty(len(x), len(weight)) for weight in weights)
        _kernels().linears(_array(x), list(map(_array, weights)), [y.numpy() for y in ys])
        return ys

    @staticmethod
    def backward(ctx: Any, *d_ys: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        gradients = [
            torch.empty(each.shape) if needed else None
            for each, needed in zip((x, *weights), ctx.needs_input_grad, strict=True)
        ]
        d_x, *d_weights = (None if each is None else each.numpy() for each in gradients)
        arrays = list(map(_array, weights)), list(map(_array, d_ys))
        _kernels().linears_backward(_array(x), *arrays, d_x, d_weights)
        return tuple(gradients)


class FusedGlu(torch.autograd.Function):
    """silu(``gate``) times ``up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        y = gate.new_empty(gate.shape)
        ctx.save_for_backward(gate, up)
        _kernels().glu(_array(gate), _array(up), y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty(gate.shape), torch.empty(up.shape)
        _kernels().glu_backward(_array(gate), _array(up), _array(d_y), d_gate.numpy(), d_up.numpy())
        return d_gate, d_up


class FusedFeedForward(torch.autograd.Function):
    """See :class:`freedive.train.experts.GroupedFeedForward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        width = _kernels().kept_width(gate.shape[1])
        gate_up, y = x.new_empty(chosen.numel(), 2 * width), x.new_empty(x.shape)
        ctx.save_for_backward(x, shares, chosen, gate, up, down, gate_up)
        given = _array(x), _array(shares), _array(chosen), _array(gate), _array(up), _array(down)
        _kernels().mixture(*given, gate_up.numpy(), y.numpy())
        return y

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:
        given = ctx.saved_tensors
        x, shares, _, *matrices, _ = given
        gradients = [torch.empty(each.shape) for each in (x, shares, *matrices)]
        arrays = [_array(each) for each in (*given, d_y)]
        _kernels().mixture_backward(*arrays, *(each.numpy() for each in gradients))
        d_x, d_shares, *d_matrices = gradients
        return d_x, d_shares, None, *d_matrices


class FusedAttention(torch.autograd.Function):
    """Causal attention of sequences laid end to end: ``q``, ``k`` and ``v`` [T, heads, dim], and so is the result.

    ``begins`` int64 [sequences + 1]: their first rows, and the last one's end. With ``turning`` [T, turned] every
    head's keys, which are so much shorter, end with it, and the last part of queries and keys is turned by ``angles``
    [2, T, turned / 2], cosines and sines: of neighbours or of halves.
    """

    @staticmethod
    def forward(
        ctx: Any,
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
        ctx.how = neighbours, scale
        _kernels().attention(*_attended(q, k, v, turning, angles, begins, ctx.how), out.numpy(), log_sums.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        *given, out, log_sums = ctx.saved_tensors
        gradients = [None if x is None else torch.empty(x.shape) for x in given[:4]]
        outs = (None if x is None else x.numpy() for x in gradients)
        done = _array(out), _array(log_sums), _array(d_out)
        _kernels().attention_backward(*_attended(*given, ctx.how), *done, *outs)
        return *gradients, None, None, None, None


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turning: Tensor | None,
    angles: Tensor | None,
    begins: Tensor,
    how: tuple[bool, float],
) -> tuple[Any, ...]:
    """What both passes of attention are given, as the kernels want it."""
    last = (None if x is None else _array(x) for x in (turning, angles))
    return *map(_array, (q, k, v)), *last, how[0], _array(begins), how[1]


class FusedCrossEntropy(torch.autograd.Function):
    """See :class:`freedive.train.loss.ChunkedCrossEntropy`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        d_x, d_head = x.new_empty(x.shape), x.new_empty(head.shape)
        given = _array(x), _array(head), _array(targets), _array(weights)
        total = _kernels().cross_entropy(*given, d_x.numpy(), d_head.numpy())
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
        arrays = (_array(x), _array(weight)), (_array(d_y), d_x.numpy(), d_weight.numpy())
        _kernels().rms_norm_backward(*arrays[0], ctx.eps, *arrays[1])
        return d_x, d_weight, None


@dataclass(frozen=True)
class Moments:
    """Weights with what an optimizer keeps of them, how much of each an update leaves, and how far it goes."""

    weights: list[Tensor]
    gradients: list[Tensor]
    momenta: list[Tensor]
    squares: list[Tensor]
    keeps: list[float]
    rates: list[float]

    def updates(self) -> _native.Updates:
        """The same memory, for the kernels."""
        tensors = self.weights, self.gradients, self.momenta, self.squares
        weights, gradients, momenta, squares = ([each.detach().numpy() for each in some] for some in tensors)
        return _native.Updates(weights, gradients, momenta, squares, self.keeps, self.rates)


def adamw(moments: Moments, betas: tuple[float, float], bias2: float, eps: float, shrink: float) -> None:
    """One update of AdamW (Loshchilov & Hutter 2019) by gradients times ``shrink``; ``bias2`` corrects the squares."""
    _kernels().adamw(moments.updates(), *betas, bias2, eps, shrink)


def muon(
    moments: Moments,
    beta: float,
    shrink: float,
    coefficients: tuple[float, float, float],
    eps: float,
    turns: int,
) -> None:
    """One update of Muon (Jordan et al. 2024) by gradients times ``shrink``, which become the directions of steps."""
    updates = moments.updates()
    _kernels().look_ahead(updates, beta, shrink)
    orthogonalise(moments.gradients, coefficients, eps, turns)
    _kernels().move(updates)


def orthogonalise(stacks: Sequence[Tensor], coefficients: tuple[float, float, float], eps: float, turns: int) -> None:
    """See :func:`freedive.train.optim.orthogonal`; of contiguous stacks of matrices [..., rows, columns], in place."""
    arrays = [stack.detach().view(-1, *stack.shape[-2:]).numpy() for stack in stacks]
    _kernels().orthogonalise(arrays, *coefficients, eps, turns)
