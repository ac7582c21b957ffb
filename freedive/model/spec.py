"""The specification of a decoder as frozen data: no files, no kernels.

A family turns its configuration into a :class:`ModelSpec`; everything else (shapes, the forward pass, memory needs)
follows from it. Counts are ``num_*``; sizes are ``*_dim``, ranks ``*_rank``. A number that is 0 switches its trait off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

MAX_CONTEXT = 1 << 30
"""Most tokens of a context that a description may have."""

MAX_EXPERTS = 1024
"""The most experts that a router chooses from: what the kernels have room for."""


class Range(NamedTuple):
    """The range of an integer in a description, checked by model/description.py."""

    least: int
    most: int


Count = Annotated[int, Range(1, 4096)]
"""Heads, or dimensions of one."""

Width = Annotated[int, Range(1, 1 << 20)]
"""Dimensions of a row of activations."""

Span = Annotated[int, Range(0, MAX_CONTEXT)]
"""Positions; 0 is all."""

Activation = Literal["silu", "gelu_tanh", "swiglu_oai"]
"""How gate and up combine: act(gate) * up; or gpt-oss's gate * sigmoid(1.702 gate) * (up + 1)."""


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
class PerToken:
    """State that a mixer keeps of every token, in pages: ``heads`` rows of ``dim`` numbers in the cache's format."""

    heads: int
    dim: int


@dataclass(frozen=True)
class PerSequence:
    """State that a mixer keeps once a sequence, in a slot: float32 of ``shape``, zero before the first token.

    A token changes it by ``input_dim`` numbers. Those of draft tokens are kept apart until the drafts are accepted.
    """

    shape: tuple[int, ...]
    input_dim: int

    @property
    def size(self) -> int:
        """Numbers of one sequence."""
        return math.prod(self.shape)


State = tuple[PerToken | PerSequence, ...]
"""All that a mixer keeps. Caches, pages, slots, snapshots and sizes follow from it alone."""


@dataclass(frozen=True)
class AttentionTemperature:
    """Queries grow with their position p by log(1 + floor((p + 1) / floor_scale)) * scale + 1 (Llama 4)."""

    floor_scale: float
    scale: float


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023).

    ``window`` W sees W positions, its own included; ``chunk`` C sees its own run of C positions; 0 sees everything
    before. ``qk_norm`` is RMS norm of queries and keys: of each ``head``, of the ``full`` projection, or of each head
    without weights (``l2``). Scores are softcap * tanh(score / softcap). A sink is a learned logit of each head that
    takes its part of the softmax and gives no value (Xiao et al. 2023; gpt-oss). ``output_gate`` multiplies each number
    of the result by the sigmoid of a linear's output (Qwen3-Next).
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

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def state(self) -> State:
        """Keys and values."""
        return (PerToken(self.num_kv_heads, self.head_dim),) * 2


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): the cache keeps one latent row of a token for all heads.

    A query head is ``nope_dim`` dimensions, then ``rope_dim`` rotated ones. ``q_rank`` 0 makes queries straight from
    the input. Norms of latents have an epsilon of their own. ``output_gate`` multiplies the result of each head by the
    sigmoid of one number that a linear makes of the input (Ling 3).
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
    output_gate: bool = False

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def state(self) -> State:
        """The latent that keys and values are made of, and the rotated part of the keys."""
        return PerToken(1, self.kv_rank), PerToken(1, self.rope_dim)


@dataclass(frozen=True)
class ShortConv:
    """Gated short convolution (LFM2): out(c * conv(b * x)), where b, c, x [T, dim] each are a third of in(h).

    The convolution is causal and depthwise: each dimension is a weighted sum of its last ``kernel`` tokens.
    """

    dim: Width
    kernel: Annotated[int, Range(2, 16)]
    bias: bool = False

    @property
    def state(self) -> tuple[PerSequence]:
        """b * x of the tokens that the next one still sees."""
        return (PerSequence((self.kernel - 1, self.dim), input_dim=self.dim),)


