"""The compiled module: native/bind_*.cpp register it, a domain each.

What does not fit is a ValueError, an index out of bounds an IndexError.
"""

from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Choices = npt.NDArray[np.int64]
_Output = tuple[int, int, int]  # weight, bias vector, output buffer
_Norm = tuple[int, float]  # vector of weights or -1, epsilon
_HeadStep = tuple[
    HeadStepKind, int, int, float, float
]  # kind, vector or rope table, dimensions, and numbers of its kind
_Part = tuple[Format, int, int, int, int | None]  # format, rows, k, offset in the record, offset of the bias
_Named = tuple[int, int]  # weight, bias vector
_Stored = tuple[int, list[tuple[int, int]], list[int]]  # offset in the file; offset and size of parts; checksums
_Shared = tuple[_Named, _Named, _Named, Activation, float]  # gate, up, down, activation, limit

class Format(Enum):
    """How a packed weight is stored: see native/formats/format.h."""

    F32 = ...
    F16 = ...
    BF16 = ...
    F8G128 = ...
    Q8_0 = ...
    Q4_0 = ...
    Q4_1 = ...
    Q5_0 = ...
    Q5_1 = ...
    Q2_K = ...
    Q3_K = ...
    Q4_K = ...
    Q5_K = ...
    Q6_K = ...
    IQ4_NL = ...
    IQ4_XS = ...
    MXFP4 = ...
    TQ2_0 = ...
    IQ1S = ...
    IQ1M = ...
    IQ2 = ...
    IQ3XXS = ...
    IQ3S = ...
    F4G16 = ...
    I4G64 = ...
    I4G128 = ...
    I8G128 = ...
    I4G32Z = ...
    I4G64Z = ...
    I4G128Z = ...

class Activation(Enum):
    """Of a gated linear unit, as model.spec names them."""

    silu = ...
    gelu_tanh = ...
    swiglu_oai = ...
    clamped_silu = ...
    sigmoid = ...

class GroupChoice(Enum):
    """How a router chooses among groups of experts, as model.spec names them."""

    max = ...
    top2 = ...
    each = ...

class RouterScore(Enum):
    """How a router's logits become scores, as model.spec names them."""

    softmax = ...
    sigmoid = ...

class CacheFormat(Enum):
    """Numbers of the key-value cache."""

    f32 = ...
    f16 = ...
    int8 = ...

class RowKind(Enum):
    """Arithmetic on whole rows."""

    SCALE = ...
    SOFTCAP = ...
    CLIP = ...
    SIGMOID_GATE = ...
    SOFTPLUS_GATE = ...
    SCALE_BY_POSITION = ...
    ADD = ...

class HeadStepKind(Enum):
    """What is done to each head of q or k before attention."""

    NORM = ...
    ROPE_HALVES = ...
    ROPE_INTERLEAVED = ...
    SCALE_BY_POSITION = ...

PAGE_TOKENS: int
"""Tokens in one page of the key-value cache."""
MAX_DRAFT: int
"""The most draft tokens of a sequence in one step."""
MAX_HEAD_DIM: int
"""The widest head that attention takes."""
MAX_EXPERTS: int
"""The most experts that a router chooses from."""
LATE_PROMPT_TOKENS: int
"""Last tokens of a prompt, which have the outlier threshold of generated ones."""

def isa_levels() -> list[str]:
    """Instruction-set levels that this machine has, best last."""

def isa_levels_with(*, avx2: bool = False, avx_vnni: bool = False, avx512: bool = False) -> list[str]:
    """Instruction-set levels of an x86-64 processor with these features, best last: for tests of the choice."""

def packed_bytes(format: Format, rows: int, k: int) -> int:
    """Size of a packed matrix [rows, k]."""

def pack(format: Format, rows: int, k: int, source: _Bytes, out: _Bytes, num_threads: int = 1) -> bool:
    """A row-major matrix in file order -> panels. False if a scale or a float is NaN or infinite."""

def unpack_row(format: Format, rows: int, k: int, packed: _Bytes, row: int, out: _Floats) -> None:
    """One row of a packed matrix as floats [k]."""

def multiply(
    isa: str, format: Format, rows: int, k: int, packed: _Bytes, x: _Floats, out: _Floats, in_bf16: bool = False
) -> None:
    """x [M, k] times a packed matrix [rows, k], into [panels, M, 32]: a kernel on its own, for tests.

    ``in_bf16``: as rows of prompts on levels with tiles; ValueError on other levels."""

