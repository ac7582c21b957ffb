"""Converts phases to operations of the native program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from freedive.checkpoint.packed import FORMATS, Packed, PackedExperts, PackedTensor
from freedive.errors import UserError
from freedive.model import spec
from freedive.native import _native
from freedive.ops.buffers import assign_buffers
from freedive.ops.expert_records import part_of_record, stored_records
from freedive.ops.fuse import Phase, latent_rope, ropes
from freedive.ops.operations import (
    Add,
    Clip,
    DeltaRule,
    Embed,
    Experts,
    FusedAttention,
    FusedExperts,
    FusedGlu,
    FusedLinear,
    FusedNorm,
    Gate,
    GatedNorm,
    HeadNorm,
    HeadStep,
    LatentAttention,
    Linear,
    RmsNorm,
    Rope,
    RowGlu,
    Scale,
    ScaleBy,
    ScaleByPosition,
    Select,
    SharedExpert,
    ShortConv,
    SiluConv,
    Softcap,
)
from freedive.ops.record import Node

NONE = -1
"""Handle that means no buffer, no weight or no vector."""

Named = tuple[int, int]
"""The handles of a weight and its bias."""

Shared = tuple[Named, Named, Named, _native.Activation, float]
"""A shared expert: gate, up, down, activation and limit."""

HeadOperation = tuple[_native.HeadStepKind, int, int, float, float]
"""A step on heads: its kind, its vector or rope table, the number of dimensions, and two parameters of the kind."""


class Part(NamedTuple):
    """A part of the program: its operations ``begin`` to ``end`` (excluded) and the buffer of its result."""

    begin: int
    end: int
    result: int


class Emitter:
    """Converts phases to operations of ``program``."""

    def __init__(self, program: _native.Program, weights: Mapping[str, Packed]) -> None:
        self._program = program
        self._weights = weights
        self._handles: dict[str, int] = {}
        self._rope_tables: dict[spec.Rope, int] = {}
        self._buffers: dict[Node, int] = {}
        self._cache_layers: dict[int, int] = {}
        self.routes: list[int] = []

    def emit(self, phases: list[Phase]) -> list[Part]:
        """Adds all phases to the program and returns its parts; a part ends with a result that no phase reads."""
        parts: list[Part] = []
        for phase in phases:
            for rope in ropes(phase):
                self._add_rope_table(rope)
        buffers, places = assign_buffers(phases)
        handles = [self._program.buffer(*buffer) for buffer in buffers]
        self._buffers = {node: handles[place] for node, place in places.items()}
        read = {node for phase in phases for node in phase.reads}
        for phase in phases:
            self._emit(phase)
            if phase.writes[0] not in read:
                begin = parts[-1].end if parts else 0
                parts.append(Part(begin, self._program.num_operations, self._buffers[phase.writes[0]]))
        return parts

    def _emit(self, phase: Phase) -> None:
        match phase.operation:
            case Embed(table):
                self._program.embed(self._weight(table), self._buffers[phase.writes[0]])
            case Select():
                self._program.select(self._buffers[phase.inputs[0]], self._buffers[phase.writes[0]])
            case FusedLinear() as linear:
                self._emit_linear(phase, linear)
            case FusedGlu() as glu:
                self._emit_glu(phase, glu)
            case FusedAttention() as attention:
                self._emit_attention(phase, attention)
            case LatentAttention() as attention:
                self._emit_latent_attention(phase, attention)
            case ShortConv() as conv:
                self._emit_conv(phase, conv.conv.kernel, conv.taps, conv.bias, gated=True)
            case SiluConv() as conv:
                self._emit_conv(phase, conv.kernel, conv.taps, None, gated=False)
            case DeltaRule() as rule:
                self._emit_delta_rule(phase, rule)
            case GatedNorm() as norm:
                self._emit_gated_norm(phase, norm)
            case FusedExperts() as experts:
                self._emit_experts(phase, experts)
            case FusedNorm() as norm:
                self._emit_norm(phase, norm)
            case RowGlu() as glu:
                self._emit_row_glu(phase, glu)
            case Scale(factor):
                self._emit_rows(phase, _native.RowKind.SCALE, NONE, factor)
            case ScaleBy(weight):
                self._emit_rows(phase, _native.RowKind.SCALE, NONE, self._number(weight))
            case Softcap(cap):
                self._emit_rows(phase, _native.RowKind.SOFTCAP, NONE, cap)
            case Clip(limit):
                self._emit_rows(phase, _native.RowKind.CLIP, NONE, limit)
            case ScaleByPosition(spec.AttentionTemperature(floor_scale, scale, offset)):
                parameters = np.array([offset, floor_scale, scale], np.float32)
                self._emit_rows(phase, _native.RowKind.SCALE_BY_POSITION, self._program.vector(parameters), 0.0)
            case Gate(activation):
                kind = _native.RowKind[f"{activation.upper()}_GATE"]
                self._emit_rows(phase, kind, self._buffers[phase.inputs[1]], 0.0)
            case Add():
                self._emit_rows(phase, _native.RowKind.ADD, self._buffers[phase.inputs[1]], 0.0)
            case other:
                what = f"The kernels do not run {type(other).__name__} where this model has it"
                raise UserError(what, "Choose another model")

    def _emit_linear(self, phase: Phase, operation: FusedLinear) -> None:
        self._program.linear(
            self._buffers[phase.inputs[0]],
            self._norm(operation.norm),
            [self._output(linear, out) for linear, out in zip(operation.linears, phase.writes, strict=True)],
            operation.factor,
            [self._buffers[node] for node in phase.residuals],
        )

    def _emit_glu(self, phase: Phase, operation: FusedGlu) -> None:
        gate, up = (self._output(linear, phase.writes[0]) for linear in (operation.gate, operation.up))
        activation, limit = _native.Activation[operation.ffn.activation], operation.ffn.limit
        self._program.glu(self._buffers[phase.inputs[0]], self._norm(operation.norm), gate, up, activation, limit)

    def _emit_attention(self, phase: Phase, operation: FusedAttention) -> None:
        attn = operation.attention.attn
        q, k, v = (*(self._buffers[node] for node in phase.inputs), NONE, NONE)[:3]
        source = NONE if attn.kv_layer < 0 else self._cache_layers[attn.kv_layer]
        self._cache_layers[operation.attention.layer] = self._program.attention(
            q=q,
            k=k,
            v=v,
            out=self._buffers[phase.writes[0]],
            source=source,
            num_heads=attn.num_heads,
            num_kv_heads=attn.num_kv_heads,
            key_dim=attn.head_dim,
            value_dim=attn.v_head_dim,
            scale=attn.scale,
            softcap=attn.softcap,
            window=attn.window,
            chunk=attn.chunk,
            sinks=self._vector(operation.attention.sinks),
            q_steps=[self._head_step(step) for step in operation.q_steps],
            k_steps=[self._head_step(step) for step in operation.k_steps],
            v_steps=[self._head_step(step) for step in operation.v_steps],
        )

    def _emit_latent_attention(self, phase: Phase, operation: LatentAttention) -> None:
        attn = operation.attn
        q, kv = (self._buffers[node] for node in phase.inputs)
        self._program.latent_attention(
            q=q,
            kv=kv,
            out=self._buffers[phase.writes[0]],
            norm=(self._vector(operation.norm), attn.latent_eps),
            k_b=self._weight(operation.k_b),
            v_b=self._weight(operation.v_b),
            num_heads=attn.num_heads,
            nope_dim=attn.nope_dim,
            rope_dim=attn.rope_dim,
            value_dim=attn.value_dim,
            rank=attn.kv_rank,
            scale=attn.scale,
            rope=self._rope_step(latent_rope(attn)),
        )

    def _emit_conv(self, phase: Phase, kernel: int, taps: str, bias: str | None, *, gated: bool) -> None:
        self._program.short_conv(
            x=self._buffers[phase.inputs[0]],
            out=self._buffers[phase.writes[0]],
            taps=self._vector(taps),
            bias=self._vector(bias),
            kernel=kernel,
            gated=gated,
        )

    def _emit_delta_rule(self, phase: Phase, operation: DeltaRule) -> None:
        delta = operation.delta
        q, k, v, beta, decay = (self._buffers[node] for node in phase.inputs)
        rates = self._matrix(operation.rate).data.view(np.float32)[: delta.num_value_heads]
        self._program.delta_rule(
            q=q,
            k=k,
            v=v,
            beta=beta,
            decay=decay,
            out=self._buffers[phase.writes[0]],
            num_key_heads=delta.num_key_heads,
            num_value_heads=delta.num_value_heads,
            key_dim=delta.key_dim,
            value_dim=delta.value_dim,
            by_channel=delta.decay == "channel",
            tiled=delta.tiled,
            rate=self._program.vector(np.repeat(rates, delta.decay_dim // delta.num_value_heads)),
            bias=self._vector(operation.dt_bias),
            decay_bound=delta.decay_bound,
        )

    def _emit_gated_norm(self, phase: Phase, operation: GatedNorm) -> None:
        x, gate = (self._buffers[node] for node in phase.inputs)
        self._program.gated_norm(
            x=x,
            gate=gate,
            out=self._buffers[phase.writes[0]],
            weight=self._vector(operation.weight),
            head_dim=operation.delta.value_dim,
            eps=operation.eps,
            activation=_native.Activation[operation.delta.gate_activation],
        )

    def _emit_experts(self, phase: Phase, operation: FusedExperts) -> None:
        expert = operation.experts.moe.expert
        x, logits, *gates = (self._buffers[node] for node in phase.inputs)
        packed = self._weights[operation.experts.weights]
        assert isinstance(packed, PackedExperts)
        routes = self._program.experts(
            x=x,
            norm=self._norm(operation.norm),
            logits=logits,
            router=self._router(operation.experts),
            out=self._buffers[phase.writes[0]],
            packed=packed.data,
            count=packed.count,
            stride=packed.stride,
            stored=stored_records(packed),
            gate=part_of_record(packed, "gate"),
            up=part_of_record(packed, "up"),
            down=part_of_record(packed, "down"),
            activation=_native.Activation[expert.activation],
            limit=expert.limit,
            shared=self._shared(operation.shared),
            shared_gate=gates[0] if gates else NONE,
            factor=operation.factor,
            residuals=[self._buffers[node] for node in phase.residuals],
        )
        self.routes.append(routes)

    def _router(self, experts: Experts) -> _native.Router:
        router = experts.moe.router
        return _native.Router(
            num_experts=router.num_experts,
            num_chosen=router.num_chosen,
            score=_native.RouterScore[router.score],
            renormalise=router.renormalise,
            scale=router.scale,
            choice_bias=self._vector(experts.choice_bias),
            expert_scale=self._vector(experts.expert_scale),
            num_groups=router.num_groups,
            kept_groups=router.kept_groups,
            group_choice=_native.GroupChoice[router.group_choice],
            weighs_input=router.weighs_input,
        )

    def _shared(self, expert: SharedExpert | None) -> Shared | None:
        if expert is None:
            return None
        gate, up, down = (
            (self._weight(linear.weight), self._vector(linear.bias)) for linear in (expert.gate, expert.up, expert.down)
        )
        return gate, up, down, _native.Activation[expert.ffn.activation], expert.ffn.limit

    def _emit_norm(self, phase: Phase, operation: FusedNorm) -> None:
        norm = operation.norm
        weights = self._head_weights(norm) if isinstance(norm, HeadNorm) else self._vector(norm.weight)
        self._program.row_norm(
            x=self._buffers[phase.inputs[0]],
            out=self._buffers[phase.writes[0]],
            norm=(weights, norm.eps),
            part=operation.part,
            factor=operation.factor,
            residuals=[self._buffers[node] for node in phase.residuals],
            after=1.0 if operation.scale is None else self._number(operation.scale),
        )

    def _emit_row_glu(self, phase: Phase, operation: RowGlu) -> None:
        gate, up = (self._buffers[node] for node in phase.inputs)
        self._program.row_glu(
            gate=gate,
            up=up,
            first=operation.first,
            out=self._buffers[phase.writes[0]],
            activation=_native.Activation[operation.ffn.activation],
            limit=operation.ffn.limit,
        )

    def _emit_rows(self, phase: Phase, kind: _native.RowKind, other: int, value: float) -> None:
        self._program.row_operation(kind, self._buffers[phase.inputs[0]], other, value, self._buffers[phase.writes[0]])

    def _head_step(self, step: HeadStep) -> HeadOperation:
        match step:
            case HeadNorm(_, _, eps):
                return _native.HeadStepKind.NORM, self._head_weights(step), 0, eps, 0.0
            case ScaleByPosition(spec.AttentionTemperature(floor_scale, scale, offset)):
                return _native.HeadStepKind.SCALE_BY_POSITION, NONE, offset, floor_scale, scale
            case Rope(rope):
                return self._rope_step(rope)

    def _rope_step(self, rope: spec.Rope) -> HeadOperation:
        kinds = _native.HeadStepKind
        kind = kinds.ROPE_INTERLEAVED if rope.interleaved else kinds.ROPE_HALVES
        return kind, self._rope_tables[rope], rope.dim, 0.0, 0.0

    def _head_weights(self, norm: HeadNorm) -> int:
        if norm.weight is not None:
            return self._vector(norm.weight)
        return self._program.vector(np.ones(norm.head_dim, np.float32))

    def _norm(self, norm: RmsNorm | None) -> tuple[int, float]:
        return (NONE, 0.0) if norm is None else (self._vector(norm.weight), norm.eps)

    def _output(self, linear: Linear, out: Node) -> tuple[int, int, int]:
        return self._weight(linear.weight), self._vector(linear.bias), self._buffers[out]

    def _weight(self, name: str) -> int:
        if name not in self._handles:
            w = self._matrix(name)
            *heads, rows, k = w.shape
            count = heads[0] if heads else 1
            self._handles[name] = self._program.weight(FORMATS[w.format], count * rows, k, w.data, count)
        return self._handles[name]

    def _vector(self, name: str | None) -> int:
        if name is None:
            return NONE
        if name not in self._handles:
            self._handles[name] = self._program.vector(self._matrix(name).data.view(np.float32))
        return self._handles[name]

    def _number(self, name: str) -> float:
        """Returns a learned number, which the program has as a constant."""
        return float(self._matrix(name).data.view(np.float32)[0])

    def _matrix(self, name: str) -> PackedTensor:
        packed = self._weights[name]
        assert isinstance(packed, PackedTensor)
        return packed

    def _add_rope_table(self, rope: spec.Rope) -> None:
        if rope not in self._rope_tables:
            self._rope_tables[rope] = self._program.buffer(rope.dim, False)
            frequencies = self._program.vector(np.array(rope.inv_freq, np.float32))
            self._program.rope_table(frequencies, rope.factor, self._rope_tables[rope])
