"""The compiled module: see native/bind.cpp. Formats are numbers of native/formats/format.h."""

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Output = tuple[int, int, int]  # weight, bias vector, output buffer
_Norm = tuple[int, float]  # vector of weights or -1, epsilon
_HeadStep = tuple[int, int, int, float]  # kind, vector or rope table, dimensions, epsilon

MAX_HEAD_DIM: int
"""The widest head that attention takes."""

def isa_levels() -> list[str]:
    """Instruction-set levels that this machine has, best last."""

def packed_bytes(format: int, rows: int, k: int) -> int:
    """Size of a packed matrix [rows, k]."""

def pack(format: int, rows: int, k: int, source: _Bytes, out: _Bytes, num_threads: int = 1) -> None:
    """A row-major matrix in file order -> panels."""

def unpack_row(format: int, rows: int, k: int, packed: _Bytes, row: int, out: _Floats) -> None:
    """One row of a packed matrix as floats [k]."""

def multiply(isa: str, format: int, rows: int, k: int, packed: _Bytes, x: _Floats, out: _Floats) -> None:
    """x [M, k] times a packed matrix [rows, k], into [panels, M, 32]: a kernel on its own, for tests."""

def read_bandwidth(num_threads: int, megabytes: int) -> float:
    """GB/s that threads read together from fresh memory, at best. MemoryError where there is not that much."""

class Program:
    """A recorded forward pass with its weights, buffers, cache and threads. Integers name what was added before."""

    isa: str
    num_threads: int
    page_bytes: int

    def __init__(self, isa: str, num_threads: int) -> None: ...
    def weight(self, format: int, rows: int, k: int, packed: _Bytes) -> int: ...
    def vector(self, values: _Floats) -> int: ...
    def buffer(self, width: int, wanted: bool) -> int: ...
    def embed(self, table: int, out: int) -> None: ...
    def select(self, x: int, out: int) -> None: ...
    def rope_table(self, inv_freq: int, factor: float, out: int) -> None: ...
    def linear(self, x: int, norm: _Norm, outputs: list[_Output], residual: int) -> None: ...
    def glu(self, x: int, norm: _Norm, gate: _Output, up: _Output, activation: int) -> None: ...
    def attention(
        self,
        *,
        q: int,
        k: int,
        v: int,
        out: int,
        num_heads: int,
        num_kv_heads: int,
        key_dim: int,
        value_dim: int,
        scale: float,
        window: int,
        q_steps: list[_HeadStep],
        k_steps: list[_HeadStep],
        element_bytes: int,
    ) -> None: ...
    def allocate(self, max_rows: int, num_pages: int) -> None: ...
    def step(
        self, tokens: _Ints, lengths: _Ints, starts: _Ints, pages: npt.NDArray[np.int32], wanted: _Ints, result: int
    ) -> _Floats: ...
