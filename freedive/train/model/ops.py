"""The decoder's operations in training: freedive's kernels for float32, else torch; they record the routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.model import spec
from freedive.model.batch import Batch
from freedive.ops.torch import TorchOps
from freedive.train.data.sequences import Sequences
from freedive.train.model.experts import GroupedFeedForward
from freedive.train.model.fused import FusedAttention, FusedFeedForward, FusedLinears, FusedRmsNorm
from freedive.train.model.kernels import FLOAT32


class TrainOps(TorchOps):
    """Operations on packed documents with stacked experts.

    ``chosen`` [T, k] records the routes of every mixture; ``replay`` gives routes to use instead of new ones.
    ``balance`` collects each mixture's sequence-wise balance loss (DeepSeek-V3, section 2.1.2, equations 17 to 20),
    ``entropy`` the entropy of its router's probabilities, divided by its maximum.
    """

    def __init__(self, batch: Sequences, replay: Sequence[Tensor] = (), precision: str = FLOAT32) -> None:
        lengths, rows = batch.lengths.astype(np.int32), np.arange(len(batch.tokens), dtype=np.int32)
        pages = np.zeros((len(lengths), 1), np.int32)
        super().__init__(Batch(batch.tokens.astype(np.int32), lengths, 0 * lengths, pages, rows, lengths))
        self._lengths = torch.from_numpy(batch.lengths)
        self._begins = F.pad(self._lengths.cumsum(0), (1, 0))
        self._replay = iter(replay)
        self.precision = precision
        self.chosen: list[Tensor] = []
        self.balance: list[Tensor] = []
        self.entropy: list[Tensor] = []

    def select(self, x: Tensor) -> Tensor:
        return x

    def choose(self, merit: Tensor, router: spec.Router) -> Tensor:
        replayed = next(self._replay, None)
        self.chosen.append(super().choose(merit, router) if replayed is None else replayed)
        return self.chosen[-1]

    def route(
        self, logits: Tensor, router: spec.Router, choice_bias: Tensor | None, expert_scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        routes = super().route(logits, router, choice_bias, expert_scale)
        scores = logits.float().sigmoid() if router.score == "sigmoid" else logits.float().softmax(-1)
        probs = scores / scores.sum(-1, keepdim=True)
        self.entropy.append(torch.special.entr(probs.detach()).sum(-1).mean() / log(router.num_experts))
        mean_probs = self._by_text(probs)
        chosen = self._by_text(torch.zeros_like(scores).scatter_(1, self.chosen[-1], 1.0))
        self.balance.append((mean_probs * chosen).sum(-1).mean() * (router.num_experts / router.num_chosen))
        return routes

    def _by_text(self, x: Tensor) -> Tensor:
        """Averages over the tokens of each document: [T, n] -> [documents, n]."""
        return torch.segment_reduce(x, "mean", lengths=self._lengths)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        # Nothing else uses a branch's result; torch raises an error if a gradient needs it.
        return y.add_(x)

    def rms_norm(self, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        if weight is None or x.dim() > 2 or not fits(x, weight):
            return super().rms_norm(x, weight, eps)
        y: Tensor = FusedRmsNorm.apply(self.precision, x, weight, eps)  # type: ignore[no-untyped-call]
        return y

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None or x.dim() > 2 or not fits(x, weight):
            return super().linear(x, weight, bias)
        return _linears(self.precision, x, weight)[0]

    def router_logits(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given, self.precision = self.precision, FLOAT32
        logits = self.linear(x, weight, bias)
        self.precision = given
        return logits

    def linears(self, x: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]]) -> Sequence[Tensor]:
        weights, biases = zip(*layers, strict=True)
        if any(bias is not None for bias in biases) or not fits(x, *weights):
            return super().linears(x, layers)
        return _linears(self.precision, x, *weights)

    def feed_forward(self, x: Tensor, ffn: spec.FeedForward, weights: Mapping[str, Tensor]) -> Tensor:
        stacks = [weights[name] for name in ("gate", "up", "down")]
        if not (_plain(ffn) and fits(x, *stacks) and _wants_gradients(stacks[0])):
            return super().feed_forward(x, ffn, weights)
        # The network is computed as a mixture of one expert.
        alone = torch.ones(len(x), 1), torch.zeros(len(x), 1, dtype=torch.int64)
        y: Tensor = FusedFeedForward.apply(self.precision, x, *alone, *(stack[None] for stack in stacks))  # type: ignore[no-untyped-call]
        return y

    def attention(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, sinks: Tensor | None, attn: spec.Attention, layer: int
    ) -> Tensor:
        k, v = self._keys_and_values(k, v, attn, layer)
        limited = attn.window or attn.chunk or attn.softcap or sinks is not None or attn.v_head_dim != attn.head_dim
        if limited or k is None or v is None or not fits(q, k, v):
            return super().attention(q, k, v, sinks, attn, layer)
        shared = attn.num_heads // attn.num_kv_heads
        keys, values = (x.view(len(x), attn.num_kv_heads, -1).repeat_interleave(shared, 1) for x in (k, v))
        return self._attended(q.view(len(q), attn.num_heads, -1), keys, values, attn.scale)

    def latent_attention(
        self, q: Tensor, kv: Tensor, norm: Tensor, k_b: Tensor, v_b: Tensor, attn: spec.LatentAttention, layer: int
    ) -> Tensor:
        fused = attn.head_dim == attn.value_dim and fits(q, kv, norm, k_b, v_b)
        if not fused or attn.rope is None or attn.rope.dim != attn.rope_dim:
            return super().latent_attention(q, kv, norm, k_b, v_b, attn, layer)
        latent, turning = torch.split(kv, [attn.kv_rank, attn.rope_dim], 1)
        latent = self.rms_norm(latent, norm, attn.latent_eps)
        made = self.linears(latent, [(matrix.flatten(0, 1), None) for matrix in (k_b, v_b)])
        keys, values = (x.view(len(q), attn.num_heads, -1) for x in made)
        turned = turning, self._angles(attn.rope), attn.rope.interleaved
        return self._attended(q.view(len(q), attn.num_heads, -1), keys, values, attn.scale, *turned)

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        turning: Tensor | None = None,
        angles: Tensor | None = None,
        neighbours: bool = False,
    ) -> Tensor:
        """Computes attention within each document over heads [T, heads, dim]; returns [T, heads * dim]."""
        y: Tensor = FusedAttention.apply(self.precision, q, k, v, turning, self._begins, scale, angles, neighbours)  # type: ignore[no-untyped-call]
        return y.flatten(1)

    def experts(
        self,
        x: Tensor,
        logits: Tensor,
        moe: spec.Experts,
        weights: Mapping[str, Tensor],
        choice_bias: Tensor | None,
        expert_scale: Tensor | None,
    ) -> Tensor:
        if moe.router.weighs_input or not (_plain(moe.expert) and _wants_gradients(weights["gate"])):
            return super().experts(x, logits, moe, Each(weights), choice_bias, expert_scale)
        chosen, shares = self.route(logits, moe.router, choice_bias, expert_scale)
        given = x, shares, chosen, weights["gate"], weights["up"], weights["down"]
        if not fits(x, shares, *weights.values()):
            y: Tensor = GroupedFeedForward.apply(*given)  # type: ignore[no-untyped-call]
        else:
            y = FusedFeedForward.apply(self.precision, *given)  # type: ignore[no-untyped-call]
        return y


def fits(*tensors: object) -> bool:
    """Returns whether all arguments are float32 tensors, which freedive's kernels need; torch computes the rest."""
    return all(isinstance(each, Tensor) and each.dtype == torch.float32 for each in tensors)