@dataclass(frozen=True)
class DeltaRule:
    """Gated delta rule (Gated DeltaNet, Yang et al. 2025; Kimi Delta Attention, 2025): linear attention as recurrence.

    Each value head keeps a matrix S [key_dim, value_dim]. A token with decay d, strength beta, query q, key k and value
    v makes S = d * S, then S = S + k (beta * (v - S^T k))^T, and reads S^T q / sqrt(key_dim). Before that, q, k and v
    pass a causal depthwise convolution over ``kernel`` tokens and silu; q and k are scaled to length 1. The value heads
    of a key head lie side by side, or ``num_key_heads`` apart if ``tiled``.

    The decay is one number of a head, or by ``channel`` one of each of its ``key_dim``: exp(-rate * softplus(x)) with
    the head's rate, or exp(decay_bound * sigmoid(rate * x)) if ``decay_bound`` is not 0. ``decay_rank`` and
    ``gate_rank`` are those of two matrices that make x and the gate; 0 is one matrix. The result is RMS normed by head,
    times ``gate_activation`` of the gate.
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
        """Numbers of all keys of a token; queries have as many."""
        return self.num_key_heads * self.key_dim

    @property
    def v_dim(self) -> int:
        return self.num_value_heads * self.value_dim

    @property
    def decay_dim(self) -> int:
        """Decays of a token."""
        return self.num_value_heads * (self.key_dim if self.decay == "channel" else 1)

    @property
    def state(self) -> tuple[PerSequence, PerSequence, PerSequence, PerSequence]:
        """What the convolutions of q, k and v still see, and S. A token changes S by k, v, decay and beta."""
        q, k, v = (PerSequence((self.kernel - 1, dim), dim) for dim in (self.k_dim, self.k_dim, self.v_dim))
        inputs = self.k_dim + self.v_dim + self.decay_dim + self.num_value_heads
        return q, k, v, PerSequence((self.num_value_heads, self.key_dim, self.value_dim), inputs)


Mixer = Attention | LatentAttention | ShortConv | DeltaRule
"""What tokens learn of those before them by."""


def per_token_dim(state: State) -> int:
    """Numbers that pages keep of one token."""
    return sum(part.heads * part.dim for part in state if isinstance(part, PerToken))


def per_sequence(state: State) -> list[PerSequence]:
    """What slots keep of a sequence."""
    return [part for part in state if isinstance(part, PerSequence)]


@dataclass(frozen=True)
class FeedForward:
    """Gated feed-forward: down(activation(gate(x)) * up(x)) (Shazeer 2020).

    ``limit`` clamps gate from above and up on both sides before they are combined.
    """

    dim: Width
    activation: Activation = "silu"
    bias: bool = False
    limit: float = 0.0


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, and with what weights.

    Scores are the softmax or sigmoid of a linear's logits; ``choice_bias`` is added for the choice only (Wang et al.
    2024). With groups, ``num_chosen`` experts come from the ``kept_groups`` whose best (``max``) or best two (``top2``)
    members score highest, or equally many from ``each`` group. Weights are the chosen scores, divided by their sum if
    ``renormalise``, times ``scale`` and a learned ``expert_scale``; they multiply an expert's output, or its input.
    Of equal scores the lower index wins.
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
    """Mixture of experts (Shazeer et al. 2017; DeepSeekMoE, Dai et al. 2024): each token runs a few of many.

    ``expert`` is the shape of each. ``shared`` runs for every token in addition, times sigmoid(gate(x)) if
    ``shared_gate``.
    """

    router: Router
    expert: FeedForward
    shared: FeedForward | None = None
    shared_gate: bool = False


@dataclass(frozen=True)
class Layer:
    """One block: x + mixer(norm(x)), then x + ffn(norm(x)); with ``post_norms`` both branches are normed again."""

    mixer: Attention | LatentAttention | ShortConv | DeltaRule
    ffn: FeedForward | Experts
    post_norms: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """The specification of a decoder. ``max_context`` is in tokens; ``tied`` shares the embedding with the output head.

    Embeddings, every branch before it is added, and logits are multiplied by their scale; logits are capped last.
    ``mtp`` predicts, from the state at a token and the embedding of the next, the one after: multi-token prediction
    (DeepSeek-V3, section 2.2), with the model's embedding and output head. No answer depends on it.
    """

    family: str
    vocab_size: Annotated[int, Range(1, 1 << 22)]
    hidden_dim: Width
    layers: tuple[Layer, ...]
    norm_eps: float
    max_context: Annotated[int, Range(1, MAX_CONTEXT)]
    tied: bool
    head_bias: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    mtp: Layer | None = None

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """All that keep a state: ``layers``, then ``mtp``, whose index is the one after the last."""
        return (*self.layers, self.mtp) if self.mtp else self.layers

    @property
    def per_sequence(self) -> list[PerSequence]:
        """What a slot holds: the per-sequence state of every block, in order."""
        return [part for layer in self.blocks for part in per_sequence(layer.mixer.state)]
