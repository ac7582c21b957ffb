"""The experts of a layer with gradients: rows are sorted by expert, one product for each; none is padded or dropped."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class GroupedFeedForward(torch.autograd.Function):
    """Computes the weighted sum of each token's experts.

    ``x`` [T, hidden]; ``chosen`` int64 and ``shares`` [T, k] are a token's experts and their weights; ``gate`` and
    ``up`` [E, dim, hidden], ``down`` [E, hidden, dim]. All inputs but ``chosen`` get gradients. Every sum has a fixed
    order, so equal inputs give equal bits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor, chosen: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order = chosen.flatten().argsort(stable=True)
        ends = chosen.flatten().bincount(minlength=len(gate)).cumsum(0).tolist()
        rows = x.index_select(0, order // chosen.shape[1])
        gated, upped = _products(rows, gate.mT, ends), _products(rows, up.mT, ends)
        parts = _by_token(_products(F.silu(gated) * upped, down.mT, ends), order, chosen)
        ctx.save_for_backward(shares, chosen, gate, up, down, order, rows, gated, upped, parts)
        ctx.ends = ends
        return (parts * shares[..., None]).sum(1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Any:
        shares, chosen, gate, up, down, order, rows, gated, upped, parts = ctx.saved_tensors
        d_shares = (d_out[:, None] * parts).sum(-1)
        d_parts = (d_out[:, None] * shares[..., None]).to(parts.dtype)
        d_made = d_parts.flatten(0, 1).index_select(0, order)
        d_mixed = _products(d_made, down, ctx.ends)
        sigmoid = gated.sigmoid()
        silu = gated * sigmoid
        d_upped = d_mixed * silu
        d_gated = d_mixed * upped * (sigmoid + silu * (1 - sigmoid))
        d_rows = _products(d_gated, gate, ctx.ends) + _products(d_upped, up, ctx.ends)
        d_x = _by_token(d_rows, order, chosen).sum(1)
        return (
            d_x,
            d_shares.to(shares.dtype),
            None,
            _outer(d_gated, rows, ctx.ends),
            _outer(d_upped, rows, ctx.ends),
            _outer(d_made, silu * upped, ctx.ends),
        )


def _products(rows: Tensor, matrices: Tensor, ends: list[int]) -> Tensor:
    """Multiplies each expert's rows by its matrix: [R, in], [E, in, out] -> [R, out]."""
    out = rows.new_empty(len(rows), matrices.shape[2])
    for matrix, (begin, end) in zip(matrices, pairwise([0, *ends]), strict=True):
        torch.mm(rows[begin:end], matrix, out=out[begin:end])
    return out


def _outer(left: Tensor, right: Tensor, ends: list[int]) -> Tensor:
    """Computes the gradient of each expert's matrix: [R, out], [R, in] -> [E, out, in]."""
    out = left.new_empty(len(ends), left.shape[1], right.shape[1])
    for matrix, (begin, end) in zip(out, pairwise([0, *ends]), strict=True):
        torch.mm(left[begin:end].T, right[begin:end], out=matrix)
    return out


def _by_token(rows: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """Undoes the sort: returns rows in the order of ``chosen``, [T, k, dim]."""
    return rows.index_select(0, order.argsort()).view(*chosen.shape, -1)