def checksum(data: _Bytes) -> int:
    """64 bits that depend on every bit of ``data`` and on their order."""

def likeliest(logits: _Floats, k: int) -> tuple[list[int], float]:
    """The ``k`` likeliest tokens, lower ids first on a tie, and log(sum(exp(logits))); no logit is NaN."""

def mask(logits: _Floats, allowed: _Bytes, out: _Floats) -> None:
    """The logits of the tokens in ``allowed``, a bit for each; minus infinity for all others."""

def weigh(logits: _Floats, temperature: float, top_k: int, top_p: float, min_p: float, out: _Floats) -> None:
    """What :func:`draw` draws by: exp(logit / temperature), 1 for the likeliest token; 0 for what is left out."""

def draw(logits: _Floats, temperature: float, top_k: int, top_p: float, min_p: float, random: float) -> int:
    """The token at ``random``, from 0 to 1, of the running sum of weights. Logits: some finite, none NaN or +inf."""

def read_bandwidth(num_threads: int, megabytes: int) -> float:
    """GB/s that threads read together from fresh memory, at best. MemoryError where there is not that much."""

def resident_bytes(data: npt.NDArray[Any]) -> int:
    """Bytes of an array that are in physical memory now."""

def keep_freed_memory(num_bytes: int) -> None:
    """What the process frees from now on it keeps for itself; ``num_bytes`` of it come in large pages."""

def compute_peaks(num_threads: int) -> list[tuple[str, str, float]]:
    """Type of the factors (int8, bf16, fp32), instruction, operations per second: of each unit of the machine."""

class Router:
    """How logits choose experts: see model.spec.Router."""

    def __init__(
        self,
        *,
        num_experts: int,
        num_chosen: int,
        score: RouterScore,
        renormalise: bool,
        scale: float,
        choice_bias: int,
        expert_scale: int,
        num_groups: int,
        kept_groups: int,
        group_choice: GroupChoice,
        weighs_input: bool,
    ) -> None: ...

class UnreadableWeights(RuntimeError):
    """Weights of experts on disk cannot be read now; the same step may succeed later."""

