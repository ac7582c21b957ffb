"""The gated delta rule in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from freedive.model.spec import DeltaRule

Array = npt.NDArray[np.float32]

UNIT_EPS = 1e-6
"""Added to the sum of squares of q and k before the root is taken."""


def delta_inputs(
    q: Array, k: Array, v: Array, beta: Array, decay: Array, rate: Array, dt_bias: Array, delta: DeltaRule
) -> tuple[Array, Array]:
    """Returns the scaled queries [T, k_dim], and the concatenation of k, v, decay and beta, which changes the state."""
    rate = np.repeat(rate, delta.decay_dim // delta.num_value_heads)
    x = decay + dt_bias
    if delta.decay_bound:
        log_decay = np.float32(delta.decay_bound) * sigmoid(rate * x)
    else:
        log_decay = -rate * np.logaddexp(np.float32(0), x)
    queries = _unit(q, delta.key_dim) * np.float32(delta.key_dim**-0.5)
    return queries, np.concatenate([_unit(k, delta.key_dim), v, np.exp(log_decay), sigmoid(beta)], -1)


def advance(
    state: Array, inputs: Array, queries: Array, copies: Sequence[tuple[int, Array]], delta: DeltaRule
) -> Array:
    """Applies ``inputs`` to ``state``; returns what ``queries``, those of the last tokens, read from it: [rows, v_dim].

    ``copies`` are made of it after so many tokens each.
    """
    out, first = np.empty((len(queries), delta.v_dim), np.float32), len(inputs) - len(queries)
    for token, changes in enumerate(inputs):
        _move(state, changes, delta)
        if token >= first:
            out[token - first] = _read(state, queries[token - first], delta)
        for count, copy in copies:
            if count == token + 1:
                copy[:] = state
    return out


def _move(state: Array, inputs: Array, delta: DeltaRule) -> None:
    """Applies the ``inputs`` of one token to ``state`` [num_value_heads, key_dim, value_dim]."""
    ends = np.cumsum([delta.k_dim, delta.v_dim, delta.decay_dim])
    k, v, decay, beta = np.split(inputs, ends)
    keys = _by_value_head(k.reshape(-1, delta.key_dim), delta)
    state *= decay.reshape(delta.num_value_heads, -1, 1)
    seen = np.einsum("hkv,hk->hv", state, keys)
    change = beta[:, None] * (v.reshape(-1, delta.value_dim) - seen)
    state += keys[:, :, None] * change[:, None, :]


def _read(state: Array, query: Array, delta: DeltaRule) -> Array:
    """Returns what ``query`` [k_dim] of a token reads from ``state``: [v_dim]."""
    queries = _by_value_head(query.reshape(-1, delta.key_dim), delta)
    out: Array = np.einsum("hkv,hk->hv", state, queries).ravel()
    return out


def key_heads(delta: DeltaRule) -> Sequence[int]:
    """Returns the index of the key head of each value head."""
    group = delta.num_value_heads // delta.num_key_heads
    return [h % delta.num_key_heads if delta.tiled else h // group for h in range(delta.num_value_heads)]


def _by_value_head(x: Array, delta: DeltaRule) -> Array:
    heads: Array = x[key_heads(delta)]
    return heads


def _unit(x: Array, dim: int) -> Array:
    heads = x.reshape(len(x), -1, dim)
    y: Array = heads / np.sqrt((heads * heads).sum(-1, keepdims=True) + np.float32(UNIT_EPS))
    return y.reshape(x.shape)


def sigmoid(x: Array) -> Array:
    y: Array = np.reciprocal(1 + np.exp(-x))
    return y
