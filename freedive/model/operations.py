"""The operations that a forward pass is written in.

There are three implementations: ``reference`` (numpy, simple), ``torch`` (differentiable) and ``native`` (recorded
once, then run by compiled kernels). A value is an array, a tensor, or a node of a graph while recording. Shapes below
are [T, dim], where T is the number of tokens of all requests in a step, concatenated. The implementation knows the
request and the position of each row.
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
    GateActivation,
    LatentAttention,
    Rope,
    ShortConv,
)

V = TypeVar("V")
W = TypeVar("W", contravariant=True)


class Ops(Protocol[V, W]):
    """``V`` is the type of activations, ``W`` the type of weights: linear [out, in], norm and bias [dim]."""

    def embed(self, table: W) -> V:
        """Returns the rows [T, hidden] of ``table`` [vocab, hidden] for the tokens of the step."""

    def select(self, x: V) -> V:
        """Returns the output rows [W, dim] of x, whose logits are needed."""

    def rms_norm(self, x: V, weight: W, eps: float) -> V:
        """Returns x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019)."""

    def head_norm(self, x: V, weight: W | None, head_dim: int, eps: float) -> V:
        """Returns the RMS norm of each head of x [T, heads * head_dim]; ``weight`` is [head_dim], or None for ones."""

    def rope(self, x: V, rope: Rope, head_dim: int) -> V:
        """Rotates the first ``rope.dim`` dimensions of each head by the row's position."""

    def scale_by_position(self, q: V, temperature: AttentionTemperature) -> V:
        """Multiplies each query by the attention temperature of its position."""

    def linear(self, x: V, weight: W, bias: W | None) -> V:
        """Returns x @ weight.T + bias."""

    def linears(self, x: V, layers: Sequence[tuple[W, W | None]]) -> Sequence[V]:
        """Returns one :meth:`linear` of x for each (weight, bias)."""

    def router_logits(self, x: V, weight: W, bias: W | None) -> V:
        """Returns x @ weight.T + bias of a router, which training computes without the rounding of other products."""

    def glu(self, gate: V, up: V, ffn: FeedForward) -> V:
        """Combines gate and up by ``ffn.activation``, after both are clamped by ``ffn.limit``."""

    def feed_forward(self, x: V, ffn: FeedForward, weights: Mapping[str, W]) -> V:
        """Returns the output of a dense feed-forward network or a shared expert for x [T, hidden].

        See :func:`freedive.model.decoder.feed_forward`.
        """

    def attention(self, q: V, k: V | None, v: V | None, sinks: W | None, attn: Attention, layer: int) -> V:
        """Appends k and v to the cache of ``layer``, and returns causal attention [T, num_heads * head_dim].

        k and v are None if the keys and values are those of the layer ``attn.kv_layer``.
        """

    def latent_attention(self, q: V, kv: V, norm: W, k_b: W, v_b: W, attn: LatentAttention, layer: int) -> V:
        """Appends kv to the cache of ``layer``, and returns causal attention [T, heads * value_dim].

        The latent part of kv [T, kv_rank + rope_dim] is normed and the rest rotated before they are cached. ``k_b`` and
        ``v_b`` expand latents to keys and values. q is not rotated yet. Prompt tokens attend to expanded keys. Later
        tokens multiply ``k_b`` into the query and ``v_b`` into the result instead (absorbed), which is equal except for
        rounding.
        """

    def short_conv(self, x: V, taps: W, bias: W | None, conv: ShortConv, layer: int) -> V:
        """Returns c * (conv(b * x) + bias) [T, dim], where ``x`` [T, 3 * dim] is the concatenation of b, c and x.

        ``taps`` [kernel * dim] are the weights of the convolution, those of the oldest token first. The operation
        updates the per-sequence state of ``layer`` by the step's :class:`freedive.model.batch.StateUpdates`.
        """

    def silu_conv(self, x: V, taps: W, kernel: int, layer: int, part: int) -> V:
        """Returns silu(conv(x)) for x [T, dim], ``taps`` as in :meth:`short_conv`; ``part`` is its state."""

    def delta_rule(self, q: V, k: V, v: V, beta: V, decay: V, rate: W, dt_bias: W, delta: DeltaRule, layer: int) -> V:
        """Returns the results of :class:`freedive.model.spec.DeltaRule`, [T, num_value_heads * value_dim].

        q and k [T, k_dim] are not scaled; ``beta`` [T, num_value_heads] is before its sigmoid, ``decay`` [T, decay_dim]
        before ``dt_bias`` is added. The operation updates the last state of ``layer``, token by token.
        """

    def gated_norm(self, x: V, gate: V, weight: W, delta: DeltaRule, eps: float) -> V:
        """Returns the RMS norm of each value head of x, times the activation of the gate: both [T, v_dim]."""

    def experts(
        self,
        x: V,
        logits: V,
        moe: Experts,
        weights: Mapping[str, W],
        choice_bias: W | None,
        expert_scale: W | None,
    ) -> V:
        """Returns the weighted sum [T, hidden] of the outputs of each token's experts.

        The names in ``weights`` are ``{expert}.gate``, ``{expert}.up`` and ``{expert}.down``. The router ``logits``
        [T, num_experts] determine the experts of a token and their weights; ``choice_bias`` [num_experts] changes only
        the choice, and ``expert_scale`` [num_experts] multiplies the weight of each expert.
        """

    def gate(self, x: V, gate: V, activation: GateActivation = "sigmoid") -> V:
        """Returns x * activation(gate) for x [T, dim] and gate [T, n]; each gate multiplies dim / n columns."""

    def scale(self, x: V, factor: float) -> V:
        """Returns x * factor."""

    def scale_by(self, x: V, factor: W) -> V:
        """Returns x * factor for a learned ``factor`` [1]."""

    def columns(self, x: V, first: int, width: int) -> V:
        """Returns the columns ``first`` to ``first + width`` (excluded) of x."""

    def softcap(self, x: V, cap: float) -> V:
        """Returns cap * tanh(x / cap)."""

    def clip(self, x: V, limit: float) -> V:
        """Returns x clamped to -limit .. limit."""

    def add(self, x: V, y: V) -> V:
        """Returns x + y."""
