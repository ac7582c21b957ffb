"""Runs the decoder on symbols: the forward pass as a graph, and the graph fused into phases.

Because the graph is seen whole, norms are made while a linear's input is made ready, linears that share an input share
a phase, gate and up share a panel's pass, a residual is added where a product is written, and head norms and rotary
embedding happen as keys go to the cache: five phases a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from freedive.model import spec
from freedive.model.decoder import forward
from freedive.model.params import params


@dataclass(eq=False)
class Node:
    """One recorded operation and its result: ``args`` are the nodes it reads, ``attrs`` everything else."""

    op: str
    args: tuple[Node, ...]
    attrs: dict[str, Any]
    width: int
    wanted: bool
    uses: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        for arg in self.args:
            arg.uses.append(self)


class Recorder:
    """Ops over symbols. Weights are canonical names; ``nodes`` is the graph in order."""

    def __init__(self, model: spec.Model) -> None:
        self._shapes = {name: param.shape for name, param in params(model).items()}
        self.nodes: list[Node] = []

    def _node(self, op: str, *args: Node, width: int = 0, wanted: bool = False, **attrs: Any) -> Node:
        first = args[0] if args else None
        node = Node(op, args, attrs, width or first.width, wanted or bool(first and first.wanted))  # type: ignore[union-attr]
        self.nodes.append(node)
        return node

    def embed(self, table: str) -> Node:
        return self._node("embed", width=self._shapes[table][1], table=table)

    def select(self, x: Node) -> Node:
        return self._node("select", x, wanted=True)

    def rms_norm(self, x: Node, weight: str, eps: float) -> Node:
        return self._node("rms_norm", x, weight=weight, eps=eps)

    def head_norm(self, x: Node, weight: str, eps: float) -> Node:
        return self._node("head_norm", x, weight=weight, eps=eps)

    def rope(self, x: Node, rope: spec.Rope, head_dim: int) -> Node:
        return self._node("rope", x, rope=rope)

    def linear(self, x: Node, weight: str, bias: str | None) -> Node:
        return self._node("linear", x, width=self._shapes[weight][0], weight=weight, bias=bias)

    def glu(self, gate: Node, up: Node, activation: spec.Activation) -> Node:
        return self._node("glu", gate, up, activation=activation)

    def attention(self, q: Node, k: Node, v: Node, attn: spec.Attention, layer: int) -> Node:
        return self._node("attention", q, k, v, attn=attn)

    def add(self, x: Node, y: Node) -> Node:
        return self._node("add", x, y)


def record(model: spec.Model) -> list[Node]:
    """The model's forward pass as a graph; the last node is the logits."""
    recorder = Recorder(model)
    forward(model, {name: name for name in params(model)}, recorder)
    return recorder.nodes


@dataclass(frozen=True)
class Phase:
    """What the kernels do as one: ``writes`` from ``reads``, by ``attrs`` (nodes and weight names)."""

    op: str
    reads: tuple[Node, ...]
    writes: tuple[Node, ...]
    attrs: dict[str, Any]


def fuse(nodes: list[Node]) -> list[Phase]:
    """The graph as phases in order. Norms, rope, glu and additions become parts of their neighbours."""
    phases = []
    for node in nodes:
        if node.op in ("embed", "select"):
            phases.append(Phase(node.op, node.args, (node,), node.attrs))
        elif node.op == "attention":
            phases.append(_fuse_attention(node))
        elif node.op == "linear":
            siblings = tuple(use for use in node.args[0].uses if use.op == "linear")
            if node is siblings[0]:
                phases.append(_fuse_linears(siblings))
    written = {node for phase in phases for node in phase.writes}
    assert all(node in written for phase in phases for node in phase.reads), "a node was left out of every phase"
    return phases


def _fuse_linears(siblings: tuple[Node, ...]) -> Phase:
    x = siblings[0].args[0]
    norm = x if x.op == "rms_norm" else None
    x = x.args[0] if norm else x
    attrs = {"norm": norm, "linears": siblings, "residual": None}
    reader = siblings[0].uses[0] if siblings[0].uses else None
    if reader and reader.op == "glu":
        return Phase("glu", (x,), (reader,), attrs | {"linears": reader.args, **reader.attrs})
    if reader and reader.op == "add":
        residual = next(arg for arg in reader.args if arg is not siblings[0])
        return Phase("linear", (x, residual), (reader,), attrs | {"residual": residual})
    return Phase("linear", (x,), siblings, attrs)


def _fuse_attention(node: Node) -> Phase:
    (q, q_steps), (k, k_steps) = (_head_steps(arg) for arg in node.args[:2])
    return Phase("attention", (q, k, node.args[2]), (node,), node.attrs | {"q_steps": q_steps, "k_steps": k_steps})


def _head_steps(node: Node) -> tuple[Node, list[Node]]:
    """The linear that q or k comes from, and what is done to its heads before attention."""
    steps: list[Node] = []
    while node.op in ("rope", "head_norm"):
        steps.insert(0, node)
        node = node.args[0]
    return node, steps
