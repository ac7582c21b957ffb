"""What a decoder is: frozen data, no files, no kernels.

A family turns its configuration into a :class:`Model`; everything else (shapes, the forward pass, memory needs)
follows from it. Counts are ``num_*``; sizes are ``*_dim``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu"]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, section 3.4), reduced to what a kernel needs.

    All scalings (linear, llama3, yarn, ...) are folded into ``inv_freq`` [dim / 2] and ``factor``, which multiplies
    cosines and sines. ``interleaved`` rotates neighbours (2i, 2i + 1), otherwise halves (i, i + dim / 2).
    """

    dim: int
    inv_freq: tuple[float, ...]
    factor: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023).

    ``window`` 0 sees everything before; W sees W positions, its own included.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    scale: float
    window: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    head_norm: bool = False

    @property
    def q_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class FeedForward:
    """Gated feed-forward: down(activation(gate(x)) * up(x)) (Shazeer 2020)."""

    dim: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """One pre-norm block: x + attention(norm(x)), then x + ffn(norm(x))."""

    attention: Attention
    ffn: FeedForward


@dataclass(frozen=True)
class Model:
    """A whole decoder. ``max_context`` is in tokens; ``tied`` shares the embedding with the output head."""

    family: str
    vocab_size: int
    hidden_dim: int
    layers: tuple[Layer, ...]
    norm_eps: float
    max_context: int
    tied: bool
