"""Grouped-query attention in PyTorch, with windows, chunks, soft caps and sinks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from freedive.model import spec
from freedive.ops.torch_delta import wide


def attend(q: Tensor, k: Tensor, v: Tensor, start: int, attn: spec.Attention, sinks: Tensor | None) -> Tensor:
    """Returns the attention [requests * rows, heads * dim] of queries from position ``start`` on.

    Queries, keys and values are [requests, positions, heads, dim].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if attn.softcap or sinks is not None:
        y = _attend_stepwise(q, k, v, start, attn, sinks)
    else:
        is_masked = start or attn.window or attn.chunk  # torch is faster without a mask
        seen = _seen(q, k, start, attn) if is_masked else None
        y = F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=attn.scale, enable_gqa=True)
    return y.transpose(1, 2).flatten(0, 1).flatten(1)


def _attend_stepwise(q: Tensor, k: Tensor, v: Tensor, start: int, attn: spec.Attention, sinks: Tensor | None) -> Tensor:
    k, v = (x.repeat_interleave(attn.num_heads // attn.num_kv_heads, 1) for x in (k, v))
    scores = wide(q @ k.mT) * attn.scale
    if attn.softcap:
        scores = attn.softcap * (scores / attn.softcap).tanh()
    scores = scores.masked_fill(~_seen(q, k, start, attn), -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., : k.shape[2]].to(v.dtype) @ v


def _seen(q: Tensor, k: Tensor, start: int, attn: spec.Attention) -> Tensor:
    """Returns the attention mask [queries, keys]: whether each query attends to each key."""
    query, key = torch.arange(start, start + q.shape[2])[:, None], torch.arange(k.shape[2])
    seen = key <= query
    if attn.window:
        seen &= query - key < attn.window
    if attn.chunk:
        seen &= query // attn.chunk == key // attn.chunk
    return seen
