"""The operations of a forward pass, one dataclass each: first the recorded operations, then the fused ones.

They contain weight names and parameters. The node or phase of an operation has its inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from freedive.model import spec


@dataclass(frozen=True)
class Embed:
    """Looks up the rows of the token embedding."""

    table: str


@dataclass(frozen=True)
class Select:
    """Selects the output rows of the step, whose logits are needed."""


@dataclass(frozen=True)
class RmsNorm:
    """Computes the RMS norm of whole rows."""

    weight: str
    eps: float


@dataclass(frozen=True)
class HeadNorm:
    """Computes the RMS norm of each head, without weights if ``weight`` is None."""

    weight: str | None
    head_dim: int
    eps: float


@dataclass(frozen=True)
class Rope:
    """Applies the rotary position embedding to each head."""

    rope: spec.Rope


@dataclass(frozen=True)
class ScaleByPosition:
    """Multiplies each query by the attention temperature of its position."""

    temperature: spec.AttentionTemperature


HeadStep = HeadNorm | Rope | ScaleByPosition
"""An operation on the heads of queries, keys or values before attention."""


@dataclass(frozen=True)
class Linear:
    """Multiplies the input by a matrix and adds a bias if there is one."""

    weight: str
    bias: str | None


@dataclass(frozen=True)
class Glu:
    """Combines gate and up of a feed-forward network by its activation."""

    ffn: spec.FeedForward


@dataclass(frozen=True)
class Attention:
    """Computes attention over cached keys and values; reads q, k and v, or q alone with those of another layer."""

    attn: spec.Attention
    sinks: str | None
    layer: int


@dataclass(frozen=True)
class LatentAttention:
    """Computes multi-head latent attention; reads q and the latents."""

    attn: spec.LatentAttention
    norm: str
    k_b: str
    v_b: str


@dataclass(frozen=True)
class ShortConv:
    """Computes a gated short convolution."""

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
    """Computes the weighted sum of the outputs of each token's experts; reads the input and the router's logits.

    ``weights`` is the common prefix of the names of the experts' weights.
    """

    moe: spec.Experts
    weights: str
    choice_bias: str | None
    expert_scale: str | None


@dataclass(frozen=True)
class Gate:
    """Multiplies each row by an activation of its gate logits; each gate multiplies an equal share of the row."""

    activation: spec.GateActivation


@dataclass(frozen=True)
class Scale:
    """Multiplies the input by a factor."""

    factor: float


@dataclass(frozen=True)
class ScaleBy:
    """Multiplies the input by a learned number."""

    factor: str


@dataclass(frozen=True)
class Columns:
    """Selects the columns from ``first`` on, as many as the result is wide."""

    first: int


@dataclass(frozen=True)
class Softcap:
    """Computes cap * tanh(x / cap)."""

    cap: float


@dataclass(frozen=True)
class Clip:
    """Clamps the input to -limit .. limit."""

    limit: float


@dataclass(frozen=True)
class Add:
    """Adds two inputs."""


Recorded = (
    Embed
    | Select
    | RmsNorm
    | HeadNorm
    | Rope
    | ScaleByPosition
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
    | ScaleBy
    | Columns
    | Softcap
    | Clip
    | Add
)
"""The operation of a node."""


@dataclass(frozen=True)
class FusedLinear:
    """Multiplies one input, after ``norm`` if given, by several matrices; times ``factor``, plus the residuals."""

    linears: tuple[Linear, ...]
    norm: RmsNorm | None
    factor: float = 1.0


@dataclass(frozen=True)
class FusedGlu:
    """Computes gate and up of a feed-forward network, and combines them by its activation."""

    gate: Linear
    up: Linear
    norm: RmsNorm | None
    ffn: spec.FeedForward


@dataclass(frozen=True)
class FusedAttention:
    """Computes attention, after steps on the heads of queries, keys and values."""

    attention: Attention
    q_steps: tuple[HeadStep, ...]
    k_steps: tuple[HeadStep, ...] = ()
    v_steps: tuple[HeadStep, ...] = ()


@dataclass(frozen=True)
class SharedExpert:
    """The expert that runs for all tokens; if ``gated``, its output is multiplied by the sigmoid of a gate logit."""

    gate: Linear
    up: Linear
    down: Linear
    ffn: spec.FeedForward
    gated: bool


@dataclass(frozen=True)
class FusedExperts:
    """Computes the routing, the routed experts and the shared expert; times ``factor``, plus the residuals.

    It reads the input, the router's logits, and the gate logit of the shared expert if that is gated.
    """

    experts: Experts
    norm: RmsNorm | None
    shared: SharedExpert | None
    factor: float


@dataclass(frozen=True)
class FusedNorm:
    """Computes the RMS norm of each ``part`` columns; times ``factor``, plus the residuals, times ``scale``."""

    norm: RmsNorm | HeadNorm
    part: int
    factor: float
    scale: str | None


@dataclass(frozen=True)
class RowGlu:
    """Combines rows by the activation ``ffn``: gate, and the columns of up from ``first`` on."""

    ffn: spec.FeedForward
    first: int


Fused = FusedLinear | FusedGlu | FusedAttention | FusedExperts | FusedNorm | RowGlu
