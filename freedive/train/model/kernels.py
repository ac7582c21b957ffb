"""The training kernels and the precision of their products. Equal inputs give equal bits for any number of threads.

All tensors are float32. With the ``precision`` bfloat16 the factors of products are rounded to it as they are packed.
Packed weights live for one pass; gradients apply to the float32 weights.
"""

from __future__ import annotations

import atexit
import time
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


def resolved(precision: str) -> str:
    """Returns ``precision``, where ``auto`` becomes bfloat16 if tile registers multiply it here, and else float32."""
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}", f"Choose one of {', '.join(PRECISIONS)}")
    fastest = BFLOAT16 if TILES in _native.isa_levels() else FLOAT32
    return fastest if precision == AUTO else precision


def prepare() -> None:
    """Sets torch to all physical cores, and keeps freed memory for the next steps."""
    _keep_freed_memory()
    torch.set_num_threads(machine.physical_cores())


@cache
def _keep_freed_memory() -> None:
    """Makes the allocator keep freed memory, since the next step needs the same amount."""
    _native.keep_freed_memory(machine.available_memory() // 2)


@cache
def kernels(num_threads: int, isa: str = "", precision: str = FLOAT32) -> _native.Training:
    """Returns kernels with ``num_threads`` threads of their own, at the instruction-set level ``isa`` (empty: the
    best)."""
    return _native.Training(isa, num_threads, precision == BFLOAT16)


def peak_flops(precision: str) -> float:
    """Returns the best measured speed of a product of large matrices on this machine, in operations per second."""
    return _peak_flops(torch.get_num_threads(), precision)


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


atexit.register(kernels.cache_clear)  # the kernels' threads have to end before the interpreter does


def current(precision: str) -> _native.Training:
    """Returns the kernels of this ``precision`` with as many threads as torch has."""
    return kernels(torch.get_num_threads(), precision=precision)


def array(x: Tensor) -> npt.NDArray[Any]:
    """Returns a tensor as an array, which shares its memory if the tensor is contiguous."""
    memory: npt.NDArray[Any] = x.detach().contiguous().numpy()
    return memory
