"""Samples rollouts with freedive's kernels, and records the log-probability and the experts of each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from freedive import machine
from freedive.checkpoint.weight_store import pack_model
from freedive.engine.kvcache import pages_for
from freedive.model import spec
from freedive.model.batch import Batch, StateUpdates
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.train.model.export import canonical

MAX_ROWS = 512
SAMPLE_TEMPERATURE = 0.7


@dataclass
class Rollout:
    """A sampled answer: ``tokens`` are the prompt and the answer, ``logprobs`` belong to the answer's tokens.

    ``routes`` [tokens - 1, mixtures, num_chosen] are the experts of each token but the last, which was not computed.
    """

    tokens: list[int]
    prompt: int
    logprobs: list[float] = field(default_factory=list)
    routes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    ended: bool = False

    @property
    def answer(self) -> list[int]:
        """The tokens of the answer, with the end token."""
        return self.tokens[self.prompt :]


class Sampler:
    """A model on the kernels that samples ``num`` answers at once, of up to ``length`` tokens with their prompts."""

    def __init__(self, model: spec.ModelSpec, weights: Mapping[str, Tensor], num: int, length: int) -> None:
        tensors, threads = canonical(weights), machine.physical_cores()
        packed = pack_model({name: tensors[name] for name in params(model)}, num_threads=threads)
        self._pages = pages_for(length)
        self._length = length
        self._runner = NativeRunner(
            model,
            packed,
            num_threads=threads,
            max_rows=MAX_ROWS,
            num_pages=num * self._pages,
            max_sequences=num,
            cache_format="f32",
        )

    def generate(
        self, prompts: Sequence[Sequence[int]], end: int, source: np.random.Generator, temperature: float = 1.0
    ) -> list[Rollout]:
        """Samples one answer to each prompt, up to the token ``end`` or the maximum length."""
        rollouts = [Rollout(list(prompt), len(prompt)) for prompt in prompts]
        places = {id(rollout): index for index, rollout in enumerate(rollouts)}
        waiting = list(rollouts)
        while waiting:
            for part in _fitting(waiting):
                fed = [rollout.tokens[len(rollout.routes) :] for rollout in part]
                self._step(part, fed, [places[id(rollout)] for rollout in part], source, temperature)
            for rollout in waiting:
                rollout.ended = rollout.tokens[-1] == end
            waiting = [rollout for rollout in waiting if not rollout.ended and len(rollout.tokens) < self._length]
        return rollouts

    def _step(
        self,
        part: list[Rollout],
        fed: list[list[int]],
        places: list[int],
        source: np.random.Generator,
        temperature: float,
    ) -> None:
        """Computes the new tokens of each rollout, and draws the next one."""
        lengths = np.array([len(tokens) for tokens in fed], np.int32)
        starts = np.array([len(rollout.routes) for rollout in part], np.int32)
        pages = np.add.outer(np.array(places) * self._pages, np.arange(self._pages)).astype(np.int32)
        last = lengths.cumsum(dtype=np.int32) - 1
        prompts = np.array([rollout.prompt for rollout in part], np.int32)
        flat = np.array([token for tokens in fed for token in tokens], np.int32)
        states = StateUpdates.plain(np.array(places, np.int32), starts, lengths)
        logits = self._runner.step(Batch(flat, lengths, starts, pages, last, prompts, states))
        routes = np.stack([each.experts for each in self._runner.routes()], 1).astype(np.int64)
        tokens, logprobs = draw(logits, source, temperature)
        for rollout, token, logprob, of_token in zip(
            part, tokens.tolist(), logprobs.tolist(), np.split(routes, last[:-1] + 1), strict=True
        ):
            rollout.tokens.append(token)
            rollout.logprobs.append(logprob)
            rollout.routes.extend(of_token)


def sample_text(
    model: spec.ModelSpec, weights: Mapping[str, Tensor], prompt: Sequence[int], end: int, seed: int
) -> list[int]:
    """Samples a continuation of ``prompt``, up to the end token or the end of the context."""
    sampler = Sampler(model, weights, 1, model.max_context)
    (rollout,) = sampler.generate([prompt], end, np.random.default_rng(seed), SAMPLE_TEMPERATURE)
    return rollout.tokens[: -1 if rollout.ended else None]


def draw(
    logits: npt.NDArray[np.float32], source: np.random.Generator, temperature: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Draws a token for each row of logits; returns them and their log-probabilities at temperature 1.

    Temperature 0 takes the most probable token.
    """
    logprobs = logits - logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    if temperature:
        # Gumbel noise: the argmax is a sample of the distribution.
        noise = -np.log(-np.log(source.random(logprobs.shape, np.float32) + 1e-20) + 1e-20)
        tokens = (logprobs / temperature + noise).argmax(-1)
    else:
        tokens = logprobs.argmax(-1)
    return tokens, np.take_along_axis(logprobs, tokens[:, None], -1)[:, 0]


def _fitting(rollouts: Sequence[Rollout]) -> Iterator[list[Rollout]]:
    """Splits rollouts into parts that fit into one step of MAX_ROWS rows."""
    part: list[Rollout] = []
    rows = 0
    for rollout in rollouts:
        count = len(rollout.tokens) - len(rollout.routes)
        if part and rows + count > MAX_ROWS:
            yield part
            part, rows = [], 0
        part.append(rollout)
        rows += count
    if part:
        yield part
