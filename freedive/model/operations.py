"""The operations that a forward pass is written in.

Three sets implement them: ``reference`` (numpy, obviously right), ``torch`` (differentiable) and ``native`` (recorded
once, run fast). A value is whatever a set computes with: an array, or a symbol while recording. Shapes below are
[T, dim]: T tokens of all requests in a step, laid end to end; which request and position a row belongs to is the set's
own knowledge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from freedive.model.spec import (
    Attention,
    AttentionTemperature,
    DeltaRule,
    Experts,
    FeedForward,
    LatentAttention,
    Rope,
    ShortConv,
)

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

    def head_norm(self, x: V, weight: W | None, head_dim: int, eps: float) -> V:
        """RMS norm of each head of x [T, heads * head_dim] on its own; ``weight`` is [head_dim], or none."""

    def rope(self, x: V, rope: Rope, head_dim: int) -> V:
        """Rotates the first ``rope.dim`` dimensions of each head by the row's position."""

    def scale_by_position(self, q: V, temperature: AttentionTemperature) -> V:
        """Queries times their position's temperature."""

    def linear(self, x: V, weight: W, bias: W | None) -> V:
        """x @ weight.T + bias."""

    def linears(self, x: V, layers: Sequence[tuple[W, W | None]]) -> Sequence[V]:
        """Several of the same x, by (weight, bias)."""

    def router_logits(self, x: V, weight: W, bias: W | None) -> V:
        """The same of a router, which stays exact where training rounds the factors of other products."""

    def glu(self, gate: V, up: V, ffn: FeedForward) -> V:
        """``ffn.activation`` of gate and up, both clamped by ``ffn.limit`` first."""

    def feed_forward(self, x: V, ffn: FeedForward, weights: Mapping[str, W]) -> V:
        """What a layer without experts, or a shared one, makes of x: :func:`freedive.model.decoder.feed_forward`."""

    def attention(self, q: V, k: V, v: V, sinks: W | None, attn: Attention, layer: int) -> V:
        """Appends k and v to the layer's cache, then attends causally: [T, num_heads * head_dim]."""

    def latent_attention(self, q: V, kv: V, norm: W, k_b: W, v_b: W, attn: LatentAttention, layer: int) -> V:
        """Appends kv [T, kv_rank + rope_dim], its latent part normed and the rest rotated, to the layer's cache; then
        attends causally with the keys and values that ``k_b`` and ``v_b`` make of latents: [T, heads * value_dim].

        q is not rotated yet. Tokens of a prompt attend to expanded keys; later ones fold ``k_b`` and ``v_b`` into
        query and result instead (absorbed), which is the same but for rounding.
        """

    def short_conv(self, x: V, taps: W, bias: W | None, conv: ShortConv, layer: int) -> V:
        """c * (conv(b * x) + bias) for x [T, 3 * dim], which holds b, c and x side by side: [T, dim].

        ``taps`` [kernel * dim] are the weights of the oldest token that is seen, then of the next, and so on. The
        layer's per-sequence state is read and moved on as the step's :class:`freedive.model.batch.StateUpdates` say.
        """

    def silu_conv(self, x: V, taps: W, kernel: int, layer: int, part: int) -> V:
        """silu(conv(x)) for x [T, dim], with taps as above; ``part`` is which of the layer's states is this one's."""

    def delta_rule(self, q: V, k: V, v: V, beta: V, decay: V, rate: W, dt_bias: W, delta: DeltaRule, layer: int) -> V:
        """The recurrence of :class:`freedive.model.spec.DeltaRule`: [T, num_value_heads * value_dim].

        q and k [T, k_dim] are not scaled yet; ``beta`` [T, num_value_heads] is before its sigmoid, and ``decay``
        [T, decay_dim] before ``dt_bias`` is added. The layer's last state is read and moved on, token by token.
        """

    def gated_norm(self, x: V, gate: V, weight: W, delta: DeltaRule, eps: float) -> V:
        """RMS norm of each value head of x on its own, times ``delta.gate_activation`` of the gate: both [T, v_dim]."""

    def experts(
        self,
        x: V,
        logits: V,
        moe: Experts,
        weights: Mapping[str, W],
        choice_bias: W | None,
        expert_scale: W | None,
    ) -> V:
        """The weighted sum of what each token's experts make of it: [T, hidden]. Weights go by ``{expert}.gate``.

        A token's experts and their weights follow from its ``logits`` [T, num_experts]; ``choice_bias`` [num_experts]
        counts for the choice only, and ``expert_scale`` [num_experts] multiplies the weight of an expert.
        """

    def gate(self, x: V, gate: V) -> V:
        """x * sigmoid(gate), gate [T, n]: each number of it is for dim / n numbers of a row of x side by side."""

    def scale(self, x: V, factor: float) -> V:
        """x * factor."""

    def softcap(self, x: V, cap: float) -> V:
        """cap * tanh(x / cap)."""

    def clip(self, x: V, limit: float) -> V:
        """x within -limit .. limit."""

    def add(self, x: V, y: V) -> V:
        """x + y."""
