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
        stack, index = stack_of(name)
        table[stack] = param if index is None else replace(param, shape=(index + 1, *param.shape))
    return table


def stack_of(name: str) -> tuple[str, int | None]:
    """The stack that holds the canonical weight ``name``, and where; itself for what is none of an expert's."""
    if match := _EXPERT.fullmatch(name):
        return f"{match['stack']}.{match['part']}", int(match["index"])
    return name, None


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
    """Rows of one length: ``tokens``, ``targets`` int64 [N, L]; ``weights`` float32 [N, L] of the targets' losses.

    With ``lengths`` all that is one row, [1, T], of texts so long that do not see each other.
    """

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    lengths: tuple[int, ...] = ()

    def split(self, rows: int) -> Iterator[Sequences]:
        """At most ``rows`` at a time."""
        for begin in range(0, len(self.tokens), rows):
            part = slice(begin, begin + rows)
            yield Sequences(self.tokens[part], self.targets[part], self.weights[part])


class TrainOps(TorchOps):
    """Operations on whole sequences, all of one length unless ``lengths`` say otherwise, over stacked experts.

    ``chosen`` [T, k] of every mixture are kept; with ``replay`` they are what was chosen before. ``balance`` collects
    each mixture's sequence-wise loss (DeepSeek-V3, section 2.1.2, equations 17 to 20).
    """

    def __init__(
        self, tokens: npt.NDArray[np.int64], replay: Sequence[Tensor] = (), lengths: Sequence[int] = ()
    ) -> None:
        self._shape = num, length = tokens.shape
        rows, sizes = np.arange(tokens.size, dtype=np.int32), np.array(lengths or [length] * num, np.int32)
        pages = np.zeros((len(sizes), 1), np.int32)
        super().__init__(Batch(tokens.ravel().astype(np.int32), sizes, 0 * sizes, pages, rows, sizes))
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

    def experts(self, x: Tensor, routes: Tensor, moe: spec.Experts, weights: Mapping[str, Tensor]) -> Tensor:
        if not (_grouped(moe) and _wants_gradients(weights["gate"])):
            return super().experts(x, routes, moe, Each(weights))
        _, shares = routes.unbind(1)
        chosen = self.chosen[-1]
        y: Tensor = GroupedFeedForward.apply(x, shares, chosen, weights["gate"], weights["up"], weights["down"])  # type: ignore[no-untyped-call]
        return y


class Each(Mapping[str, Tensor]):
    """Stacks, of which ``3.gate`` is the matrix of the fourth expert; each is taken apart but once, gradients too."""

    def __init__(self, stacks: Mapping[str, Tensor]) -> None:
        self._experts = {name: stack.unbind() for name, stack in stacks.items()}

    def __getitem__(self, name: str) -> Tensor:
        index, _, part = name.partition(".")
        return self._experts[part][int(index)]

    def __iter__(self) -> Iterator[str]:
        return (f"{index}.{part}" for part, each in self._experts.items() for index in range(len(each)))

    def __len__(self) -> int:
        return sum(map(len, self._experts.values()))


def _grouped(moe: spec.Experts) -> bool:
    """Whether the experts are such as :class:`GroupedFeedForward` computes."""
    expert = moe.expert
    return expert.activation == "silu" and not (expert.bias or expert.limit or moe.router.weighs_input)


def _wants_gradients(stack: object) -> bool:
    """Whether a stack is trained itself: :class:`GroupedFeedForward` would make its gradient for nothing else."""
    return isinstance(stack, Tensor) and (stack.requires_grad or not torch.is_grad_enabled())


def losses(model: spec.Model, weights: Mapping[str, Tensor], batch: Sequences, ops: TrainOps) -> Tensor:
    """The sum of the weighted losses of all tokens, in nats."""
    x = ops.rms_norm(states(model, weights, ops), weights["norm"], model.norm_eps)
    head, bias = weights["embed" if model.tied else "head"], weights.get("head_bias")
    if model.logit_scale != 1.0:
        x, bias = x * model.logit_scale, None if bias is None else bias * model.logit_scale
    targets, share = torch.from_numpy(batch.targets.ravel()), torch.from_numpy(batch.weights.ravel())
    total: Tensor = ChunkedCrossEntropy.apply(x, head, targets, share, bias, model.logit_softcap)  # type: ignore[no-untyped-call]
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
    attention = sum(_attended_dim(layer.attention) * length / 2 for layer in model.layers)
    return 6.0 * (size + attention)


def _attended_dim(attn: spec.Attention | spec.LatentAttention) -> int:
    """Of keys and values, for all queries of a token."""
    value_dim = attn.value_dim if isinstance(attn, spec.LatentAttention) else attn.head_dim
    return attn.num_heads * (attn.head_dim + value_dim)
