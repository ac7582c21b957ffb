"""The decoder in training: experts in stacks, loads counted, choices replayed, balance kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freedive.engine.batch import Batch
from freedive.model import spec
from freedive.model.decoder import states
from freedive.model.params import Param, params
from freedive.ops.torch import TorchOps
from freedive.train.experts import GroupedFeedForward
from freedive.train.fused import FusedAttention, FusedCrossEntropy, FusedFeedForward, FusedLinear, FusedRmsNorm
from freedive.train.loss import ChunkedCrossEntropy

Weights = dict[str, Tensor]

CHOICE_BIAS = "choice_bias"
"""What moves by counting, not by gradients."""

EMBEDDING_STD = 0.02

_EXPERT = re.compile(r"(?P<stack>.+\.experts)\.(?P<index>\d+)\.(?P<part>\w+)")


def stacked_params(model: spec.Model) -> dict[str, Param]:
    """The weights of ``model``; those of a layer's experts are one, ``...experts.gate`` [experts, out, in]."""
    table: dict[str, Param] = {}
    for name, param in params(model).items():
        if match := _EXPERT.fullmatch(name):
            name = f"{match['stack']}.{match['part']}"
            param = replace(param, shape=(int(match["index"]) + 1, *param.shape))
        table[name] = param
    return table


def unstacked(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Canonical weights, as views."""
    for name, weight in weights.items():
        stack, _, part = name.rpartition(".")
        if stack.endswith(".experts"):
            yield from ((f"{stack}.{index}.{part}", each) for index, each in enumerate(weight))
        else:
            yield name, weight


def initial(model: spec.Model, seed: int) -> Weights:
    """Random weights, float32: branches begin small, biases at 0, norms at 1."""
    source = torch.Generator().manual_seed(seed)
    depth = (2 * len(model.layers)) ** -0.5

    def make(name: str, param: Param) -> Tensor:
        if param.role in ("norm", "bias"):
            return torch.full(param.shape, float(param.role == "norm"))
        small = param.role in ("embedding", "router") or name == "head"
        std = EMBEDDING_STD if small else param.shape[-1] ** -0.5
        if name.endswith((".o", ".down")):
            std *= depth
        return torch.empty(param.shape).normal_(0.0, std, generator=source)

    return {name: make(name, param) for name, param in stacked_params(model).items()}


@dataclass(frozen=True)
class Sequences:
    """Rows of one length: ``tokens``, ``targets`` int64 [N, L]; ``weights`` float32 [N, L] of the targets' losses."""

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def split(self, rows: int) -> Iterator[Sequences]:
        """At most ``rows`` at a time."""
        for begin in range(0, len(self.tokens), rows):
            part = slice(begin, begin + rows)
            yield Sequences(self.tokens[part], self.targets[part], self.weights[part])


class TrainOps(TorchOps):
    """Operations on whole sequences of one length, over stacked experts.

    ``chosen`` [T, k] of every mixture are kept; with ``replay`` they are what was chosen before. ``balance`` collects
    each mixture's sequence-wise loss (DeepSeek-V3, section 2.1.2, equations 17 to 20).
    """

    def __init__(self, tokens: npt.NDArray[np.int64], replay: Sequence[Tensor] = ()) -> None:
        self._shape = num, length = tokens.shape
        rows, lengths = np.arange(tokens.size, dtype=np.int32), np.full(num, length, np.int32)
        pages = np.zeros((num, 1), np.int32)
        super().__init__(Batch(tokens.ravel().astype(np.int32), lengths, 0 * lengths, pages, rows, lengths))
        self._replay = iter(replay)
        self.chosen: list[Tensor] = []
        self.balance: list[Tensor] = []

    def select(self, x: Tensor) -> Tensor:
        return x

    def choose(self, merit: Tensor, router: spec.Router) -> Tensor:
        replayed = next(self._replay, None)
        self.chosen.append(super().choose(merit, router) if replayed is None else replayed)
        return self.chosen[-1]

    def route(
        self, logits: Tensor, router: spec.Router, choice_bias: Tensor | None, expert_scale: Tensor | None
    ) -> Tensor:
        routes = super().route(logits, router, choice_bias, expert_scale)
        scores = logits.float().sigmoid() if router.score == "sigmoid" else logits.float().softmax(-1)
        part = (scores / scores.sum(-1, keepdim=True)).view(*self._shape, -1).mean(1)
        took = torch.zeros_like(scores).scatter_(1, self.chosen[-1], 1.0).view(*self._shape, -1).mean(1)
        self.balance.append((part * took).sum(-1).mean() * (router.num_experts / router.num_chosen))
        return routes

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        if weight is None or x.dim() > 2 or not _fits(x, weight):
            return super().rms_norm(x, weight, eps)
        y: Tensor = FusedRmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return y

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None or x.dim() > 2 or not _fits(x, weight):
            return super().linear(x, weight, bias)
        y: Tensor = FusedLinear.apply(x, weight)  # type: ignore[no-untyped-call]
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, start: int, attn: spec.Attention, sinks: Tensor | None) -> Tensor:
        same = q.shape == k.shape == v.shape
        if attn.window or attn.chunk or attn.softcap or sinks is not None or not same or not _fits(q, k, v):
            return super().attend(q, k, v, start, attn, sinks)
        y: Tensor = FusedAttention.apply(q, k, v, attn.scale)  # type: ignore[no-untyped-call]
        return y.flatten(0, 1).flatten(1)

    def experts(self, x: Tensor, routes: Tensor, moe: spec.Experts, weights: Mapping[str, Tensor]) -> Tensor:
        _, shares = routes.unbind(1)
        chosen = self.chosen[-1]
        function = FusedFeedForward if _fits(x, shares, *weights.values()) else GroupedFeedForward
        y: Tensor = function.apply(x, shares, chosen, weights["gate"], weights["up"], weights["down"])  # type: ignore[no-untyped-call]
        return y


def _fits(*tensors: Tensor) -> bool:
    """Whether our kernels take them; torch takes the rest."""
    return all(tensor.dtype == torch.float32 for tensor in tensors)


def losses(model: spec.Model, weights: Weights, batch: Sequences, ops: TrainOps) -> Tensor:
    """The sum of the weighted losses of all tokens, in nats."""
    x = ops.rms_norm(states(model, weights, ops), weights["norm"], model.norm_eps)
    head = weights["embed" if model.tied else "head"]
    targets, share = torch.from_numpy(batch.targets.ravel()), torch.from_numpy(batch.weights.ravel())
    function = FusedCrossEntropy if _fits(x, head, share) else ChunkedCrossEntropy
    total: Tensor = function.apply(x, head, targets, share)  # type: ignore[no-untyped-call]
    return total


def mixtures(model: spec.Model) -> list[int]:
    """The layers that have experts."""
    return [index for index, layer in enumerate(model.layers) if isinstance(layer.ffn, spec.Experts)]


def step_flops(model: spec.Model, length: int) -> float:
    """Operations of training on one token: six for each weight that it meets, and attention's."""
    size = 0.0
    for name, param in stacked_params(model).items():
        if param.role in ("embedding", "norm", "bias"):
            continue
        share = 1.0
        if ".experts." in name:
            layer = model.layers[int(name.split(".")[1])].ffn
            assert isinstance(layer, spec.Experts)
            share = layer.router.num_chosen / layer.router.num_experts
        size += share * param.size
    attention = sum(
        layer.attention.num_heads * length * (layer.attention.head_dim + layer.attention.value_dim) / 2
        for layer in model.layers
        if isinstance(layer.attention, spec.LatentAttention)
    )
    return 6.0 * (size + attention)
