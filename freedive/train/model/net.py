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
"""Suffix of the router's choice bias, which follows the experts' loads and has no gradient."""

EMBEDDING_STD = 0.02
CONV_STD = 0.5


def stacked_params(model: spec.ModelSpec) -> dict[str, Param]:
    """Returns the weights of ``model``; those of a layer's experts are one stack, ``...experts.gate`` [experts, out,
    in]."""
    table: dict[str, Param] = {}
    for name, param in params(model).items():
        stack, index = stack_of(name)
        table[stack] = param if index is None else replace(param, shape=(index + 1, *param.shape))
    return table


def stacked(weights: Mapping[str, Tensor]) -> Weights:
    """Stacks the experts of each layer in canonical weights."""
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
    """Returns the stack and the index of the canonical weight ``name``; a weight of no expert is its own
    stack (None)."""
    if expert := expert_of(name):
        stack, index, part = expert
        return f"{stack}.{part}", index
    return name, None


def unstacked(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields canonical weights as views of stacked ones."""
    for name, weight in weights.items():
        stack, _, part = name.rpartition(".")
        if stack.endswith(".experts"):
            yield from ((f"{stack}.{index}.{part}", each) for index, each in enumerate(weight))
        else:
            yield name, weight


def initial(model: spec.ModelSpec, seed: int) -> Weights:
    """Returns random float32 weights: small ones for the outputs of branches, 0 for biases and 1 for norms."""
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
    """Returns the sum of the weighted losses of all tokens, in nats.

    If the model has multi-token prediction, ``mtp_share`` times its loss is added (DeepSeek-V3, section 2.2). The
    routes and balance losses of its layer are appended to those in ``ops``.
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
    """Returns the normalised states [len(rows), hidden] of some ``rows`` of the batch, the input of the
    output matrix."""
    return ops.rms_norm(_some(states(model, weights, ops), rows), weights["norm"], model.norm_eps)


def _some(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows) if len(rows) < len(x) else x


def output_matrix(model: spec.ModelSpec, weights: Mapping[str, Tensor]) -> Tensor:
    """Returns the output matrix, [vocab, hidden]."""
    return weights["embed" if model.tied else "head"]


def weighted_loss(x: Tensor, head: Tensor, targets: Tensor, shares: Tensor, precision: str) -> Tensor:
    """Returns the sum of ``shares`` times the cross-entropy of ``targets``, in nats, over rows of last states."""
    if not fits(x, head, shares):
        total: Tensor = ChunkedCrossEntropy.apply(x, head, targets, shares)  # type: ignore[no-untyped-call]
    else:
        total = FusedCrossEntropy.apply(precision, x, head, targets, shares)  # type: ignore[no-untyped-call]
    return total


def mixtures(model: spec.ModelSpec) -> list[int]:
    """Returns the indices of the layers that have experts; a layer of multi-token prediction comes last."""
    return [index for index, layer in enumerate(model.blocks) if isinstance(layer.ffn, spec.Experts)]


def step_flops(model: spec.ModelSpec, length: float) -> float:
    """Returns the operations of training on one token: six for each active weight, and attention over half its
    document."""
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
    """Returns the dimensions of keys and values that all queries of one token are multiplied by."""
    value_dim = attn.value_dim if isinstance(attn, spec.LatentAttention) else attn.v_head_dim
    return attn.num_heads * (attn.head_dim + value_dim)
