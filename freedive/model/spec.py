"""The specification of a decoder as frozen data: no files, no kernels.

A family turns its configuration into a :class:`ModelSpec`; everything else (shapes, the forward pass, memory needs)
follows from it. Counts are ``num_*``; sizes are ``*_dim``, ranks ``*_rank``. The value 0 switches a feature off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from freedive.model.state import PerSequence, PerToken, State, per_sequence

MAX_CONTEXT = 1 << 30
"""Maximum context length, in tokens, that a description may have."""

MAX_EXPERTS = 1024
"""Maximum number of experts of a layer that the kernels support."""


class Range(NamedTuple):
    """The range of an integer in a description, checked by model/description.py."""

    least: int
    most: int


Count = Annotated[int, Range(1, 4096)]
"""A number of heads, or the dimension of one head."""

Width = Annotated[int, Range(1, 1 << 20)]
"""The dimension of a row of activations."""

Span = Annotated[int, Range(0, MAX_CONTEXT)]
"""A number of positions; 0 means all positions."""

Activation = Literal["silu", "gelu_tanh", "swiglu_oai", "clamped_silu"]
"""How gate and up are combined: act(gate) * up, gate * sigmoid(1.702 gate) * (up + 1) for gpt-oss, or
min(silu(gate), limit) * up for Step 3.5."""

GateActivation = Literal["sigmoid", "softplus"]
"""The function of a gate's linear output that multiplies the result of attention."""


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, section 3.4), reduced to what a kernel needs.

    All scalings (linear, llama3, yarn, ...) are folded into ``inv_freq`` [dim / 2] and ``factor``, which multiplies
    cosines and sines. ``interleaved`` rotates neighbours (2i, 2i + 1), otherwise halves (i, i + dim / 2).
    """

    dim: Count
    inv_freq: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class AttentionTemperature:
    """Queries at position p are multiplied by log(1 + floor((p + offset) / floor_scale)) * scale + 1.

    Positions count from 0; the offset is 1 in Llama 4 and 0 in Ministral 3.
    """

    floor_scale: float
    scale: float
    offset: Annotated[int, Range(0, 1)] = 1


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023).

    With ``window`` W, a token attends to the last W positions, its own included. With ``chunk`` C, it attends only to
    earlier positions in its own block of C positions. With 0, it attends to all earlier positions. ``qk_norm`` is the
    RMS norm of queries and keys: of each ``head``, of the ``full`` projection, or of each head without weights
    (``l2``). With ``softcap``, scores are softcap * tanh(score / softcap). A sink is a learned logit of each head that
    is part of the softmax but has no value (Xiao et al. 2023; gpt-oss). With ``output_gate``, each number of the result
    is multiplied by the ``gate_activation`` of a linear projection of the input (Qwen3-Next). With ``gate_by_head``,
    one gate multiplies all numbers of a head (Laguna).

    With ``values`` ``keys``, there is no projection to values: they are the projection to keys, before its norm and
    rotation. With ``v_norm``, an RMS norm without weights is applied to each head of the values. If ``kv_layer`` is not
    -1, there are no projections to keys and values either: queries attend to those of that earlier layer (Gemma 4).

    A head of the values has ``value_dim`` numbers, or as many as one of the keys if that is 0. ``result_scale``
    multiplies the result of the last projection (MiMo V2, whose values are scaled, which is the same).
    """

    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    rope: Rope | None
    scale: float
    window: Span = 0
    chunk: Span = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["", "head", "full", "l2"] = ""
    norm_after_rope: bool = False
    clip: float = 0.0
    softcap: float = 0.0
    sinks: bool = False
    temperature: AttentionTemperature | None = None
    output_gate: bool = False
    gate_activation: GateActivation = "sigmoid"
    gate_by_head: bool = False
    value_dim: Annotated[int, Range(0, 4096)] = 0
    result_scale: float = 1.0
    values: Literal["own", "keys"] = "own"
    v_norm: bool = False
    kv_layer: Annotated[int, Range(-1, 1000)] = -1

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def k_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def v_head_dim(self) -> int:
        return self.value_dim or self.head_dim

    @property
    def v_dim(self) -> int:
        return self.num_kv_heads * self.v_head_dim

    @property
    def out_dim(self) -> int:
        """Width of the results of all heads, which the last projection reads."""
        return self.num_heads * self.v_head_dim

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of the linear projections of the input to queries, keys and values that the layer has."""
        if self.kv_layer >= 0:
            return ("q",)
        return ("q", "k") if self.values == "keys" else ("q", "k", "v")

    @property
    def state(self) -> State:
        """The keys and values of each token, unless they are those of another layer."""
        dims = (self.head_dim, self.v_head_dim) if self.kv_layer < 0 else ()
        return tuple(PerToken(self.num_kv_heads, dim) for dim in dims)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): the cache stores one latent row per token for all heads.

    A query head has ``nope_dim`` dimensions without rotation, then ``rope_dim`` rotated dimensions. With ``q_rank`` 0,
    queries are computed directly from the input. ``latent_eps`` is the epsilon of the norms of latents. With
    ``output_gate``, the result of each head is multiplied by the sigmoid of one linear output (Ling 3).
    """

    num_heads: Count
    q_rank: Annotated[int, Range(0, 1 << 20)]
    kv_rank: Width
    nope_dim: Count
    rope_dim: Count
    value_dim: Count
    rope: Rope | None
    scale: float
    bias: bool = False
    latent_eps: float = 1e-6
    temperature: AttentionTemperature | None = None
    output_gate: bool = False

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def state(self) -> State:
        """The latent from which keys and values are computed, and the rotated part of the keys."""
        return PerToken(1, self.kv_rank), PerToken(1, self.rope_dim)


