"""The decoder in training: experts in stacks, loads counted, choices replayed, balance kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.engine.batch import Batch
from freedive.model import spec
from freedive.model.decoder import draft_norm, draft_states, states
from freedive.model.params import Param, params
from freedive.ops.torch import TorchOps
from freedive.train.experts import GroupedFeedForward
from freedive.train.fused import FusedAttention, FusedCrossEntropy, FusedFeedForward, FusedLinear, FusedRmsNorm
from freedive.train.loss import ChunkedCrossEntropy

Weights = dict[str, Tensor]
Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

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


def stacked(weights: Mapping[str, Tensor]) -> Weights:
    """Canonical weights with a layer's experts in one."""
    table: Weights = {}
    stacks: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        if match := _EXPERT.fullmatch(name):
            stacks.setdefault(f"{match['stack']}.{match['part']}", []).append(weight)
        else:
            table[name] = weight
    return table | {name: torch.stack(experts) for name, experts in stacks.items()}


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
    """Texts laid end to end, T tokens in all, of which none sees another.

    ``tokens``, ``targets`` int64 [T]: what is read, and what follows; ``weights`` float32 [T] of the targets' losses;
    ``lengths`` int64 [texts].
    """

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[tuple[Ints, Floats]]) -> Sequences:
        """Of texts' tokens and their weights, one more of each than there will be rows."""
        return cls(
            np.concatenate([tokens[:-1] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([tokens[1:] for tokens, _ in texts], dtype=np.int64),
            np.concatenate([weights[1:] for _, weights in texts], dtype=np.float32),
            np.array([len(tokens) - 1 for tokens, _ in texts]),
        )

    def split(self, num_tokens: int) -> Iterator[Sequences]:
        """Parts of whole texts, of at most ``num_tokens`` where a text is not longer than that."""
        ends, first = np.cumsum(self.lengths), 0
        while first < len(ends):
            begin = int(ends[first] - self.lengths[first])
            stop = max(first + 1, int(np.searchsorted(ends, begin + num_tokens, "right")))
            rows = slice(begin, int(ends[stop - 1]))
            yield Sequences(self.tokens[rows], self.targets[rows], self.weights[rows], self.lengths[first:stop])
            first = stop

    def further(self) -> Sequences:
        """The same one token further: what follows is read, and what comes after it to be told."""
        ends = np.cumsum(self.lengths) - 1
        targets, weights = np.roll(self.targets, -1), np.roll(self.weights, -1)
        weights[ends] = 0
        return Sequences(self.targets, targets, weights, self.lengths)

    @property
    def mean_context(self) -> float:
        """How many tokens a token's text has, on average."""
        return float((self.lengths**2).sum() / self.lengths.sum())


class TrainOps(TorchOps):
    """Operations on whole texts, over stacked experts.

    ``chosen`` [T, k] of every mixture are kept; with ``replay`` they are what was chosen before. ``balance`` collects
    each mixture's sequence-wise loss (DeepSeek-V3, section 2.1.2, equations 17 to 20).
    """

    def __init__(self, batch: Sequences, replay: Sequence[Tensor] = ()) -> None:
        lengths, rows = batch.lengths.astype(np.int32), np.arange(len(batch.tokens), dtype=np.int32)
        pages = np.zeros((len(lengths), 1), np.int32)
        super().__init__(Batch(batch.tokens.astype(np.int32), lengths, 0 * lengths, pages, rows, lengths))
        self._lengths = torch.from_numpy(batch.lengths)
        self._begins = F.pad(self._lengths.cumsum(0), (1, 0))
        self._text = torch.arange(len(lengths)).repeat_interleave(self._lengths)
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
        part = self._by_text(scores / scores.sum(-1, keepdim=True))
        took = self._by_text(torch.zeros_like(scores).scatter_(1, self.chosen[-1], 1.0))
        self.balance.append((part * took).sum(-1).mean() * (router.num_experts / router.num_chosen))
        return routes

    def _by_text(self, x: Tensor) -> Tensor:
        """The mean over each text's tokens: [T, n] -> [texts, n]."""
        return x.new_zeros(len(self._lengths), x.shape[1]).index_add(0, self._text, x) / self._lengths[:, None]

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

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, attn: spec.Attention, layer: int
    ) -> Tensor:
        if attn.window or attn.chunk or attn.softcap or sinks is not None or not _fits(q, k, v):
            return super().attention(q, k, v, sinks, attn, layer)
        shared = attn.num_heads // attn.num_kv_heads
        keys, values = (x.view(len(x), attn.num_kv_heads, -1).repeat_interleave(shared, 1) for x in (k, v))
        return self._attended(q.view(len(q), attn.num_heads, -1), keys, values, attn.scale)

    def latent_attention(
        self, q: Tensor, kv: Tensor, norm: Tensor, k_b: Tensor, v_b: Tensor, attn: spec.LatentAttention, layer: int
    ) -> Tensor:
        if attn.head_dim != attn.value_dim or not _fits(q, kv, norm, k_b, v_b):
            return super().latent_attention(q, kv, norm, k_b, v_b, attn, layer)
        latent, turning = kv[:, : attn.kv_rank], kv[:, attn.kv_rank :]
        latent, turning = self.rms_norm(latent, norm, attn.latent_eps), self.rope(turning, attn.rope, attn.rope_dim)
        heads = (len(q), attn.num_heads, -1)
        keys, values = (self.linear(latent, matrix.flatten(0, 1), None).view(heads) for matrix in (k_b, v_b))
        keys = torch.cat([keys, turning[:, None].expand(-1, attn.num_heads, -1)], -1)
        return self._attended(self._latent_queries(q, k_b, attn).view(heads), keys, values, attn.scale)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Of heads [T, heads, dim], within each text: [T, heads * dim]."""
        y: Tensor = FusedAttention.apply(q, k, v, self._begins, scale)  # type: ignore[no-untyped-call]
        return y.flatten(1)

    def experts(self, x: Tensor, routes: Tensor, moe: spec.Experts, weights: Mapping[str, Tensor]) -> Tensor:
        _, shares = routes.unbind(1)
        chosen = self.chosen[-1]
        function = FusedFeedForward if _fits(x, shares, *weights.values()) else GroupedFeedForward
        y: Tensor = function.apply(x, shares, chosen, weights["gate"], weights["up"], weights["down"])  # type: ignore[no-untyped-call]
        return y


def _fits(*tensors: Tensor) -> bool:
    """Whether our kernels take them; torch takes the rest."""
    return all(tensor.dtype == torch.float32 for tensor in tensors)


def losses(model: spec.Model, weights: Weights, batch: Sequences, ops: TrainOps, mtp_share: float = 0.0) -> Tensor:
    """The sum of the weighted losses of all tokens, in nats.

    ``mtp_share`` of the loss of the tokens after the next is added where the model predicts them (DeepSeek-V3, section
    2.2). That layer's choices and balance follow the others' in ``ops``.
    """
    x = states(model, weights, ops)
    loss = _loss_of(model, weights, batch, x, "norm", ops)
    if model.mtp:
        further = batch.further()
        then = TrainOps(further)
        x = draft_states(model, model.mtp, weights, x, then)
        loss = loss + mtp_share * _loss_of(model, weights, further, x, draft_norm(model), then)
        ops.chosen += then.chosen
        ops.balance += then.balance
    return loss


def _loss_of(model: spec.Model, weights: Weights, batch: Sequences, x: Tensor, norm: str, ops: TrainOps) -> Tensor:
    counted = torch.from_numpy(batch.weights).nonzero()[:, 0]
    targets, shares = (torch.from_numpy(part)[counted] for part in (batch.targets, batch.weights))
    last = ops.rms_norm(_some(x, counted), weights[norm], model.norm_eps)
    return weighted_loss(last, output_matrix(model, weights), targets, shares)


def last_states(model: spec.Model, weights: Weights, ops: TrainOps, rows: Tensor) -> Tensor:
    """What the output matrix is multiplied with, of some ``rows`` of the batch: [len(rows), hidden]."""
    return ops.rms_norm(_some(states(model, weights, ops), rows), weights["norm"], model.norm_eps)


def _some(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows) if len(rows) < len(x) else x


def output_matrix(model: spec.Model, weights: Weights) -> Tensor:
    """[vocab, hidden]."""
    return weights["embed" if model.tied else "head"]


def weighted_loss(x: Tensor, head: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """The sum of ``shares`` times the cross-entropy of ``targets``, in nats, over rows of last states."""
    function = FusedCrossEntropy if _fits(x, head, shares) else ChunkedCrossEntropy
    total: Tensor = function.apply(x, head, targets, shares)  # type: ignore[no-untyped-call]
    return total


def mixtures(model: spec.Model) -> list[int]:
    """The layers that have experts; one of multi-token prediction is the last."""
    return [index for index, layer in enumerate(model.blocks) if isinstance(layer.ffn, spec.Experts)]


def step_flops(model: spec.Model, length: float) -> float:
    """Operations of training on one token: six for each weight that it meets, and attention's over half its text."""
    size = 0.0
    for name, param in stacked_params(model).items():
        if param.role in ("embedding", "norm", "bias"):
            continue
        share = 1.0
        if ".experts." in name:
            layer = model.blocks[int(name.split(".")[1])].ffn
            assert isinstance(layer, spec.Experts)
            share = layer.router.num_chosen / layer.router.num_experts
        size += share * param.size
    attention = sum(
        layer.attention.num_heads * length * (layer.attention.head_dim + layer.attention.value_dim) / 2
        for layer in model.blocks
        if isinstance(layer.attention, spec.LatentAttention)
    )
    return 6.0 * (size + attention)
