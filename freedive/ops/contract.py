"""The operations that a forward pass is written in.

Two sets implement them: ``reference`` (numpy, obviously right) and ``native`` (recorded once, run fast). A value is
whatever a set computes with: an array, or a symbol while recording. Shapes below are [T, dim]: T tokens of all requests
in a step, laid end to end; which request and position a row belongs to is the set's own knowledge.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from freedive.model.spec import Activation, Attention, Rope

V = TypeVar("V")
W = TypeVar("W", contravariant=True)


class Ops(Protocol[V, W]):
    """``V`` is the type of activations, ``W`` the type of weights: linear [out, in], norm and bias [dim]."""

    def embed(self, table: W) -> V:
        """Rows of ``table`` [vocab, hidden] for the step's tokens: [T, hidden]."""

    def select(self, x: V) -> V:
        """The rows whose logits are wanted: [wanted, dim]."""

    def rms_norm(self, x: V, weight: W, eps: float) -> V:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019)."""

    def head_norm(self, x: V, weight: W, eps: float) -> V:
        """RMS norm of each head on its own: ``weight`` is [head_dim], x is [T, heads * head_dim]."""

    def rope(self, x: V, rope: Rope, head_dim: int) -> V:
        """Rotates the first ``rope.dim`` dimensions of each head by the row's position."""

    def linear(self, x: V, weight: W, bias: W | None) -> V:
        """x @ weight.T + bias."""

    def glu(self, gate: V, up: V, activation: Activation) -> V:
        """activation(gate) * up."""

    def attention(self, q: V, k: V, v: V, attn: Attention, layer: int) -> V:
        """Appends k and v to the layer's cache, then attends causally: [T, num_heads * head_dim]."""

    def add(self, x: V, y: V) -> V:
        """x + y."""
