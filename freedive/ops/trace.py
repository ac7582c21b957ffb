"""Measures the duration of each operation of a step, and computes its minimum memory traffic and multiply-adds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.packed import Packed, PackedExperts, PackedTensor
from freedive.model import spec
from freedive.model.batch import Batch
from freedive.model.state import per_token_dim
from freedive.ops.fuse import Phase
from freedive.ops.operations import (
    DeltaRule,
    Embed,
    FusedAttention,
    FusedExperts,
    FusedGlu,
    FusedLinear,
    FusedNorm,
    LatentAttention,
    Linear,
    RowGlu,
    SharedExpert,
    ShortConv,
    SiluConv,
)
from freedive.ops.paging import ExpertTraffic
from freedive.ops.routes import Routes

PREPARATION = "preparation"
"""Name of the work before the first phase: planning attention tasks, waking threads, filling rotary tables."""


@dataclass(frozen=True)
class Work:
    """The ``bytes`` of weights and cached state that are read, each counted once, and the multiply-adds (``macs``)."""

    bytes: int = 0
    macs: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.macs + other.macs)


@dataclass(frozen=True)
class Operation:
    """One operation of a step.

    ``kind`` is its name; products have the names of their weights, such as ``attn.q+k+v``. ``layer`` is the layer of
    its weights, or of the previous operation if it has no weights; None outside of layers. ``traffic`` is that of
    experts that stay on disk.
    """

    kind: str
    layer: int | None
    seconds: float
    work: Work
    traffic: ExpertTraffic | None = None


class Tracer:
    """Computes the name and the work of each of ``phases`` in a step.

    ``element_bytes`` is the number of bytes of one value in the key-value cache.
    """

    def __init__(self, phases: Sequence[Phase], weights: Mapping[str, Packed], element_bytes: int) -> None:
        self._phases = phases
        self._weights = weights
        self._element_bytes = element_bytes

    def operations(
        self,
        batch: Batch,
        routes: Sequence[Routes],
        seconds: Sequence[float],
        traffic: Sequence[ExpertTraffic] = (),
    ) -> list[Operation]:
        """Returns the operations of the step ``batch``.

        ``routes`` and, if experts stay on disk, ``traffic`` are those of each layer with experts; ``seconds`` are the
        durations of the native operations.
        """
        first, read = len(seconds) - len(self._phases), iter(traffic)
        rows = zip(self._phases, _layers(self._phases), seconds[first:], self._works(batch, routes), strict=True)
        operations = [Operation(PREPARATION, None, sum(seconds[:first]), Work())]
        for phase, layer, took, work in rows:
            cost = next(read, None) if isinstance(phase.operation, FusedExperts) else None
            operations.append(Operation(_kind(phase), layer, took, work, cost))
        return operations

    def _works(self, batch: Batch, routes: Sequence[Routes]) -> Iterator[Work]:
        chosen = iter(routes)
        for phase in self._phases:
            match phase.operation:
                case Embed(name):
                    table = self._matrix(name)
                    yield Work(len(batch.tokens) * len(table.data) // table.shape[0])
                case FusedLinear() | FusedGlu():
                    yield self._products(phase, batch)
                case FusedExperts() as operation:
                    yield self._experts(operation, next(chosen)) + self._products(phase, batch)
                case FusedAttention() as operation:
                    yield self._attention(operation.attention.attn, batch)
                case LatentAttention() as operation:
                    yield self._latent_attention(operation, batch)
                case ShortConv(conv):
                    yield Work(8 * conv.state[0].size * len(batch.lengths), conv.kernel * conv.dim * len(batch.tokens))
                case SiluConv(kernel):
                    size = kernel * phase.writes[0].width
                    yield Work(8 * (size - phase.writes[0].width) * len(batch.lengths), size * len(batch.tokens))
                case DeltaRule(delta):
                    size = delta.state[-1].size
                    yield Work(8 * size * len(batch.lengths), 3 * size * len(batch.tokens))
                case _:
                    yield Work()

    def _products(self, phase: Phase, batch: Batch) -> Work:
        rows = len(batch.output_rows if phase.writes[0].wanted else batch.tokens)
        weights = [self._matrix(linear.weight) for linear in _linears(phase)]
        return sum((Work(len(w.data), rows * w.shape[0] * w.shape[1]) for w in weights), Work()) if rows else Work()

    def _experts(self, operation: FusedExperts, routes: Routes) -> Work:
        """Returns the work of the routed experts; it counts the weights of experts that at least one token uses."""
        experts = self._weights[operation.experts.weights]
        assert isinstance(experts, PackedExperts)
        parts = [experts.part(0, name) for name in experts.parts]
        num_bytes = sum(len(part.data) for part in parts)
        macs = sum(part.shape[0] * part.shape[1] for part in parts if len(part.shape) == 2)
        return Work(len(np.unique(routes.experts)) * num_bytes, routes.experts.size * macs)

    def _attention(self, attn: spec.Attention, batch: Batch) -> Work:
        keys = pairs = 0
        for start, length in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True):
            seen = _seen(start, length, attn.window, attn.chunk)
            keys += int(seen[0]) + length - 1
            pairs += int(seen.sum())
        stored, products = attn.k_dim + attn.v_dim, attn.q_dim + attn.out_dim
        return Work(keys * stored * self._element_bytes, pairs * products)

    def _latent_attention(self, operation: LatentAttention, batch: Batch) -> Work:
        """Returns the work of latent attention: prompt rows expand all latents that they attend to; other rows absorb
        the same weights into the query and the result.
        """
        attn = operation.attn
        dim = per_token_dim(attn.state)
        keys = folds = scores = 0
        for start, length, prompt in np.stack([batch.starts, batch.lengths, batch.prompts], 1).tolist():
            given = min(max(prompt - start, 0), length)
            seen = _seen(start, length)
            keys += start + length
            folds += (start + given if given else 0) + length - given
            scores += int(seen[:given].sum()) * (attn.head_dim + attn.value_dim)
            scores += int(seen[given:].sum()) * (dim + attn.kv_rank)
        weights = sum(len(self._matrix(name).data) for name in (operation.k_b, operation.v_b))
        fold = attn.kv_rank * (attn.nope_dim + attn.value_dim)
        return Work(weights + keys * dim * self._element_bytes, attn.num_heads * (folds * fold + scores))

    def _matrix(self, name: str) -> PackedTensor:
        packed = self._weights[name]
        assert isinstance(packed, PackedTensor)
        return packed


def _seen(start: int, length: int, window: int = 0, chunk: int = 0) -> npt.NDArray[np.int64]:
    """Returns the number of positions that each row of a request attends to."""
    positions = np.arange(start, start + length, dtype=np.int64)
    if window:
        return np.minimum(positions + 1, window)
    return (positions % chunk if chunk else positions) + 1


def _kind(phase: Phase) -> str:
    match phase.operation:
        case FusedLinear() | FusedGlu():
            names = [_within_layer(linear) for linear in _linears(phase)]
            return "+".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])
        case FusedAttention():
            return "attention"
        case FusedExperts():
            return "experts"
        case FusedNorm():
            return "norm"
        case RowGlu():
            return "glu"
        case operation:
            return re.sub("(?<!^)(?=[A-Z])", "_", type(operation).__name__).lower()


def _within_layer(linear: Linear) -> str:
    name = linear.weight
    if name == "embed":  # tied
        return "head"
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def _layers(phases: Sequence[Phase]) -> Iterator[int | None]:
    """Yields the layer of each phase."""
    layer: int | None = None
    for phase in phases:
        for name in _weight_names(phase):
            layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        yield layer


def _weight_names(phase: Phase) -> list[str]:
    """Returns the names of the weights of ``phase``."""
    match phase.operation:
        case FusedExperts() as operation:
            return [operation.experts.weights]
        case LatentAttention() as operation:
            return [operation.k_b]
        case _:
            return [linear.weight for linear in _linears(phase)]


def _linears(phase: Phase) -> tuple[Linear, ...]:
    """Returns the matrices by which ``phase`` multiplies all its rows."""
    match phase.operation:
        case FusedLinear(linears):
            return linears
        case FusedGlu(gate, up):
            return gate, up
        case FusedExperts(shared=SharedExpert(gate, up, down)):
            return gate, up, down
        case _:
            return ()
