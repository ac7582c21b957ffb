"""Training's kernels, and the precision they multiply in. Equal inputs give equal bits, on any number of threads.

All is float32; only the factors of products may be rounded to bfloat16 as they are packed, where the ``precision``
that layers and optimizers are given says so. Weights so packed live for one pass; gradients go to the float32 ones.
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


def resolved(wanted: str) -> str:
    """The precision of products that ``wanted`` stands for: ``auto`` is bfloat16 where tile registers multiply it."""
    if wanted not in PRECISIONS:
        raise UserError(f"precision is {wanted!r}", f"Choose of {', '.join(PRECISIONS)}")
    fastest = BFLOAT16 if TILES in _native.isa_levels() else FLOAT32
    return fastest if wanted == AUTO else wanted


def prepare() -> None:
    """Train on all cores."""
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


def peak_flops(precision: str) -> float:
    """The operations a second that a product of large matrices reaches here, the best of several."""
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


atexit.register(kernels.cache_clear)  # threads end before Python does


def current(precision: str) -> _native.Training:
    """The kernels of this ``precision``, with as many threads as torch has."""
    return kernels(torch.get_num_threads(), precision=precision)


def array(x: Tensor) -> npt.NDArray[Any]:
    """The same memory, if it is contiguous."""
    memory: npt.NDArray[Any] = x.detach().contiguous().numpy()
    return memory
