"""Fuses the graph of a forward pass into phases.

Norms are computed while the input of a linear is prepared. Linears with the same input share a phase. Gate and up
share one pass over the input. A residual is added where a product or a norm is written. Head norms and rotary
embeddings are computed when keys and values are written to the cache. So a dense layer has five phases. The routing and
the shared expert of a mixture are part of the phase of its experts. An operation that matches no pattern is a phase of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from freedive.model import spec
from freedive.ops.operations import (
    Add,
    Attention,
    Columns,
    Experts,
    Fused,
    FusedAttention,
    FusedExperts,
    FusedGlu,
    FusedLinear,
    FusedNorm,
    Gate,
    Glu,
    HeadNorm,
    HeadStep,
    LatentAttention,
    Linear,
    Recorded,
    RmsNorm,
    Rope,
    RowGlu,
    Scale,
    ScaleBy,
    ScaleByPosition,
    SharedExpert,
)
from freedive.ops.record import Node


@dataclass(frozen=True)
class Phase:
    """One operation of the kernels, which computes ``writes`` from ``inputs`` and adds ``residuals``."""

    operation: Recorded | Fused
    inputs: tuple[Node, ...]
    writes: tuple[Node, ...]
    residuals: tuple[Node, ...] = ()

    @property
    def reads(self) -> tuple[Node, ...]:
        """All nodes that must be computed before."""
        return self.inputs + self.residuals


def fuse(nodes: list[Node]) -> list[Phase]:
    """Returns the phases of the graph in order; each node is part of one phase."""
    phases: list[Phase] = []
    done: set[Node] = set()
    for node in nodes:
        if node in done or _is_prologue(node):
            continue
        phase, parts = _fused(node)
        phases.append(phase)
        done.update(parts)
    written = {node for phase in phases for node in phase.writes}
    assert all(node in written for phase in phases for node in phase.reads), "a node was left out of every phase"
    return phases


def until_result(phases: list[Phase]) -> list[Phase]:
    """Returns the phases of a step: those up to the first result, which no phase reads.

    The phases for drafting and for embeddings follow them.
    """
    read = {node for phase in phases for node in phase.reads}
    return phases[: next(i for i, phase in enumerate(phases) if phase.writes[0] not in read) + 1]


def ropes(phase: Phase) -> list[spec.Rope]:
    """Returns the rotary embeddings whose tables a phase reads."""
    match phase.operation:
        case LatentAttention(attn):
            return [latent_rope(attn)]
        case FusedAttention(_, q_steps):
            return [step.rope for step in q_steps if isinstance(step, Rope)]
        case _:
            return []


def latent_rope(attn: spec.LatentAttention) -> spec.Rope:
    """Returns the rotary embedding of latent attention; if nothing is rotated, its angles are 0."""
    return attn.rope or spec.Rope(attn.rope_dim, (0.0,) * (attn.rope_dim // 2))


Covering = tuple[Phase, tuple[Node, ...]]
"""A phase and the nodes that it computes."""


def _is_prologue(node: Node) -> bool:
    """Returns whether every reader of ``node`` computes it while it prepares its own input."""
    match node.operation:
        case RmsNorm():
            return bool(node.uses) and all(_norms_input(node, use) for use in node.uses)
        case HeadNorm() | Rope() | ScaleByPosition():
            return all(_is_head_input(node, use) for use in node.uses)
        case Columns():
            return all(isinstance(use.operation, Glu) and use.args[1] is node for use in node.uses)
        case _:
            return False


def _norms_input(norm: Node, use: Node) -> bool:
    match use.operation:
        case Linear():
            return True
        case Experts():
            return norm is use.args[0]
        case _:
            return False


def _is_head_input(node: Node, use: Node) -> bool:
    match use.operation:
        case HeadNorm() | Rope() | ScaleByPosition():
            return True
        case Attention():
            return True
        case _:
            return False


def _fused(node: Node) -> Covering:
    match node.operation:
        case Linear():
            return _fuse_linear(node, node.operation)
        case Experts():
            return _fuse_experts(node, node.operation)
        case Attention():
            return _fuse_attention(node, node.operation)
        case RmsNorm() | HeadNorm():
            return _fuse_norm(node, node.operation)
        case Glu():
            return _fuse_row_glu(node, node.operation)
        case _:
            return Phase(node.operation, node.args, (node,)), (node,)


def _fuse_linear(node: Node, linear: Linear) -> Covering:
    x, norm = _normed(node.args[0])
    if glu := _glu_of(node):
        return _fuse_glu(x, norm, *glu)
    siblings = {use: use.operation for use in node.args[0].uses if isinstance(use.operation, Linear)}
    siblings = {use: each for use, each in siblings.items() if not _glu_of(use)}
    if len(siblings) > 1:
        return Phase(FusedLinear(tuple(siblings.values()), norm), (x,), tuple(siblings)), tuple(siblings)
    tail = _tail(node, node)
    return Phase(FusedLinear((linear,), norm, tail.factor), (x,), tail.nodes[-1:], tail.residuals), tail.nodes


def _fuse_glu(x: Node, norm: RmsNorm | None, node: Node, glu: Glu) -> Covering:
    gate, up = (_linear(arg) for arg in node.args)
    return Phase(FusedGlu(gate, up, norm, glu.ffn), (x,), (node,)), (*node.args, node)


def _fuse_experts(node: Node, experts: Experts) -> Covering:
    x, norm = _normed(node.args[0])
    total, covered, gates, shared = _shared_expert(node)
    tail = _tail(total, node)
    operation = FusedExperts(experts, norm, shared, tail.factor)
    phase = Phase(operation, (x, node.args[1], *gates), tail.nodes[-1:], tail.residuals)
    return phase, (*covered, *tail.nodes)


def _shared_expert(experts: Node) -> tuple[Node, tuple[Node, ...], tuple[Node, ...], SharedExpert | None]:
    """Returns the sum of routed and shared experts, the nodes fused into it, the gate logits, and the shared expert.

    Without a shared expert, returns ``experts``, no nodes, no logits, and None.
    """
    nothing = experts, (), (), None
    if [type(use.operation) for use in experts.uses] != [Add]:
        return nothing
    (total,) = experts.uses
    branch = _other(total, experts)
    down, gates = (branch.args[0], branch.args[1:]) if isinstance(branch.operation, Gate) else (branch, ())
    if not isinstance(down.operation, Linear):
        return nothing
    (glu,) = down.args
    if not isinstance(glu.operation, Glu) or glu.args[0].args != experts.args[:1]:
        return nothing
    gate, up = (_linear(arg) for arg in glu.args)
    shared = SharedExpert(gate, up, down.operation, glu.operation.ffn, gated=bool(gates))
    return total, (experts, *glu.args, glu, down, branch), gates, shared


def _fuse_attention(node: Node, attention: Attention) -> Covering:
    parts = [_head_steps(arg) for arg in node.args]
    phase = Phase(FusedAttention(attention, *(steps for _, steps, _ in parts)), tuple(x for x, _, _ in parts), (node,))
    return phase, (node, *(each for _, _, nodes in parts for each in nodes))


def _fuse_norm(node: Node, norm: RmsNorm | HeadNorm) -> Covering:
    """Covers a norm that no reader computes, and what is done to its result."""
    tail = _tail(node, node)
    nodes, scale = tail.nodes, None
    match nodes[-1].uses:
        case [Node(operation=ScaleBy(factor)) as use]:
            nodes, scale = (*nodes, use), factor
    part = norm.head_dim if isinstance(norm, HeadNorm) else node.width
    return Phase(FusedNorm(norm, part, tail.factor, scale), node.args, nodes[-1:], tail.residuals), nodes


def _fuse_row_glu(node: Node, glu: Glu) -> Covering:
    gate, up = node.args
    columns = up.operation if isinstance(up.operation, Columns) else Columns(0)
    covered = (node, up) if up.operation is columns else (node,)
    return Phase(RowGlu(glu.ffn, columns.first), (gate, *covered[-1].args[-1:]), (node,)), covered


def _normed(x: Node) -> tuple[Node, RmsNorm | None]:
    """Returns the input ``x`` of a linear before its norm, and the norm if the linear computes it; else x and None."""
    return (x.args[0], x.operation) if isinstance(x.operation, RmsNorm) and _is_prologue(x) else (x, None)


def _glu_of(linear: Node) -> tuple[Node, Glu] | None:
    """Returns the Glu node that reads ``linear`` and its operation, or None if the reader is not a single Glu."""
    match linear.uses:
        case [Node(operation=Glu() as glu) as use] if all(isinstance(arg.operation, Linear) for arg in use.args):
            return use, glu
        case _:
            return None


def _linear(node: Node) -> Linear:
    assert isinstance(node.operation, Linear)
    return node.operation


@dataclass(frozen=True)
class _Tail:
    """The operations on a product before it is written: a factor and residuals.

    ``nodes`` are the nodes from the product to the result.
    """

    nodes: tuple[Node, ...]
    factor: float
    residuals: tuple[Node, ...]


def _tail(node: Node, first: Node) -> _Tail:
    """Returns the tail of the product ``node``: scales, then additions of nodes that are computed before ``first``."""
    nodes, factor = [node], 1.0
    residuals: list[Node] = []
    while len(nodes[-1].uses) == 1:
        (use,) = nodes[-1].uses
        match use.operation:
            case Scale() as scale if not residuals:
                factor *= scale.factor
            case Add() if (other := _other(use, nodes[-1])).order < first.order:
                residuals.append(other)
            case _:
                break
        nodes.append(use)
    return _Tail(tuple(nodes), factor, tuple(residuals))


def _other(add: Node, node: Node) -> Node:
    return add.args[1] if add.args[0] is node else add.args[0]


def _head_steps(node: Node) -> tuple[Node, tuple[HeadStep, ...], tuple[Node, ...]]:
    """Returns the node before the steps on the heads of q or k, these steps in order, and their nodes."""
    steps: list[HeadStep] = []
    nodes: list[Node] = []
    while isinstance(node.operation, HeadNorm | Rope | ScaleByPosition):
        steps.insert(0, node.operation)
        nodes.insert(0, node)
        node = node.args[0]
    return node, tuple(steps), tuple(nodes)
