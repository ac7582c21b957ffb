"""The decoder in training: weights with stacked experts, their initialization, and the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from freedive.model import spec
from freedive.model.decoder import draft_norm, draft_states, states
from freedive.model.params import Param, expert_of, params
from freedive.train.data.sequences import Sequences
from freedive.train.model.fused import FusedCrossEntropy
from freedive.train.model.loss import ChunkedCrossEntropy
from freedive.train.model.ops import TrainOps, fits

Weights = dict[str, Tensor]

CHOICE_BIAS = "choice_bias"
"""What moves by counting, not by gradients."""

EMBEDDING_STD = 0.02
CONV_STD = 0.5


def stacked_params(model: spec.ModelSpec) -> dict[str, Param]:
    """The weights of ``model``; those of a layer's experts are one, ``...experts.gate`` [experts, out, in]."""
    table: dict[str, Param] = {}
    for name, param in params(model).items():
        stack, index = stack_of(name)
        table[stack] = param if index is None else replace(param, shape=(index + 1, *param.shape))
    return table


def stacked(weights: Mapping[str, Tensor]) -> Weights:
    """Canonical weights with a layer's experts in one."""
    table: Weights = {}
    stacks: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        stack, index = stack_of(name)
        if index is None:
            table[name] = weight
        else:
            stacks.setdefault(stack, []).append(weight)
    return table | {name: torch.stack(experts) for name, experts in stacks.items()}


def stack_of(name: str) -> tuple[str, int | None]:
    """The stack that holds the canonical weight ``name``, and where; itself for what is none of an expert's."""
    if expert := expert_of(name):
        stack, index, part = expert
        return f"{stack}.{part}", index
    return name, None


def unstacked(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Canonical weights, as views."""
    for name, weight in weights.items():
        stack, _, part = name.rpartition(".")
        if stack.endswith(".experts"):
            yield from ((f"{stack}.{index}.{part}", each) for index, each in enumerate(weight))
        else:
            yield name, weight


def initial(model: spec.ModelSpec, seed: int) -> Weights:
    """Random weights, float32: branches begin small, biases at 0, norms at 1."""
    source = torch.Generator().manual_seed(seed)
    depth = (2 * len(model.layers)) ** -0.5

    def make(name: str, param: Param) -> Tensor:
        if param.role == "conv":
            return torch.empty(param.shape).normal_(0.0, CONV_STD, generator=source)
        if param.role in ("norm", "bias"):
            return torch.full(param.shape, float(param.role == "norm"))
        small = param.role in ("embedding", "router") or name == "head"
        std = EMBEDDING_STD if small else param.shape[-1] ** -0.5
        if name.endswith((".o", ".out", ".down")):
            std *= depth
        return torch.empty(param.shape).normal_(0.0, std, generator=source)

    return {name: make(name, param) for name, param in stacked_params(model).items()}


def losses(
    model: spec.ModelSpec, weights: Mapping[str, Tensor], batch: Sequences, ops: TrainOps, mtp_share: float = 0.0
) -> Tensor:
    """The sum of the weighted losses of all tokens, in nats.

    ``mtp_share`` of the loss of the tokens after the next is added where the model predicts them (DeepSeek-V3, section
    2.2). That layer's choices and balance follow the others' in ``ops``.
    """
    x = states(model, weights, ops)
    loss = _loss_of(model, weights, batch, x, "norm", ops)
    if model.mtp:
        further = batch.further()
        then = TrainOps(further, precision=ops.precision)
        x = draft_states(model, model.mtp, weights, x, then)
        loss = loss + mtp_share * _loss_of(model, weights, further, x, draft_norm(model), then)
        ops.chosen += then.chosen
        ops.balance += then.balance
        ops.entropy += then.entropy
    return loss


def _loss_of(
    model: spec.ModelSpec, weights: Mapping[str, Tensor], batch: Sequences, x: Tensor, norm: str, ops: TrainOps
) -> Tensor:
    counted = torch.from_numpy(batch.weights).nonzero()[:, 0]
    targets, shares = (torch.from_numpy(part)[counted] for part in (batch.targets, batch.weights))
    last = ops.rms_norm(_some(x, counted), weights[norm], model.norm_eps)
    head, bias = output_matrix(model, weights), weights.get("head_bias")
    if model.logit_scale != 1.0:
        last, bias = last * model.logit_scale, None if bias is None else bias * model.logit_scale
    if bias is None and not model.logit_softcap:
        return weighted_loss(last, head, targets, shares, ops.precision)
    total: Tensor = ChunkedCrossEntropy.apply(last, head, targets, shares, bias, model.logit_softcap)  # type: ignore[no-untyped-call]
    return total


def last_states(model: spec.ModelSpec, weights: Mapping[str, Tensor], ops: TrainOps, rows: Tensor) -> Tensor:
    """What the output matrix is multiplied with, of some ``rows`` of the batch: [len(rows), hidden]."""
    return ops.rms_norm(_some(states(model, weights, ops), rows), weights["norm"], model.norm_eps)


def _some(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows) if len(rows) < len(x) else x


def output_matrix(model: spec.ModelSpec, weights: Mapping[str, Tensor]) -> Tensor:
    """[vocab, hidden]."""
    return weights["embed" if model.tied else "head"]


def weighted_loss(x: Tensor, head: Tensor, targets: Tensor, shares: Tensor, precision: str) -> Tensor:
    """The sum of ``shares`` times the cross-entropy of ``targets``, in nats, over rows of last states."""
    if not fits(x, head, shares):
        total: Tensor = ChunkedCrossEntropy.apply(x, head, targets, shares)  # type: ignore[no-untyped-call]
    else:
        total = FusedCrossEntropy.apply(precision, x, head, targets, shares)  # type: ignore[no-untyped-call]
    return total


def mixtures(model: spec.ModelSpec) -> list[int]:
    """The layers that have experts; one of multi-token prediction is the last."""
    return [index for index, layer in enumerate(model.blocks) if isinstance(layer.ffn, spec.Experts)]


def step_flops(model: spec.ModelSpec, length: float) -> float:
    """Operations of training on one token: six for each weight that it meets, and attention's over half its text."""
    size = 0.0
    for name, param in stacked_params(model).items():
        if param.role in ("embedding", "norm", "bias", "conv"):
            continue
        share = 1.0
        if ".experts." in name:
            layer = model.blocks[int(name.split(".")[1])].ffn
            assert isinstance(layer, spec.Experts)
            share = layer.router.num_chosen / layer.router.num_experts
        size += share * param.size
    attention = sum(
        _attended_dim(layer.mixer) * length / 2
        for layer in model.blocks
        if isinstance(layer.mixer, spec.Attention | spec.LatentAttention)
    )
    return 6.0 * (size + attention)


def _attended_dim(attn: spec.Attention | spec.LatentAttention) -> int:
    """Of keys and values, for all queries of a token."""
    value_dim = attn.value_dim if isinstance(attn, spec.LatentAttention) else attn.head_dim
    return attn.num_heads * (attn.head_dim + value_dim)