@dataclass(frozen=True)
class ShortConv:
    """Gated short convolution (LFM2): out(c * conv(b * x)), where b, c, x [T, dim] each are a third of in(h).

    The convolution is causal and depthwise: each output value is a weighted sum over the last ``kernel`` tokens.
    """

    dim: Width
    kernel: Annotated[int, Range(2, 16)]
    bias: bool = False

    @property
    def state(self) -> tuple[PerSequence]:
        """The values b * x of the last ``kernel`` - 1 tokens, which the convolution of the next token reads."""
        return (PerSequence((self.kernel - 1, self.dim), input_dim=self.dim),)


@dataclass(frozen=True)
class DeltaRule:
    """Gated delta rule (Gated DeltaNet, Yang et al. 2025; Kimi Delta Attention, 2025): linear attention as recurrence.

    Each value head has a matrix S [key_dim, value_dim]. A token with decay d, strength beta, query q, key k and value v
    sets S = d * S, then S = S + k (beta * (v - S^T k))^T, and returns S^T q / sqrt(key_dim). Before that, a causal
    depthwise convolution over ``kernel`` tokens and silu are applied to q, k and v; q and k are scaled to length 1. The
    value heads of a key head are neighbours, or ``num_key_heads`` apart if ``tiled``.

    The decay is one number per head, or with ``channel`` one per dimension of its keys: exp(-rate * softplus(x)) with
    the rate of the head, or exp(decay_bound * sigmoid(rate * x)) if ``decay_bound`` is not 0. x and the gate are linear
    projections of the input, of rank ``decay_rank`` and ``gate_rank``; 0 is full rank. The result is the RMS norm of
    each head times ``gate_activation`` of the gate.
    """

    num_key_heads: Count
    num_value_heads: Count
    key_dim: Count
    value_dim: Count
    kernel: Annotated[int, Range(2, 16)]
    decay: Literal["head", "channel"]
    decay_rank: Annotated[int, Range(0, 1 << 20)]
    gate_rank: Annotated[int, Range(0, 1 << 20)]
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    decay_bound: float = 0.0
    tiled: bool = False

    @property
    def k_dim(self) -> int:
        """Width of all keys of a token, and of all queries."""
        return self.num_key_heads * self.key_dim

    @property
    def v_dim(self) -> int:
        return self.num_value_heads * self.value_dim

    @property
    def decay_dim(self) -> int:
        """Number of decays of a token."""
        return self.num_value_heads * (self.key_dim if self.decay == "channel" else 1)

    @property
    def state(self) -> tuple[PerSequence, PerSequence, PerSequence, PerSequence]:
        """The last inputs of the convolutions of q, k and v; and S, whose inputs are k, v, decay and beta."""
        q, k, v = (PerSequence((self.kernel - 1, dim), dim) for dim in (self.k_dim, self.k_dim, self.v_dim))
        inputs = self.k_dim + self.v_dim + self.decay_dim + self.num_value_heads
        return q, k, v, PerSequence((self.num_value_heads, self.key_dim, self.value_dim), inputs)


Mixer = Attention | LatentAttention | ShortConv | DeltaRule
"""The part of a layer that reads earlier tokens: attention, a convolution or a recurrence."""


@dataclass(frozen=True)
class FeedForward:
    """Gated feed-forward network: down(activation(gate(x)) * up(x)) (Shazeer 2020).

    ``limit`` clamps gate to at most limit, and up to -limit .. limit, before they are combined; with ``clamped_silu``
    it clamps silu(gate) instead of gate.
    """

    dim: Width
    activation: Activation = "silu"
    bias: bool = False
    limit: float = 0.0


