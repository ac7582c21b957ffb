"""Cross-entropy over a vocabulary without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 1024
"""Rows whose logits exist at once."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """The weighted sum of -log p(target), in nats.

    ``x`` [T, hidden]; ``head`` [vocab, hidden]; ``targets`` int64, ``weights`` float32 [T]. Gradients are made in the
    forward pass, chunk by chunk, for ``x`` and ``head``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        d_x, d_head = torch.empty_like(x), torch.zeros_like(head)
        for rows, target, weight, d_rows in zip(
            *(torch.split(part, CHUNK) for part in (x, targets, weights, d_x)), strict=True
        ):
            log_odds = (rows @ head.T).float().log_softmax(-1)
            total -= (log_odds.gather(1, target[:, None])[:, 0] * weight).sum()
            d_logits = log_odds.exp_()
            d_logits.scatter_add_(1, target[:, None], d_logits.new_full((len(rows), 1), -1.0))
            d_logits = (d_logits * weight[:, None]).to(x.dtype)
            torch.mm(d_logits, head, out=d_rows)
            d_head.addmm_(d_logits.T, rows)
        ctx.save_for_backward(d_x, d_head)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_x, d_head = ctx.saved_tensors
        return d_x * d_total, d_head * d_total, None, None
