"""Records the forward pass of a decoder as a graph of operations, without computing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from freedive.model import spec
from freedive.model.decoder import draft, embedding, feed_forward, head, states
from freedive.model.params import params
from freedive.ops.operations import (
    Add,
    Attention,
    Clip,
    Columns,
    DeltaRule,
    Embed,
    Experts,
    Gate,
    GatedNorm,
    Glu,
    HeadNorm,
    LatentAttention,
    Linear,
    Recorded,
    RmsNorm,
    Rope,
    Scale,
    ScaleBy,
    ScaleByPosition,
    Select,
    ShortConv,
    SiluConv,
    Softcap,
)


@dataclass(eq=False)
class Node:
    """One recorded operation and its result [rows, width].

    ``args`` are the nodes that it reads, and ``uses`` are the nodes that read it. ``wanted`` is true if the rows are
    only the output rows of the step. ``order`` is its index in the graph.
    """

    operation: Recorded
    args: tuple[Node, ...]
    width: int
    wanted: bool
    order: int
    uses: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        for arg in self.args:
            arg.uses.append(self)


class Recorder:
    """An implementation of Ops that records nodes. Weights are canonical names; ``nodes`` is the graph in order."""

    def __init__(self, model: spec.ModelSpec) -> None:
        self._shapes = {name: param.shape for name, param in params(model).items()}
        self.nodes: list[Node] = []

    def _node(self, operation: Recorded, *args: Node, width: int = 0, wanted: bool = False) -> Node:
        width, wanted = width or args[0].width, wanted or any(arg.wanted for arg in args)
        node = Node(operation, args, width, wanted, len(self.nodes))
        self.nodes.append(node)
        return node

    def embed(self, table: str) -> Node:
        return self._node(Embed(table), width=self._shapes[table][1])

    def select(self, x: Node) -> Node:
        return self._node(Select(), x, wanted=True)

    def rms_norm(self, x: Node, weight: str, eps: float) -> Node:
        return self._node(RmsNorm(weight, eps), x)

    def head_norm(self, x: Node, weight: str | None, head_dim: int, eps: float) -> Node:
        return self._node(HeadNorm(weight, head_dim, eps), x)

    def rope(self, x: Node, rope: spec.Rope, head_dim: int) -> Node:
        return self._node(Rope(rope), x)

    def scale_by_position(self, q: Node, temperature: spec.AttentionTemperature) -> Node:
        return self._node(ScaleByPosition(temperature), q)

    def linear(self, x: Node, weight: str, bias: str | None) -> Node:
        return self._node(Linear(weight, bias), x, width=self._shapes[weight][0])

    def linears(self, x: Node, layers: Sequence[tuple[str, str | None]]) -> Sequence[Node]:
        return [self.linear(x, weight, bias) for weight, bias in layers]

    router_logits = linear

    def glu(self, gate: Node, up: Node, ffn: spec.FeedForward) -> Node:
        return self._node(Glu(ffn), gate, up)

    def feed_forward(self, x: Node, ffn: spec.FeedForward, weights: Mapping[str, str]) -> Node:
        return feed_forward(ffn, weights, x, self)

    def attention(
        self, q: Node, k: Node | None, v: Node | None, sinks: str | None, attn: spec.Attention, layer: int
    ) -> Node:
        given = (x for x in (q, k, v) if x is not None)
        return self._node(Attention(attn, sinks, layer), *given, width=attn.out_dim)

    def latent_attention(
        self, q: Node, kv: Node, norm: str, k_b: str, v_b: str, attn: spec.LatentAttention, layer: int
    ) -> Node:
        return self._node(LatentAttention(attn, norm, k_b, v_b), q, kv, width=attn.num_heads * attn.value_dim)

    def short_conv(self, x: Node, taps: str, bias: str | None, conv: spec.ShortConv, layer: int) -> Node:
        return self._node(ShortConv(conv, taps, bias), x, width=conv.dim)

    def silu_conv(self, x: Node, taps: str, kernel: int, layer: int, part: int) -> Node:
        return self._node(SiluConv(kernel, taps), x)

    def delta_rule(
        self,
        q: Node,
        k: Node,
        v: Node,
        beta: Node,
        decay: Node,
        rate: str,
        dt_bias: str,
        delta: spec.DeltaRule,
        layer: int,
    ) -> Node:
        return self._node(DeltaRule(delta, rate, dt_bias), q, k, v, beta, decay, width=delta.v_dim)

    def gated_norm(self, x: Node, gate: Node, weight: str, delta: spec.DeltaRule, eps: float) -> Node:
        return self._node(GatedNorm(delta, weight, eps), x, gate)

    def experts(
        self,
        x: Node,
        logits: Node,
        moe: spec.Experts,
        weights: Mapping[str, str],
        choice_bias: str | None,
        expert_scale: str | None,
    ) -> Node:
        name = weights["0.gate"].removesuffix(".0.gate")
        return self._node(Experts(moe, name, choice_bias, expert_scale), x, logits)

    def gate(self, x: Node, gate: Node, activation: spec.GateActivation = "sigmoid") -> Node:
        return self._node(Gate(activation), x, gate)

    def scale(self, x: Node, factor: float) -> Node:
        return self._node(Scale(factor), x)

    def scale_by(self, x: Node, factor: str) -> Node:
        return self._node(ScaleBy(factor), x)

    def columns(self, x: Node, first: int, width: int) -> Node:
        return self._node(Columns(first), x, width=width)

    def softcap(self, x: Node, cap: float) -> Node:
        return self._node(Softcap(cap), x)

    def clip(self, x: Node, limit: float) -> Node:
        return self._node(Clip(limit), x)

    def add(self, x: Node, y: Node) -> Node:
        return self._node(Add(), x, y)


def record(model: spec.ModelSpec) -> list[Node]:
    """Returns the graph of the forward pass, then of the MTP layer if there is one, then of the embeddings.

    The last node of each of them (logits, MTP logits, normed hidden states) is read by no other node.
    """
    recorder, names = Recorder(model), {name: name for name in params(model)}
    x = states(model, names, recorder)
    head(model, names, x, recorder)
    if model.mtp:
        draft(model, model.mtp, names, x, recorder)
    embedding(model, names, x, recorder)
    return recorder.nodes
