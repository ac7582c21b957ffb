"""Runs the decoder on symbols: the forward pass as a graph, and the graph fused into phases.

Because the graph is seen whole, norms are made while a linear's input is made ready, linears that share an input share
a phase, gate and up share a panel's pass, a residual is added where a product is written, and head norms and rotary
embedding happen as keys go to the cache: five phases a dense layer. A mixture's routes and shared expert belong to its
experts. What fits no pattern is a phase of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freedive.model import spec
from freedive.model.decoder import draft, embedding, feed_forward, head, states
from freedive.model.params import params


@dataclass(eq=False)
class Node:
    """One recorded operation and its result: ``args`` are the nodes it reads, ``attrs`` everything else."""

    op: str
    args: tuple[Node, ...]
    attrs: dict[str, Any]
    width: int
    wanted: bool
    order: int
    uses: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        for arg in self.args:
            arg.uses.append(self)


class Recorder:
    """Ops over symbols. Weights are canonical names; ``nodes`` is the graph in order."""

    def __init__(self, model: spec.ModelSpec) -> None:
        self._shapes = {name: param.shape for name, param in params(model).items()}
        self.nodes: list[Node] = []

    def _node(self, op: str, *args: Node, width: int = 0, wanted: bool = False, **attrs: Any) -> Node:
        width, wanted = width or args[0].width, wanted or any(arg.wanted for arg in args)
        node = Node(op, args, attrs, width, wanted, len(self.nodes))
        self.nodes.append(node)
        return node

    def embed(self, table: str) -> Node:
        return self._node("embed", width=self._shapes[table][1], table=table)

    def select(self, x: Node) -> Node:
        return self._node("select", x, wanted=True)

    def rms_norm(self, x: Node, weight: str, eps: float) -> Node:
        return self._node("rms_norm", x, weight=weight, eps=eps)

    def head_norm(self, x: Node, weight: str | None, head_dim: int, eps: float) -> Node:
        return self._node("head_norm", x, weight=weight, head_dim=head_dim, eps=eps)

    def rope(self, x: Node, rope: spec.Rope, head_dim: int) -> Node:
        return self._node("rope", x, rope=rope)

    def scale_by_position(self, q: Node, temperature: spec.AttentionTemperature) -> Node:
        return self._node("temper", q, temperature=temperature)

    def linear(self, x: Node, weight: str, bias: str | None) -> Node:
        return self._node("linear", x, width=self._shapes[weight][0], weight=weight, bias=bias)

    def linears(self, x: Node, layers: Sequence[tuple[str, str | None]]) -> Sequence[Node]:
        return [self.linear(x, weight, bias) for weight, bias in layers]

    router_logits = linear

    def glu(self, gate: Node, up: Node, ffn: spec.FeedForward) -> Node:
        return self._node("glu", gate, up, ffn=ffn)

    def feed_forward(self, x: Node, ffn: spec.FeedForward, weights: Mapping[str, str]) -> Node:
        return feed_forward(ffn, weights, x, self)

    def attention(self, q: Node, k: Node, v: Node, sinks: str | None, attn: spec.Attention, layer: int) -> Node:
        return self._node("attention", q, k, v, sinks=sinks, attn=attn)

    def latent_attention(
        self, q: Node, kv: Node, norm: str, k_b: str, v_b: str, attn: spec.LatentAttention, layer: int
    ) -> Node:
        width = attn.num_heads * attn.value_dim
        return self._node("latent_attention", q, kv, width=width, norm=norm, k_b=k_b, v_b=v_b, attn=attn)

    def short_conv(self, x: Node, taps: str, bias: str | None, conv: spec.ShortConv, layer: int) -> Node:
        return self._node("short_conv", x, width=conv.dim, taps=taps, bias=bias, conv=conv)

    def route(self, logits: Node, router: spec.Router, choice_bias: str | None, expert_scale: str | None) -> Node:
        """[T, 2 * num_chosen]: experts, then weights."""
        width = 2 * router.num_chosen
        return self._node(
            "route", logits, width=width, router=router, choice_bias=choice_bias, expert_scale=expert_scale
        )

    def experts(self, x: Node, routes: Node, moe: spec.Experts, weights: Mapping[str, str]) -> Node:
        return self._node("experts", x, routes, moe=moe, weights=weights["0.gate"].removesuffix(".0.gate"))

    def gate(self, x: Node, gate: Node) -> Node:
        return self._node("gate", x, gate)

    def scale(self, x: Node, factor: float) -> Node:
        return self._node("scale", x, factor=factor)

    def softcap(self, x: Node, cap: float) -> Node:
        return self._node("softcap", x, cap=cap)

    def clip(self, x: Node, limit: float) -> Node:
        return self._node("clip", x, limit=limit)

    def add(self, x: Node, y: Node) -> Node:
        return self._node("add", x, y)


def record(model: spec.ModelSpec) -> list[Node]:
    """The forward pass as a graph, then what predicts a further token, then the states for those who want no token.

    Nobody uses what each ends with: logits, logits, states.
    """
    recorder, names = Recorder(model), {name: name for name in params(model)}
    x = states(model, names, recorder)
    head(model, names, x, recorder)
    if model.mtp:
        draft(model, model.mtp, names, x, recorder)
    embedding(model, names, x, recorder)
    return recorder.nodes


@dataclass(frozen=True)
class Phase:
    """What the kernels do as one: ``writes`` from ``reads``, by ``attrs`` (nodes and weight names)."""

    op: str
    reads: tuple[Node, ...]
    writes: tuple[Node, ...]
    attrs: dict[str, Any]


def fuse(nodes: list[Node]) -> list[Phase]:
    """The graph as phases in order, each node in one of them."""
    phases: list[Phase] = []
    done: set[Node] = set()
    for node in nodes:
        if node in done or _is_prologue(node):
            continue
        phase, parts = _FUSERS.get(node.op, _fuse_alone)(node)
        phases.append(phase)
        done.update(parts)
    written = {node for phase in phases for node in phase.writes}
    assert all(node in written for phase in phases for node in phase.reads), "a node was left out of every phase"
    return phases


def until_result(phases: list[Phase]) -> list[Phase]:
    """Those of a step: up to the first result, which no phase reads. Phases of drafting and embedding follow it."""
    read = {node for phase in phases for node in phase.reads}
    return phases[: next(i for i, phase in enumerate(phases) if phase.writes[0] not in read) + 1]


Fused = tuple[Phase, tuple[Node, ...]]
"""A phase and the nodes that it covers."""


def _is_prologue(node: Node) -> bool:
    """Whether every reader of the node takes it in as it makes its own input ready."""
    if node.op == "route":
        return True
    if node.op == "rms_norm" and node.uses:
        return all(use.op == "linear" or (use.op == "experts" and node is use.args[0]) for use in node.uses)
    return node.op in _HEAD_STEPS and all(_is_head_input(node, use) for use in node.uses)


_HEAD_STEPS = ("head_norm", "rope", "temper")


def _is_head_input(node: Node, use: Node) -> bool:
    return use.op in _HEAD_STEPS or (use.op == "attention" and node in use.args[:2])


def _fuse_alone(node: Node) -> Fused:
    return Phase(node.op, node.args, (node,), node.attrs), (node,)


def _fuse_linear(node: Node) -> Fused:
    x, norm = _normed(node.args[0])
    if _glu_of(node):
        (glu,) = node.uses
        phase = Phase("glu", (x,), (glu,), {"norm": norm, "linears": glu.args, **glu.attrs})
        return phase, (*glu.args, glu)
    siblings = tuple(use for use in node.args[0].uses if use.op == "linear" and not _glu_of(use))
    if len(siblings) > 1:
        attrs = {"norm": norm, "linears": siblings, "factor": 1.0, "residuals": ()}
        return Phase("linear", (x,), siblings, attrs), siblings
    last, parts, epilogue = _epilogue(node, node)
    attrs = {"norm": norm, "linears": siblings, **epilogue}
    return Phase("linear", (x, *epilogue["residuals"]), (last,), attrs), parts


def _fuse_experts(node: Node) -> Fused:
    """Reads the input, the router's logits, then the logit of the shared expert's gate where there is one."""
    x, norm = _normed(node.args[0])
    route = node.args[1]
    total, shared_parts, shared = _shared_expert(node)
    last, parts, epilogue = _epilogue(total, node)
    attrs = {**node.attrs, **route.attrs, "norm": norm, **shared, **epilogue}
    reads = (x, route.args[0], *shared["gates"], *epilogue["residuals"])
    return Phase("experts", reads, (last,), attrs), (*shared_parts, *parts)


def _shared_expert(experts: Node) -> tuple[Node, tuple[Node, ...], dict[str, Any]]:
    """The sum of the experts and the one that all tokens go to, if there is one; the nodes that make it of both.

    As attributes: its products gate, up and down, its ``glu``, and what gates it.
    """
    nothing = experts, (), {"linears": (), "gates": ()}
    if [use.op for use in experts.uses] != ["add"]:
        return nothing
    (total,) = experts.uses
    branch = _other(total, experts)
    down, gates = (branch.args[0], branch.args[1:]) if branch.op == "gate" else (branch, ())
    if down.op != "linear" or down.args[0].op != "glu" or down.args[0].args[0].args != experts.args[:1]:
        return nothing
    glu = down.args[0]
    attrs = {"linears": (*glu.args, down), "glu": glu.attrs["ffn"], "gates": gates}
    return total, (experts, *glu.args, glu, down, branch), attrs


def _fuse_attention(node: Node) -> Fused:
    (q, q_steps), (k, k_steps) = (_head_steps(arg) for arg in node.args[:2])
    attrs = {**node.attrs, "q_steps": q_steps, "k_steps": k_steps}
    return Phase("attention", (q, k, node.args[2]), (node,), attrs), (node, *q_steps, *k_steps)


_FUSERS = {"linear": _fuse_linear, "experts": _fuse_experts, "attention": _fuse_attention}


def _normed(x: Node) -> tuple[Node, Node | None]:
    """What a linear's input is before its norm, and the norm, if the linear does it itself."""
    return (x.args[0], x) if x.op == "rms_norm" and _is_prologue(x) else (x, None)


def _glu_of(linear: Node) -> bool:
    return [use.op for use in linear.uses] == ["glu"]


def _epilogue(node: Node, first: Node) -> tuple[Node, tuple[Node, ...], dict[str, Any]]:
    """What is done to a product before it is written: a factor, then additions of what is known before ``first``.

    Returns the last node of the chain, its nodes, and the chain as attributes.
    """
    parts, factor = [node], 1.0
    residuals: list[Node] = []
    while len(parts[-1].uses) == 1:
        (use,) = parts[-1].uses
        if use.op == "scale" and not residuals:
            factor *= use.attrs["factor"]
        elif use.op == "add" and (other := _other(use, parts[-1])).order < first.order:
            residuals.append(other)
        else:
            break
        parts.append(use)
    return parts[-1], tuple(parts), {"factor": factor, "residuals": tuple(residuals)}


def _other(add: Node, node: Node) -> Node:
    return add.args[1] if add.args[0] is node else add.args[0]


def _head_steps(node: Node) -> tuple[Node, list[Node]]:
    """The node that q or k comes from, and what is done to its heads before attention."""
    steps: list[Node] = []
    while node.op in _HEAD_STEPS:
        steps.insert(0, node)
        node = node.args[0]
    return node, steps