class Program:
    """A recorded forward pass with its weights, buffers, cache and threads. Integers name what was added before."""

    isa: str
    num_threads: int
    barriers: int
    """That the threads have passed so far: where one waits for the others."""
    page_bytes: int
    pages: _Bytes
    """The cache's memory itself, once allocated: [num_pages, page_bytes]."""
    slot_bytes: int
    states: _Bytes
    """The memory of per-sequence states, once allocated: [num_slots, slot_bytes]."""
    bf16_prompts: bool
    early_outlier_threshold: float
    late_outlier_threshold: float
    cache_preference: float
    """How much generated tokens prefer experts in memory where others are read from a file, 0 to 1."""
    num_operations: int
    seconds: list[float]
    """Of the last step if it was traced: until its first operation began, then of each operation. Else empty."""

    def __init__(self, isa: str, num_threads: int, cache_format: CacheFormat = ...) -> None: ...
    def weight(self, format: Format, rows: int, k: int, packed: _Bytes, heads: int = 1) -> int: ...
    def vector(self, values: _Floats) -> int: ...
    def buffer(self, width: int, wanted: bool) -> int: ...
    def embed(self, table: int, out: int) -> None: ...
    def select(self, x: int, out: int) -> None: ...
    def rope_table(self, inv_freq: int, factor: float, out: int) -> None: ...
    def linear(self, x: int, norm: _Norm, outputs: list[_Output], factor: float, residuals: list[int]) -> None: ...
    def glu(self, x: int, norm: _Norm, gate: _Output, up: _Output, activation: Activation, limit: float) -> None: ...
    def row_operation(self, kind: RowKind, x: int, other: int, value: float, out: int) -> None: ...
    def row_norm(
        self,
        *,
        x: int,
        out: int,
        norm: _Norm,
        part: int,
        factor: float = 1.0,
        residuals: list[int] = ...,
        after: float = 1.0,
    ) -> None: ...
    def row_glu(self, *, gate: int, up: int, first: int, out: int, activation: Activation, limit: float) -> None: ...
    def experts(
        self,
        *,
        x: int,
        norm: _Norm,
        logits: int,
        router: Router,
        out: int,
        packed: _Bytes,
        count: int,
        stride: int,
        stored: _Stored | None,
        gate: _Part,
        up: _Part,
        down: _Part,
        activation: Activation,
        limit: float,
        shared: _Shared | None,
        shared_gate: int,
        factor: float,
        residuals: list[int],
    ) -> int:
        """Returns the index of the layer's routes."""

    def attention(
        self,
        *,
        q: int,
        k: int,
        v: int,
        out: int,
        source: int,
        num_heads: int,
        num_kv_heads: int,
        key_dim: int,
        value_dim: int,
        scale: float,
        softcap: float,
        window: int,
        chunk: int,
        sinks: int,
        q_steps: list[_HeadStep],
        k_steps: list[_HeadStep],
        v_steps: list[_HeadStep],
    ) -> int:
        """Returns the layer of the cache; without k and v (-1), that of ``source``."""

    def short_conv(self, *, x: int, out: int, taps: int, bias: int, kernel: int, gated: bool) -> None: ...
    def delta_rule(
        self,
        *,
        q: int,
        k: int,
        v: int,
        beta: int,
        decay: int,
        out: int,
        num_key_heads: int,
        num_value_heads: int,
        key_dim: int,
        value_dim: int,
        by_channel: bool,
        tiled: bool,
        rate: int,
        bias: int,
        decay_bound: float,
    ) -> None: ...
    def gated_norm(
        self, *, x: int, gate: int, out: int, weight: int, head_dim: int, eps: float, activation: Activation
    ) -> None: ...
    def latent_attention(
        self,
        *,
        q: int,
        kv: int,
        out: int,
        norm: _Norm,
        k_b: int,
        v_b: int,
        num_heads: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        rank: int,
        scale: float,
        rope: _HeadStep,
    ) -> None: ...
    def page_experts(
        self,
        *,
        path: str,
        num_bytes: int,
        direct: bool,
        num_readers: int,
        timeout_s: float,
        order: list[list[int]] = ...,
    ) -> None:
        """Reads routed experts from the file ``path`` when a step needs them, into ``num_bytes`` of memory.

        With ``direct``, reads go past the page cache where the file system can. To be called before operations are
        added. It raises RuntimeError if the file cannot be opened. Steps raise UnreadableWeights if weights cannot be
        read, or if the disk reads nothing for ``timeout_s``. ``order`` has the experts of each layer in the order in
        which free memory is filled; what is no permutation of them is ignored.
        """

    slots_bytes: int
    """Bytes of memory for routed experts that are read from a file."""
    used_slots_bytes: int
    """The part of ``slots_bytes`` that holds experts now."""
    unread_rows: list[int]
    """Rows of the last step that raised UnreadableWeights which needed these weights."""
    expert_traffic: list[tuple[int, int, int, float]]
    """For each layer of experts that are read from a file: hits, misses, bytes read, and seconds that steps waited."""
    missed_experts: list[list[int]]
    """For each layer of experts that are read from a file: those that were not in memory in the last step."""

    def allocate(self, max_rows: int, num_pages: int, num_slots: int = 0, num_sequences: int = 0) -> None: ...
    def step(
        self,
        tokens: _Ints,
        lengths: _Ints,
        starts: _Ints,
        pages: npt.NDArray[np.int32],
        wanted: _Ints,
        prompts: _Ints,
        begin: int,
        end: int,
        result: int,
        traced: bool = False,
        moves: npt.NDArray[np.int32] | None = None,
        saves: npt.NDArray[np.int32] | None = None,
    ) -> _Floats: ...
    def routes(self, index: int) -> tuple[_Ints, _Floats]:
        """Of each token of the last step: the experts that it goes to and their weights, [T, num_chosen] each."""

    def chosen_experts(self, row: int) -> npt.NDArray[np.int32]:
        """Of one token of the last step: its experts in every layer, [layers, num_chosen], and -1 for the rest."""

    def read(self, buffer: int) -> _Floats:
        """A buffer's rows of the last step."""

class Updates:
    """Weights, their gradients and moments, which must outlive it; what an update keeps of each weight, and its rate.

    ``squares`` may be empty. Raises ValueError for lists or arrays that do not fit each other.
    """

    def __init__(
        self,
        weights: list[_Floats],
        gradients: list[_Floats],
        momenta: list[_Floats],
        squares: list[_Floats],
        keeps: list[float],
        rates: list[float],
    ) -> None: ...