def _linears(precision: str, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    ys: tuple[Tensor, ...] = FusedLinears.apply(precision, x, *weights)  # type: ignore[no-untyped-call]
    return ys


class Each(Mapping[str, Tensor]):
    """Maps ``3.gate`` to the matrix of expert 3 in a stack; each stack is unbound once, and so are its gradients."""

    def __init__(self, stacks: Mapping[str, Tensor]) -> None:
        self._experts = {name: stack.unbind() for name, stack in stacks.items()}

    def __getitem__(self, name: str) -> Tensor:
        index, _, part = name.partition(".")
        return self._experts[part][int(index)]

    def __iter__(self) -> Iterator[str]:
        return (f"{index}.{part}" for part, each in self._experts.items() for index in range(len(each)))

    def __len__(self) -> int:
        return sum(map(len, self._experts.values()))


def _plain(expert: spec.FeedForward) -> bool:
    """Returns whether :class:`GroupedFeedForward` supports such an expert: SiLU without biases or limits."""
    return expert.activation == "silu" and not (expert.bias or expert.limit)


def _wants_gradients(stack: object) -> bool:
    """Returns whether a stack itself is trained; :class:`GroupedFeedForward` always computes its gradient."""
    return isinstance(stack, Tensor) and (stack.requires_grad or not torch.is_grad_enabled())
