"""What a forward pass is made of: one dataclass an operation, first as it is recorded, then as the kernels run it.

They hold weight names and numbers; what an operation reads and writes is said by the node or phase that has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from freedive.model import spec


@dataclass(frozen=True)
class Embed:
    """Rows of the token embedding."""

    table: str


@dataclass(frozen=True)
class Select:
    """The rows whose logits are wanted."""


@dataclass(frozen=True)
class RmsNorm:
    """The RMS norm of whole rows."""

    weight: str
    eps: float


@dataclass(frozen=True)
class HeadNorm:
    """The RMS norm of each head, without weights if ``weight`` is None."""

    weight: str | None
    head_dim: int
    eps: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of each head."""

    rope: spec.Rope


@dataclass(frozen=True)
class Temper:
    """Queries are scaled by their position."""

    temperature: spec.AttentionTemperature


HeadStep = HeadNorm | Rope | Temper
"""What is done to the heads of queries or keys before attention."""


@dataclass(frozen=True)
class Linear:
    """A matrix product."""

    weight: str
    bias: str | None


@dataclass(frozen=True)
class Glu:
    """The activation of a gate times what it gates."""

    ffn: spec.FeedForward


@dataclass(frozen=True)
class Attention:
    """Attention over cached keys and values; reads q, k and v."""

    attn: spec.Attention
    sinks: str | None


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention; reads q and the latents."""

    attn: spec.LatentAttention
    norm: str
    k_b: str
    v_b: str


@dataclass(frozen=True)
class ShortConv:
    """A gated short convolution."""

    conv: spec.ShortConv
    taps: str
    bias: str | None


@dataclass(frozen=True)
class SiluConv:
    """A short convolution, then silu."""

    kernel: int
    taps: str


@dataclass(frozen=True)
class DeltaRule:
    """The gated delta rule; reads q, k, v, beta and decay."""

    delta: spec.DeltaRule
    rate: str
    dt_bias: str


@dataclass(frozen=True)
class GatedNorm:
    """The RMS norm of each head, times the activation of a gate."""

    delta: spec.DeltaRule
    weight: str
    eps: float


@dataclass(frozen=True)
class Experts:
    """The weighted sum of what each token's experts make of it; reads the input and the router's logits.

    ``weights`` is the name that theirs begin with.
    """

    moe: spec.Experts
    weights: str
    choice_bias: str | None
    expert_scale: str | None


@dataclass(frozen=True)
class Gate:
    """Rows times the sigmoids of gates, each for equally many numbers of a row."""


@dataclass(frozen=True)
class Scale:
    """Rows times a factor."""

    factor: float


@dataclass(frozen=True)
class Softcap:
    """Numbers are bounded smoothly by ``cap``."""

    cap: float


@dataclass(frozen=True)
class Clip:
    """Numbers are cut off at ``limit`` on both sides."""

    limit: float


@dataclass(frozen=True)
class Add:
    """The sum of two."""


Recorded = (
    Embed
    | Select
    | RmsNorm
    | HeadNorm
    | Rope
    | Temper
    | Linear
    | Glu
    | Attention
    | LatentAttention
    | ShortConv
    | SiluConv
    | DeltaRule
    | GatedNorm
    | Experts
    | Gate
    | Scale
    | Softcap
    | Clip
    | Add
)
"""The operation of a node."""


@dataclass(frozen=True)
class FusedLinear:
    """Products of one input, which is normed first if ``norm`` is given; times ``factor``, plus the residuals."""

    linears: tuple[Linear, ...]
    norm: RmsNorm | None
    factor: float = 1.0


@dataclass(frozen=True)
class FusedGlu:
    """Gate and up of a feed-forward, and the gating."""

    gate: Linear
    up: Linear
    norm: RmsNorm | None
    ffn: spec.FeedForward


@dataclass(frozen=True)
class FusedAttention:
    """Attention, and what is done to heads before it."""

    attention: Attention
    q_steps: tuple[HeadStep, ...]
    k_steps: tuple[HeadStep, ...]


@dataclass(frozen=True)
class SharedExpert:
    """The expert that all tokens go to, by the weight that a logit of its own gives it if it is ``gated``."""

    gate: Linear
    up: Linear
    down: Linear
    ffn: spec.FeedForward
    gated: bool


@dataclass(frozen=True)
class FusedExperts:
    """Routing, the routed experts and the shared one; times ``factor``, plus the residuals.

    Reads the input, the router's logits, then the logit of the shared expert if that is gated.
    """

    experts: Experts
    norm: RmsNorm | None
    shared: SharedExpert | None
    factor: float


Fused = FusedLinear | FusedGlu | FusedAttention | FusedExperts
