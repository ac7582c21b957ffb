"""From logits to one token.

In this order: repetition penalty, presence and frequency penalties, logit bias; temperature; top-k, top-p of what
top-k left, min-p. Tokens with equal logits are kept or dropped together, except that greedy takes the lowest id.

Every draw takes its random number from a hash of (seed, position in the answer), so a token depends on its request and
its logits alone: not on the rest of the batch, nor on how often the request was interrupted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from freedive.engine.request import EngineError, Sampling, TokenLogprobs

Floats = npt.NDArray[np.float32]

BLOCK = 64
"""Width of the blocks that are summed up before anything is ordered: sorting a whole vocabulary costs milliseconds."""


class Sampler:
    """Chooses the tokens of one request, one call after the other."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._seed = seed
        self._num_drawn = 0
        self._adjustment = Adjustment(sampling, prompt, vocab_size) if sampling.adjusts else None

    def __call__(self, logits: Floats) -> int:
        """The next token under ``logits`` [vocab_size], which stay as they are. EngineError on NaN and infinity."""
        if self._adjustment:
            logits = self._adjustment.apply(logits)
        token = int(logits.argmax())  # of the NaN, if there is one
        if not math.isfinite(logits[token]):
            raise EngineError("the model produced numbers that are not finite; its weights may be damaged")
        if not self._sampling.greedy:
            ids, weights = candidates(logits, logits[token], self._sampling)
            token = _pick(weights, uniform(self._seed, self._num_drawn))
            token = token if ids is None else int(ids[token])
        if self._adjustment:
            self._adjustment.count(token)
        self._num_drawn += 1
        return token


class Adjustment:
    """Penalties and bias of one request, kept up to date as its answer grows."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[list(prompt)] = True
        self._offset = np.zeros(vocab_size, np.float32)
        for token, bias in sampling.logit_bias.items():
            self._offset[token] = bias

    def apply(self, logits: Floats) -> Floats:
        """A copy of ``logits`` with penalties and bias applied."""
        adjusted = logits.copy()
        penalty = self._sampling.repetition_penalty
        if penalty != 1:
            seen = np.flatnonzero(self._seen)
            scores = logits[seen]
            adjusted[seen] = np.where(scores > 0, scores / penalty, scores * penalty)
        adjusted += self._offset
        return adjusted

    def count(self, token: int) -> None:
        """Take note that ``token`` is now part of the answer."""
        sampling = self._sampling
        self._counts[token] += 1
        self._seen[token] = True
        penalty = sampling.presence_penalty + sampling.frequency_penalty * self._counts[token]
        self._offset[token] = sampling.logit_bias.get(token, 0.0) - penalty


def candidates(logits: Floats, top: np.float32, sampling: Sampling) -> tuple[npt.NDArray[np.intp] | None, Floats]:
    """The tokens that temperature, top-k, top-p and min-p leave: ids (None: all) and weights. ``top``: the maximum."""
    ids = None
    if 0 < sampling.top_k < logits.size:
        ids = np.flatnonzero(logits >= _kth_largest(logits, sampling.top_k))
        logits = logits[ids]
    scores = logits - top
    scores /= np.float32(sampling.temperature)
    cutoff = -math.inf
    if sampling.top_p < 1:
        cutoff = _nucleus(scores, sampling.top_p)
    if sampling.min_p > 0:
        cutoff = max(cutoff, math.log(sampling.min_p))
    if cutoff > -math.inf:
        kept = np.flatnonzero(scores >= cutoff)
        ids = kept if ids is None else ids[kept]
        scores = scores[kept]
    return ids, np.exp(scores, out=scores)


def logprobs(logits: Floats, token: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of ``token`` and of the ``num_top`` likeliest tokens; of equals, those with the lowest ids."""
    top = float(logits.max())
    log_total = top + math.log(np.exp(logits - top).sum(dtype=np.float64))
    likeliest: list[int] = []
    if num_top:
        candidates = np.flatnonzero(logits >= _kth_largest(logits, num_top))
        likeliest = candidates[np.argsort(-logits[candidates], kind="stable")][:num_top].tolist()
    return TokenLogprobs(
        token, float(logits[token]) - log_total, tuple((id, float(logits[id]) - log_total) for id in likeliest)
    )


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that belongs to ``position`` of the answer."""
    key = seed.to_bytes(8, "little", signed=True) + position.to_bytes(8, "little")
    return (int.from_bytes(blake2b(key, digest_size=8).digest()) >> 12) * 2.0**-52


def _pick(weights: Floats, random: float) -> int:
    """Index where the running sum of ``weights`` passes ``random`` times their total: the block, then the place."""
    sums = np.add.reduceat(weights, np.arange(0, weights.size, BLOCK), dtype=np.float64).cumsum()
    target = random * sums[-1]
    block = int(sums.searchsorted(target, side="right"))
    start = block * BLOCK
    inner = weights[start : start + BLOCK].cumsum(dtype=np.float64)
    index = int(inner.searchsorted(target - (sums[block] - inner[-1]), side="right"))
    return start + min(index, inner.size - 1)  # rounding may carry the target to the very end of the block


def _kth_largest(values: Floats, k: int) -> float:
    """The k-th largest of ``values``, 1 <= k <= size."""
    peaks = np.maximum.reduceat(values, np.arange(0, values.size, BLOCK))
    if k <= peaks.size:  # k blocks have a value at or above the k-th peak, so the k largest all are
        values = values[values >= np.partition(peaks, -k)[-k]]
    return float(np.partition(values, -k)[-k])


def _nucleus(scores: Floats, top_p: float) -> float:
    """The lowest of the largest ``scores`` (log-weights, highest 0) that together weigh ``top_p`` of the total.

    Narrows ``scores`` down as quickselect does, with a first pivot that suits language models, and sorts the few left.
    """
    missing = top_p * float(np.exp(scores).sum(dtype=np.float64))
    pivot = _kth_largest(scores, min(512, scores.size))
    while scores.size > 1024:
        upper = scores >= pivot
        narrowed = scores[upper]
        if narrowed.size == scores.size:
            break
        weight = float(np.exp(narrowed).sum(dtype=np.float64))
        if weight < missing:
            missing -= weight
            narrowed = scores[~upper]
        scores = narrowed
        sample = np.sort(scores[:: max(scores.size // 256, 1)])
        pivot = float(sample[-(sample.size // 4)])
    scores = np.sort(scores)[::-1]
    sums = np.exp(scores).cumsum(dtype=np.float64)
    return float(scores[min(int(sums.searchsorted(missing)), scores.size - 1)])