class Training:
    """Layers of training with a team of threads: see native/train/training.h. Arrays are contiguous.

    Products' factors are rounded to bfloat16 if so told. Raises ValueError for shapes that do not fit each other. Names
    of what is written to come last.
    """

    def __init__(self, isa: str, num_threads: int, bfloat16: bool = False) -> None: ...
    def linears(self, x: _Floats, weights: list[_Floats], ys: list[_Floats]) -> None:
        """Each y [T, out] = ``x`` [T, in] times its weight [out, in], transposed."""

    def linears_backward(
        self,
        x: _Floats,
        weights: list[_Floats],
        d_ys: list[_Floats],
        d_x: _Floats | None,
        d_weights: list[_Floats | None],
    ) -> None: ...
    def kept_width(self, dim: int) -> int:
        """How many floats' room a row of ``dim`` numbers takes that is kept for the backward pass."""

    def mixture(
        self,
        x: _Floats,
        shares: _Floats,
        choices: _Choices,
        gate: _Floats,
        up: _Floats,
        down: _Floats,
        gate_up: _Floats,
        y: _Floats,
    ) -> None:
        """``x`` and ``y`` [T, hidden]; ``shares``, ``choices`` [T, k]; ``gate``, ``up`` [E, dim, hidden], ``down``
        [E, hidden, dim]. What ``gate_up`` [T * k, 2 * kept_width(dim)] gets is for the backward pass.
        """

    def mixture_backward(
        self,
        x: _Floats,
        shares: _Floats,
        choices: _Choices,
        gate: _Floats,
        up: _Floats,
        down: _Floats,
        gate_up: _Floats,
        d_y: _Floats,
        d_x: _Floats,
        d_shares: _Floats,
        d_gate: _Floats,
        d_up: _Floats,
        d_down: _Floats,
    ) -> None: ...
    def attention(
        self,
        q: _Floats,
        k: _Floats,
        v: _Floats,
        turning: _Floats | None,
        angles: _Floats | None,
        neighbours: bool,
        begins: _Choices,
        scale: float,
        out: _Floats,
        log_sums: _Floats,
    ) -> None:
        """Causal: ``q``, ``k``, ``v`` and ``out`` [T, heads, dim], sequences end to end; ``begins`` [sequences + 1] are
        their first rows and the last one's end; ``log_sums`` [T * heads] are for the backward pass.

        With ``turning`` [T, turned], which all heads' keys end with, ``k`` is [T, heads, dim - turned], and the last
        part of queries and keys is turned by ``angles`` [2, T, turned / 2], cosines and sines.
        """

    def attention_backward(
        self,
        q: _Floats,
        k: _Floats,
        v: _Floats,
        turning: _Floats | None,
        angles: _Floats | None,
        neighbours: bool,
        begins: _Choices,
        scale: float,
        out: _Floats,
        log_sums: _Floats,
        d_out: _Floats,
        d_q: _Floats,
        d_k: _Floats,
        d_v: _Floats,
        d_turning: _Floats | None,
    ) -> None: ...
    def cross_entropy(
        self, x: _Floats, head: _Floats, targets: _Choices, weights: _Floats, d_x: _Floats, d_head: _Floats
    ) -> float:
        """The sum of the losses of ``targets`` [T] times their ``weights``, in nats, and its gradients; ``x``
        [T, hidden], ``head`` [vocab, hidden].
        """

    def rms_norm(self, x: _Floats, weight: _Floats, eps: float, y: _Floats) -> None: ...
    def rms_norm_backward(
        self, x: _Floats, weight: _Floats, eps: float, d_y: _Floats, d_x: _Floats, d_weight: _Floats
    ) -> None: ...
    def orthogonalise(self, stacks: list[_Floats], a: float, b: float, c: float, eps: float, turns: int) -> None:
        """Newton-Schulz on every matrix of ``stacks`` [count, rows, columns], in place: x / (norm + eps), then so many
        turns of (a + b x x^T + c (x x^T)^2) x.
        """

    def adamw(self, updates: Updates, beta1: float, beta2: float, bias2: float, eps: float, shrink: float) -> None: ...
    def nesterov(self, updates: Updates, beta: float, shrink: float) -> None:
        """Muon's momentum: the gradients become what it makes of them."""

    def apply_update(self, updates: Updates) -> None:
        """The weights, by what the gradients have become."""
