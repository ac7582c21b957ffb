"""Samples one token from logits; native/sampling.cpp computes the weights and draws.

The order is: repetition penalty, presence and frequency penalties, logit bias; the constraint; temperature; top-k,
top-p of the tokens that top-k kept, min-p. Tokens with equal logits are kept or dropped together; greedy sampling takes
the one with the lowest id.

The random number of a draw is a hash of (seed, position in the answer). So a token depends only on its request and its
logits, not on the rest of the batch or on preemptions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from freedive.arrays import Bytes, Floats
from freedive.engine.generation import EngineError, TokenLogprobs
from freedive.engine.sampling import Sampling
from freedive.native import _native


class Sampler:
    """Chooses the tokens of one request; each call chooses the next token."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._seed = seed
        self._num_drawn = 0
        self._adjustment = Adjustment(sampling, prompt, vocab_size) if sampling.adjusts else None

    def __call__(self, logits: Floats, allowed: Bytes | None = None) -> int:
        """Returns the next token, given ``logits`` [vocab_size] and the bit mask of ``allowed`` tokens (None: all).

        It does not change ``logits``. Raises EngineError if the largest logit is NaN or infinite.
        """
        sampling = self._sampling
        if self._adjustment:
            logits = self._adjustment.apply(logits)
        if allowed is not None:
            logits = masked(logits, allowed)
        token = int(logits.argmax())  # the index of a NaN if there is one
        if not math.isfinite(logits[token]):
            raise EngineError("The model produced numbers that are not finite; its weights may be damaged")
        if not sampling.greedy:
            random = uniform(self._seed, self._num_drawn)
            token = _native.draw(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, random)
        if self._adjustment:
            self._adjustment.count(token)
        self._num_drawn += 1
        return token


class Adjustment:
    """The penalties and the logit bias of one request, updated with each token of its answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[list(prompt)] = True
        self._offset = np.zeros(vocab_size, np.float32)
        for token, bias in sampling.logit_bias.items():
            self._offset[token] = bias

    def apply(self, logits: Floats) -> Floats:
        """Returns a copy of ``logits`` with penalties and bias applied."""
        adjusted = logits.copy()
        penalty = self._sampling.repetition_penalty
        if penalty != 1:
            seen = np.flatnonzero(self._seen)
            scores = logits[seen]
            adjusted[seen] = np.where(scores > 0, scores / penalty, scores * penalty)
        adjusted += self._offset
        return adjusted

    def count(self, token: int) -> None:
        """Updates the penalties for ``token``, which is now part of the answer."""
        sampling = self._sampling
        self._counts[token] += 1
        self._seen[token] = True
        penalty = sampling.presence_penalty + sampling.frequency_penalty * self._counts[token]
        self._offset[token] = sampling.logit_bias.get(token, 0.0) - penalty


def masked(logits: Floats, allowed: Bytes) -> Floats:
    """Returns a copy of ``logits`` in which all tokens outside the bit mask ``allowed`` have probability 0."""
    result = np.empty_like(logits)
    _native.mask(logits, allowed, result)
    return result


def logprobs(logits: Floats, token: int, num_top: int) -> TokenLogprobs:
    """Returns the log-probabilities of ``token`` and of the ``num_top`` likeliest tokens (lower ids first on a tie)."""
    likeliest, log_total = _native.likeliest(logits, min(num_top, len(logits)))
    return TokenLogprobs(
        token, float(logits[token]) - log_total, tuple((id, float(logits[id]) - log_total) for id in likeliest)
    )


def uniform(seed: int, position: int) -> float:
    """Returns the random number in [0, 1) for ``position`` of the answer."""
    key = seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little")
    return (int.from_bytes(blake2b(key, digest_size=8).digest()) >> 12) * 2.0**-52