@dataclass(frozen=True)
class Router:
    """Chooses the experts of each token and their weights.

    Scores are the softmax or sigmoid of the router's logits. ``choice_bias`` is added only for the choice (Wang et al.
    2024). With groups, the ``num_chosen`` experts come from the ``kept_groups`` groups with the highest best score
    (``max``) or sum of the two best scores (``top2``), or the same number comes from ``each`` group. The weights are
    the chosen scores, divided by their sum if ``renormalise``, times ``scale`` and a learned ``expert_scale``. A weight
    multiplies the output of its expert, or the input if ``weighs_input``. If scores are equal, the lower index is
    chosen.
    """

    num_experts: Annotated[int, Range(1, MAX_EXPERTS)]
    num_chosen: Annotated[int, Range(1, MAX_EXPERTS)]
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False
    scale: float = 1.0
    bias: bool = False
    choice_bias: bool = False
    num_groups: Annotated[int, Range(1, MAX_EXPERTS)] = 1
    kept_groups: Annotated[int, Range(1, MAX_EXPERTS)] = 1
    group_choice: Literal["max", "top2", "each"] = "max"
    expert_scale: bool = False
    weighs_input: bool = False


@dataclass(frozen=True)
class Experts:
    """Mixture of experts (Shazeer et al. 2017; DeepSeekMoE, Dai et al. 2024): each token runs a few of many experts.

    All experts have the shape ``expert``. The ``shared`` expert runs for every token in addition; with ``shared_gate``
    its output is multiplied by sigmoid(gate(x)). With ``branch_norms``, each branch has RMS norms of its own (Gemma 4):
    the input of the layer is normed once for the router, once for the routed experts and once for the shared expert,
    and the outputs of routed experts and shared expert are normed before they are added.
    """

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None
    shared_gate: bool = False
    branch_norms: bool = False


@dataclass(frozen=True)
class Layer:
    """One block: x + mixer(norm(x)), then x + ffn(norm(x)).

    With ``post_norms`` the result of both branches is normed; without ``pre_norms`` their input is not (OLMo 2). With
    ``out_scale``, the result of the block is multiplied by a learned number.
    """

    mixer: Attention | LatentAttention | ShortConv | DeltaRule
    ffn: FeedForward | Experts
    post_norms: bool = False
    pre_norms: bool = True
    out_scale: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """The specification of a decoder. ``max_context`` is in tokens; if ``tied``, the output head is the embedding.

    ``embed_scale`` multiplies embeddings, ``residual_scale`` every branch before it is added, and ``logit_scale`` the
    logits, to which ``logit_softcap`` is applied last. ``mtp`` is the layer of multi-token prediction (DeepSeek-V3,
    section 2.2): from the hidden state at a token and the embedding of the next token it predicts the token after that,
    with the model's embedding and output head. With ``mtp_normed``, the hidden states pass through the norm of the
    output head first. Answers do not depend on it.

    With ``embed_norm``, an RMS norm without weights is applied to embeddings. ``post_norm_eps`` is the epsilon of the
    norms of ``post_norms``, 0 if it is ``norm_eps`` (Muse Glimmer).

    With ``token_input`` W, each layer has a further input of W values for each token, and a third branch that reads it
    (Gemma 4 E2B and E4B): x + norm(proj(gelu_tanh(gate(x)) * input)). The inputs of all layers are
    (norm(linear(e) * hidden_dim^-0.5) + embedding of the token in a table of its own * W^0.5) * 2^-0.5, where e is the
    scaled embedding of the token and each layer's part is normed on its own.
    """

    family: str
    vocab_size: Annotated[int, Range(1, 1 << 22)]
    hidden_dim: Width
    layers: tuple[Layer, ...]
    norm_eps: float
    max_context: Annotated[int, Range(1, MAX_CONTEXT)]
    tied: bool
    head_bias: bool = False
    embed_norm: bool = False
    post_norm_eps: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    mtp: Layer | None = None
    mtp_normed: bool = True
    token_input: Annotated[int, Range(0, 1 << 16)] = 0

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """All layers that have a state: ``layers``, then ``mtp``, whose index is ``len(layers)``."""
        return (*self.layers, self.mtp) if self.mtp else self.layers

    @property
    def per_sequence(self) -> list[PerSequence]:
        """The per-sequence states of all layers in order, which a slot stores."""
        return [part for layer in self.blocks for part in per_sequence(layer.mixer.state)]
