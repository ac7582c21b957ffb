"""The gated delta rule in PyTorch, token by token, in float32 at least."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.model.spec import DeltaRule
from freedive.ops.reference_delta import UNIT_EPS, key_heads


class DeltaInputs(NamedTuple):
    """The inputs of the recurrence by value head: q, k and decay have key_dim numbers each, v has value_dim."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor


def delta_inputs(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, rate: Tensor, dt_bias: Tensor, delta: DeltaRule
) -> DeltaInputs:
    """Returns the inputs of the recurrence [T, num_value_heads * numbers] from those of the operation."""
    q, k, v, beta, decay, rate = map(wide, (q, k, v, beta, decay, rate))
    rate = rate.repeat_interleave(delta.decay_dim // delta.num_value_heads)
    x = decay + dt_bias
    logs = delta.decay_bound * (rate * x).sigmoid() if delta.decay_bound else -rate * F.softplus(x)
    queries = _unit(q, delta) * delta.key_dim**-0.5
    return DeltaInputs(queries, _unit(k, delta), v, beta.sigmoid(), logs.exp())


def recur(state: Tensor, inputs: DeltaInputs) -> tuple[Tensor, Tensor]:
    """Returns results [requests, rows, heads, value_dim] for inputs [requests, rows, heads, ...] and the last state.

    ``state`` is [requests, heads, key_dim, value_dim].
    """
    results = []
    for q, k, v, beta, decay in zip(*(x.unbind(1) for x in inputs), strict=True):
        state = state * decay[..., None]
        change = beta * (v - (state * k[..., None]).sum(-2))
        state = state + k[..., None] * change[..., None, :]
        results.append((state * q[..., None]).sum(-2))
    return torch.stack(results, 1), state


def _unit(x: Tensor, delta: DeltaRule) -> Tensor:
    """Returns each key head scaled to length 1, repeated for its value heads."""
    heads = x.view(len(x), delta.num_key_heads, delta.key_dim)
    heads = heads * (heads.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()
    return heads[:, key_heads(delta)].flatten(1)


def wide(x: Tensor) -> Tensor:
    """Returns ``x`` in float32, or unchanged if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
