"""Cross-entropy over a vocabulary that computes the logits of a batch in chunks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024
"""The number of rows whose logits are in memory at once."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the weighted sum of -log p(target), in nats.

    ``x`` [T, hidden]; ``head`` [vocab, hidden]; ``targets`` int64 and ``weights`` float32 [T]; ``bias`` [vocab] is
    added to the logits, which are soft-capped at ``cap`` unless it is 0. The forward pass computes the gradients, chunk
    by chunk, for ``x`` and, if they are trained, for ``head`` and ``bias``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        bias: Tensor | None = None,
        cap: float = 0.0,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32)
        d_x = torch.empty_like(x)
        d_head = torch.zeros_like(head) if head.requires_grad else None
        d_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        for rows, target, weight, d_rows in zip(
            *(torch.split(part, CHUNK) for part in (x, targets, weights, d_x)), strict=True
        ):
            logits = F.linear(rows, head, bias).float()
            logits = cap * (logits / cap).tanh() if cap else logits
            logprobs = logits.log_softmax(-1)
            total -= (logprobs.gather(1, target[:, None])[:, 0] * weight).sum()
            d_logits = logprobs.exp_()
            d_logits.scatter_add_(1, target[:, None], d_logits.new_full((len(rows), 1), -1.0))
            if cap:
                d_logits *= 1 - (logits / cap).square()
            d_logits = (d_logits * weight[:, None]).to(x.dtype)
            torch.mm(d_logits, head, out=d_rows)
            if d_head is not None:
                d_head.addmm_(d_logits.T, rows)
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        ctx.save_for_backward(d_x, d_head, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_x, d_head, d_bias = (None if made is None else made * d_total for made in ctx.saved_tensors)
        return d_x, d_head, None, None, d_bias, None
