"""The operations run by the kernels: recorded once per model, a whole step in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from freedive import machine
from freedive.checkpoint.packed import FORMATS, PackedTensor
from freedive.engine.batch import Batch
from freedive.errors import UserError
from freedive.model import spec
from freedive.native import _native
from freedive.ops.record import Node, Phase, fuse, record

NONE = -1
ELEMENT_BYTES = {"f16": 2, "f32": 4}
_ACTIVATIONS = {"silu": 0}
_HEAD_NORM, _ROPE_HALVES, _ROPE_INTERLEAVED = range(3)


class NativeRunner:
    """A model on the kernels: implements engine.batch.Runner.

    ``max_rows`` is the most tokens of a step, ``num_pages`` the size of the key-value cache, ``cache_format`` its
    element type (f16 or f32). ``isa`` forces an instruction-set level (default: FREEDIVE_ISA, else the machine's best).
    Raises UserError for a level that the machine lacks, a cache that does not fit, or heads too wide for the kernels.
    """

    def __init__(
        self,
        model: spec.Model,
        weights: Mapping[str, PackedTensor],
        *,
        num_threads: int,
        max_rows: int,
        num_pages: int,
        cache_format: str = "f16",
        isa: str | None = None,
    ) -> None:
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.num_pages = num_pages
        self.max_rows = max_rows
        if (widest := max(layer.attention.head_dim for layer in model.layers)) > _native.MAX_HEAD_DIM:
            raise UserError(
                f"The kernels run heads up to {_native.MAX_HEAD_DIM} wide, not {widest}", "Choose another model"
            )
        try:
            self._program = _native.Program(isa if isa is not None else os.environ.get("FREEDIVE_ISA", ""), num_threads)
        except ValueError as error:
            raise UserError(str(error), "Unset FREEDIVE_ISA, or choose one of these") from None
        self._result = _Emitter(self._program, weights, ELEMENT_BYTES[cache_format]).emit(fuse(record(model)))
        cache_bytes = num_pages * self._program.page_bytes
        if cache_bytes > machine.available_memory():  # asked here, since memory is only given out when it is used
            what = f"A key-value cache of {cache_bytes / 2**30:.1f} GiB does not fit"
            raise UserError(what, "Lower cache_tokens or max_context")
        self._program.allocate(max_rows, num_pages)

    @property
    def isa(self) -> str:
        """The instruction-set level in use."""
        return self._program.isa

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of the cache, all layers together."""
        return self._program.page_bytes

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """See engine.batch.Runner."""
        return self._program.step(batch.tokens, batch.lengths, batch.starts, batch.pages, batch.wanted, self._result)


class _Emitter:
    """Phases -> the program's operations, giving out buffers and taking them back when their last reader has run."""

    def __init__(self, program: _native.Program, weights: Mapping[str, PackedTensor], element_bytes: int) -> None:
        self._program = program
        self._weights = weights
        self._element_bytes = element_bytes
        self._handles: dict[str, int] = {}
        self._rope_tables: dict[spec.Rope, int] = {}
        self._buffers: dict[Node, int] = {}
        self._free: dict[tuple[int, bool], list[int]] = {}

    def emit(self, phases: list[Phase]) -> int:
        """Records all phases; returns the buffer of the last result."""
        last_read = {node: index for index, phase in enumerate(phases) for node in phase.reads}
        for phase in phases:
            for step in phase.attrs.get("q_steps", []):
                if step.op == "rope":
                    self._add_rope_table(step.attrs["rope"])
        for index, phase in enumerate(phases):
            dying = [node for node in dict.fromkeys(phase.reads) if last_read[node] == index]
            replaced = next(
                (node for node in phase.attrs.get("residuals", ()) if self._in_place(phase, node, dying)), None
            )
            if replaced:
                dying.remove(replaced)
                self._buffers[phase.writes[0]] = self._buffers[replaced]
            else:
                self._buffers |= {node: self._take(node) for node in phase.writes}
            getattr(self, f"_emit_{phase.op}")(phase)
            for node in dying:
                self._free.setdefault((node.width, node.wanted), []).append(self._buffers[node])
        return self._buffers[phases[-1].writes[0]]

    @staticmethod
    def _in_place(phase: Phase, residual: Node, dying: list[Node]) -> bool:
        """Whether a result may replace its residual: a linear's threads still read its input while others write."""
        return residual in dying and (phase.op == "experts" or residual is not phase.reads[0])

    def _take(self, node: Node) -> int:
        free = self._free.get((node.width, node.wanted))
        return free.pop() if free else self._program.buffer(node.width, node.wanted)

    def _emit_embed(self, phase: Phase) -> None:
        self._program.embed(self._weight(phase.attrs["table"]), self._buffers[phase.writes[0]])

    def _emit_select(self, phase: Phase) -> None:
        self._program.select(self._buffers[phase.reads[0]], self._buffers[phase.writes[0]])

    def _emit_linear(self, phase: Phase) -> None:
        outputs = [self._output(linear, out) for linear, out in zip(phase.attrs["linears"], phase.writes, strict=True)]
        residuals = [self._buffers[node] for node in phase.attrs["residuals"]]
        self._program.linear(
            self._buffers[phase.reads[0]], self._norm(phase), outputs, phase.attrs["factor"], residuals
        )

    def _emit_glu(self, phase: Phase) -> None:
        gate, up = (self._output(linear, phase.writes[0]) for linear in phase.attrs["linears"])
        ffn: spec.FeedForward = phase.attrs["ffn"]
        self._program.glu(
            self._buffers[phase.reads[0]], self._norm(phase), gate, up, _ACTIVATIONS[ffn.activation], ffn.limit
        )

    def _emit_attention(self, phase: Phase) -> None:
        attn: spec.Attention = phase.attrs["attn"]
        q, k, v = (self._buffers[node] for node in phase.reads)
        self._program.attention(
            q=q,
            k=k,
            v=v,
            out=self._buffers[phase.writes[0]],
            num_heads=attn.num_heads,
            num_kv_heads=attn.num_kv_heads,
            key_dim=attn.head_dim,
            value_dim=attn.head_dim,
            scale=attn.scale,
            window=attn.window,
            q_steps=[self._head_step(node) for node in phase.attrs["q_steps"]],
            k_steps=[self._head_step(node) for node in phase.attrs["k_steps"]],
            element_bytes=self._element_bytes,
        )

    def _head_step(self, node: Node) -> tuple[int, int, int, float]:
        if node.op == "head_norm":
            return _HEAD_NORM, self._vector(node.attrs["weight"]), 0, node.attrs["eps"]
        rope: spec.Rope = node.attrs["rope"]
        return _ROPE_INTERLEAVED if rope.interleaved else _ROPE_HALVES, self._rope_tables[rope], rope.dim, 0.0

    def _norm(self, phase: Phase) -> tuple[int, float]:
        norm = phase.attrs["norm"]
        return (NONE, 0.0) if norm is None else (self._vector(norm.attrs["weight"]), norm.attrs["eps"])

    def _output(self, linear: Node, out: Node) -> tuple[int, int, int]:
        bias = linear.attrs["bias"]
        return self._weight(linear.attrs["weight"]), NONE if bias is None else self._vector(bias), self._buffers[out]

    def _weight(self, name: str) -> int:
        if name not in self._handles:
            w = self._weights[name]
            rows, k = w.shape
            self._handles[name] = self._program.weight(FORMATS[w.format], rows, k, w.data)
        return self._handles[name]

    def _vector(self, name: str) -> int:
        if name not in self._handles:
            self._handles[name] = self._program.vector(self._weights[name].data.view(np.float32))
        return self._handles[name]

    def _add_rope_table(self, rope: spec.Rope) -> None:
        if rope not in self._rope_tables:
            self._rope_tables[rope] = self._program.buffer(rope.dim, False)
            frequencies = self._program.vector(np.array(rope.inv_freq, np.float32))
            self._program.rope_table(frequencies, rope.factor, self._rope_tables[rope])
