"""Answers by freedive's own kernels, with what reinforcement needs of each token: its odds and its experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from freedive import machine
from freedive.checkpoint.packed import pack_model
from freedive.engine.batch import Batch, StateUpdates
from freedive.engine.kvcache import pages_for
from freedive.model import spec
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.train.export import canonical

MAX_ROWS = 512
SAMPLE_TEMPERATURE = 0.7


@dataclass
class Sample:
    """``tokens``: the prompt, then the answer. ``odds``: the log-probability of each token of the answer.

    ``routes`` [tokens but the last, mixtures, num_chosen]: the experts of each token that went through the model.
    """

    tokens: list[int]
    prompt: int
    odds: list[float] = field(default_factory=list)
    routes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    ended: bool = False

    @property
    def answer(self) -> list[int]:
        """Its tokens, that of the end included."""
        return self.tokens[self.prompt :]


class Sampler:
    """A model on the kernels, with room for ``num`` answers at once of up to ``length`` tokens, prompts included."""

    def __init__(self, model: spec.Model, weights: Mapping[str, Tensor], num: int, length: int) -> None:
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

    def answers(
        self, prompts: Sequence[Sequence[int]], end: int, source: np.random.Generator, temperature: float = 1.0
    ) -> list[Sample]:
        """One answer for each prompt, up to the token ``end``, or cut off where there is no more room."""
        samples = [Sample(list(prompt), len(prompt)) for prompt in prompts]
        places = {id(sample): index for index, sample in enumerate(samples)}
        waiting = list(samples)
        while waiting:
            for part in _fitting(waiting):
                fed = [sample.tokens[len(sample.routes) :] for sample in part]
                self._step(part, fed, [places[id(sample)] for sample in part], source, temperature)
            for sample in waiting:
                sample.ended = sample.tokens[-1] == end
            waiting = [sample for sample in waiting if not sample.ended and len(sample.tokens) < self._length]
        return samples

    def _step(
        self,
        part: list[Sample],
        fed: list[list[int]],
        places: list[int],
        source: np.random.Generator,
        temperature: float,
    ) -> None:
        """Feed what is new of each sample, and draw the next token."""
        lengths = np.array([len(tokens) for tokens in fed], np.int32)
        starts = np.array([len(sample.routes) for sample in part], np.int32)
        pages = np.add.outer(np.array(places) * self._pages, np.arange(self._pages)).astype(np.int32)
        last = lengths.cumsum(dtype=np.int32) - 1
        prompts = np.array([sample.prompt for sample in part], np.int32)
        flat = np.array([token for tokens in fed for token in tokens], np.int32)
        states = StateUpdates.plain(np.array(places, np.int32), starts, lengths)
        logits = self._runner.step(Batch(flat, lengths, starts, pages, last, prompts, states))
        routes = np.stack([each[:, : each.shape[1] // 2] for each in self._runner.routes()], 1).astype(np.int64)
        tokens, odds = draw(logits, source, temperature)
        for sample, token, chance, of_token in zip(
            part, tokens.tolist(), odds.tolist(), np.split(routes, last[:-1] + 1), strict=True
        ):
            sample.tokens.append(token)
            sample.odds.append(chance)
            sample.routes.extend(of_token)


def say(model: spec.Model, weights: Mapping[str, Tensor], prompt: Sequence[int], end: int, seed: int) -> list[int]:
    """What the weights write after ``prompt``, to its end or that of the context."""
    sampler = Sampler(model, weights, 1, model.max_context)
    (sample,) = sampler.answers([prompt], end, np.random.default_rng(seed), SAMPLE_TEMPERATURE)
    return sample.tokens[: -1 if sample.ended else None]


def draw(
    logits: npt.NDArray[np.float32], source: np.random.Generator, temperature: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """A token for each row of logits, and its log-probability at temperature 1. At 0 it is the likeliest."""
    odds = logits - logits.max(-1, keepdims=True)
    odds -= np.log(np.exp(odds).sum(-1, keepdims=True))
    if temperature:
        noise = -np.log(-np.log(source.random(odds.shape, np.float32) + 1e-20) + 1e-20)  # Gumbel's
        tokens = (odds / temperature + noise).argmax(-1)
    else:
        tokens = odds.argmax(-1)
    return tokens, np.take_along_axis(odds, tokens[:, None], -1)[:, 0]


def _fitting(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Parts that a step has room for."""
    part: list[Sample] = []
    rows = 0
    for sample in samples:
        count = len(sample.tokens) - len(sample.routes)
        if part and rows + count > MAX_ROWS:
            yield part
            part, rows = [], 0
        part.append(sample)
        rows += count
    if part:
        yield part
