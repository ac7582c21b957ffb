"""Phases -> operations of the native program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from freedive.checkpoint.packed import FORMATS, Packed, PackedExperts, PackedTensor
from freedive.errors import UserError
from freedive.model import spec
from freedive.native import _native
from freedive.ops.record import Node, Phase

NONE = -1
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "swiglu_oai": 2}
_GROUP_CHOICES = {"max": 0, "top2": 1, "each": 2}
_HEAD_NORM, _ROPE_HALVES, _ROPE_INTERLEAVED, _TEMPER = range(4)
_NORM, _SCALE, _SOFTCAP, _CLIP, _GATE, _ADD = range(6)


Named = tuple[int, int]
"""A weight and its bias."""

Shared = tuple[Named, Named, Named, int, float]
"""Gate, up and down of a shared expert, its activation and limit."""


class Part(NamedTuple):
    """Operations of the program, ``begin`` to ``end``, and the buffer of their result."""

    begin: int
    end: int
    result: int


class Emitter:
    """Phases -> the program's operations, giving out buffers and taking them back when their last reader has run."""

    def __init__(self, program: _native.Program, weights: Mapping[str, Packed]) -> None:
        self._program = program
        self._weights = weights
        self._handles: dict[str, int] = {}
        self._rope_tables: dict[spec.Rope, int] = {}
        self._buffers: dict[Node, int] = {}
        self._free: dict[tuple[int, bool], list[int]] = {}
        self.routes: list[int] = []

    def emit(self, phases: list[Phase]) -> list[Part]:
        """Records all phases; returns the parts that end with a result, which no phase reads."""
        parts: list[Part] = []
        last_read = {node: index for index, phase in enumerate(phases) for node in phase.reads}
        for phase in phases:
            for rope in _ropes(phase):
                self._add_rope_table(rope)
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
            emit = getattr(self, f"_emit_{phase.op}", None)
            if emit is None:
                raise UserError(f"The kernels do not run {phase.op} where this model has it", "Choose another model")
            emit(phase)
            for node in dying:
                self._free.setdefault((node.width, node.wanted), []).append(self._buffers[node])
            if phase.writes[0] not in last_read:
                begin = parts[-1].end if parts else 0
                parts.append(Part(begin, self._program.num_operations, self._buffers[phase.writes[0]]))
        return parts

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
            softcap=attn.softcap,
            window=attn.window,
            chunk=attn.chunk,
            sinks=self._vector(phase.attrs["sinks"]),
            q_steps=[self._head_step(node) for node in phase.attrs["q_steps"]],
            k_steps=[self._head_step(node) for node in phase.attrs["k_steps"]],
        )

    def _emit_latent_attention(self, phase: Phase) -> None:
        attn: spec.LatentAttention = phase.attrs["attn"]
        q, kv = (self._buffers[node] for node in phase.reads)
        self._program.latent_attention(
            q=q,
            kv=kv,
            out=self._buffers[phase.writes[0]],
            norm=(self._vector(phase.attrs["norm"]), attn.latent_eps),
            k_b=self._weight(phase.attrs["k_b"]),
            v_b=self._weight(phase.attrs["v_b"]),
            num_heads=attn.num_heads,
            nope_dim=attn.nope_dim,
            rope_dim=attn.rope_dim,
            value_dim=attn.value_dim,
            rank=attn.kv_rank,
            scale=attn.scale,
            rope=self._rope_step(attn.rope),
        )

    def _emit_short_conv(self, phase: Phase) -> None:
        conv: spec.ShortConv = phase.attrs["conv"]
        self._program.short_conv(
            x=self._buffers[phase.reads[0]],
            out=self._buffers[phase.writes[0]],
            taps=self._vector(phase.attrs["taps"]),
            bias=self._vector(phase.attrs["bias"]),
            kernel=conv.kernel,
        )

    def _emit_experts(self, phase: Phase) -> None:
        moe: spec.Experts = phase.attrs["moe"]
        x, logits, *_ = (self._buffers[node] for node in phase.reads)
        packed = self._weights[phase.attrs["weights"]]
        assert isinstance(packed, PackedExperts)
        routes = self._program.experts(
            x=x,
            norm=self._norm(phase),
            logits=logits,
            router=self._router(phase),
            out=self._buffers[phase.writes[0]],
            packed=packed.data,
            stride=packed.stride,
            gate=_part(packed, "gate"),
            up=_part(packed, "up"),
            down=_part(packed, "down"),
            activation=_ACTIVATIONS[moe.expert.activation],
            limit=moe.expert.limit,
            shared=self._shared(phase),
            shared_gate=next((self._buffers[node] for node in phase.attrs["gates"]), NONE),
            factor=phase.attrs["factor"],
            residuals=[self._buffers[node] for node in phase.attrs["residuals"]],
        )
        self.routes.append(routes)

    def _router(self, phase: Phase) -> _native.Router:
        router: spec.Router = phase.attrs["router"]
        return _native.Router(
            num_experts=router.num_experts,
            num_chosen=router.num_chosen,
            sigmoid=router.score == "sigmoid",
            renormalise=router.renormalise,
            scale=router.scale,
            choice_bias=self._vector(phase.attrs["choice_bias"]),
            expert_scale=self._vector(phase.attrs["expert_scale"]),
            num_groups=router.num_groups,
            kept_groups=router.kept_groups,
            group_choice=_GROUP_CHOICES[router.group_choice],
            weighs_input=router.weighs_input,
        )

    def _shared(self, phase: Phase) -> Shared | None:
        if not phase.attrs["linears"]:
            return None
        gate, up, down = (
            (self._weight(linear.attrs["weight"]), self._vector(linear.attrs["bias"]))
            for linear in phase.attrs["linears"]
        )
        ffn: spec.FeedForward = phase.attrs["glu"]
        return gate, up, down, _ACTIVATIONS[ffn.activation], ffn.limit

    def _emit_rms_norm(self, phase: Phase) -> None:
        self._rows(_NORM, phase, self._vector(phase.attrs["weight"]), phase.attrs["eps"])

    def _emit_scale(self, phase: Phase) -> None:
        self._rows(_SCALE, phase, NONE, phase.attrs["factor"])

    def _emit_softcap(self, phase: Phase) -> None:
        self._rows(_SOFTCAP, phase, NONE, phase.attrs["cap"])

    def _emit_clip(self, phase: Phase) -> None:
        self._rows(_CLIP, phase, NONE, phase.attrs["limit"])

    def _emit_gate(self, phase: Phase) -> None:
        self._rows(_GATE, phase, self._buffers[phase.reads[1]], 0.0)

    def _emit_add(self, phase: Phase) -> None:
        self._rows(_ADD, phase, self._buffers[phase.reads[1]], 0.0)

    def _rows(self, kind: int, phase: Phase, other: int, value: float) -> None:
        self._program.row_operation(kind, self._buffers[phase.reads[0]], other, value, self._buffers[phase.writes[0]])

    def _head_step(self, node: Node) -> tuple[int, int, int, float, float]:
        match node.op:
            case "head_norm":
                return _HEAD_NORM, self._head_weights(node), 0, node.attrs["eps"], 0.0
            case "temper":
                temperature: spec.AttentionTemperature = node.attrs["temperature"]
                return _TEMPER, NONE, 0, temperature.floor_scale, temperature.scale
            case _:
                return self._rope_step(node.attrs["rope"])

    def _rope_step(self, rope: spec.Rope) -> tuple[int, int, int, float, float]:
        kind = _ROPE_INTERLEAVED if rope.interleaved else _ROPE_HALVES
        return kind, self._rope_tables[rope], rope.dim, 0.0, 0.0

    def _head_weights(self, norm: Node) -> int:
        if norm.attrs["weight"] is not None:
            return self._vector(norm.attrs["weight"])
        return self._program.vector(np.ones(norm.attrs["head_dim"], np.float32))

    def _norm(self, phase: Phase) -> tuple[int, float]:
        norm = phase.attrs["norm"]
        return (NONE, 0.0) if norm is None else (self._vector(norm.attrs["weight"]), norm.attrs["eps"])

    def _output(self, linear: Node, out: Node) -> tuple[int, int, int]:
        return self._weight(linear.attrs["weight"]), self._vector(linear.attrs["bias"]), self._buffers[out]

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

    def _matrix(self, name: str) -> PackedTensor:
        packed = self._weights[name]
        assert isinstance(packed, PackedTensor)
        return packed

    def _add_rope_table(self, rope: spec.Rope) -> None:
        if rope not in self._rope_tables:
            self._rope_tables[rope] = self._program.buffer(rope.dim, False)
            frequencies = self._program.vector(np.array(rope.inv_freq, np.float32))
            self._program.rope_table(frequencies, rope.factor, self._rope_tables[rope])


def _ropes(phase: Phase) -> Iterator[spec.Rope]:
    """The rotary tables that a phase reads."""
    if phase.op == "latent_attention":
        yield phase.attrs["attn"].rope
    yield from (step.attrs["rope"] for step in phase.attrs.get("q_steps", ()) if step.op == "rope")


def _part(packed: PackedExperts, name: str) -> tuple[int, int, int, int, int | None]:
    """Where one matrix of every expert lies: format, rows, width, offset, and the offset of its bias."""
    part, bias = packed.parts[name], packed.parts.get(f"{name}_bias")
    rows, k = part.shape
    return FORMATS[part.format], rows, k, part.offset, bias.offset if bias else None
