"""Runs llama.cpp and its forks through the C interface that they share; ``api`` is a Python module that binds it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jobs import WARM_UP_ANSWER, Jobs, beginnings

WARM_UP, TRIAL = 16, 17
"""Tokens of each prompt that are computed before settings are tried, and tokens of an answer in a trial."""

Settings = dict[str, Any]
Shape = tuple[int, int, int]
Row = tuple[int, int, int, bool]
"""Sequence, position, token, and whether its logits are needed."""


class GgmlJobs(Jobs):
    batch_tokens = 512
    """Tokens per call and per pass of the kernels (n_batch = n_ubatch)."""

    def __init__(self, api: Any, path: str, threads: int, settings: Settings) -> None:
        api.llama_backend_init()
        self.api = api
        self.threads = threads
        params = _set(api.llama_model_default_params(), settings)
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"it cannot load {path}")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.batch = api.llama_batch_init(self.batch_tokens, 0, 1)
        self.contexts: dict[Shape, Any] = {}
        self.source = random.Random(0)

    def clear(self, context: Any) -> None:
        """Clears the cache."""
        raise NotImplementedError

    def variants_for(self, num_sequences: int) -> Sequence[Settings]:
        """Returns settings of a context whose effect depends on the workload; the fastest is used for each."""
        raise NotImplementedError

    def in_words(self, variant: Settings) -> str:
        raise NotImplementedError

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        shape = shape_of(prompts, num_tokens)
        self.generate(beginnings(prompts, WARM_UP), WARM_UP_ANSWER)
        variants, seconds = self.variants_for(len(prompts)), []
        for variant in variants:
            self.open(shape, variant)
            took = self._generate(self.context(shape), beginnings(prompts), min(num_tokens, TRIAL))
            seconds.append(took[num_tokens > 1])
        best = variants[int(np.argmin(seconds))]
        self.open(shape, best)
        return self.in_words(best)

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        return self._generate(self.context(shape_of(prompts, num_tokens)), prompts, num_tokens)

    def _generate(self, context: Any, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        rows = [
            (sequence, position, token, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = self._step(context, rows)
        first = time.perf_counter()
        for step in range(num_tokens - 1):
            rows = [(sequence, len(prompts[sequence]) + step, token, True) for sequence, token in enumerate(tokens)]
            tokens = self._step(context, rows)
        return first - start, time.perf_counter() - first

    def _step(self, context: Any, rows: list[Row]) -> list[int]:
        """Computes ``rows``; samples a token for each of the logits."""
        return [self.source.randrange(self.vocab_size) for _ in self.decode(context, rows)]

    def decode(self, context: Any, rows: list[Row]) -> Iterator[Any]:
        """Computes ``rows``; yields the logits [vocab_size] that are needed, which the next call overwrites."""
        for begin in range(0, len(rows), self.batch_tokens):
            part = rows[begin : begin + self.batch_tokens]
            batch = self.batch
            batch.n_tokens = len(part)
            for index, (sequence, position, token, wanted) in enumerate(part):
                batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            if status := self.api.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
            for index, row in enumerate(part):
                if row[3]:
                    pointer = self.api.llama_get_logits_ith(context, index)
                    yield np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def context(self, shape: Shape) -> Any:
        """Returns the context for work of this shape, with an empty cache."""
        if shape not in self.contexts:
            self.open(shape, self.variants_for(shape[0])[0])
        self.clear(self.contexts[shape])
        return self.contexts[shape]

    def open(self, shape: Shape, variant: Settings) -> None:
        """Creates the only context for work of this shape."""
        if old := self.contexts.pop(shape, None):
            self.api.llama_free(old)
        num_sequences, prompt, num_tokens = shape
        params = self.api.llama_context_default_params()
        params.n_ctx = num_sequences * (-(-(prompt + num_tokens) // 256) * 256)
        params.n_seq_max = num_sequences
        params.n_batch = params.n_ubatch = self.batch_tokens
        params.n_threads = params.n_threads_batch = self.threads
        self.contexts[shape] = self.api.llama_init_from_model(self.model, _set(params, variant))
        if not self.contexts[shape]:
            raise RuntimeError(f"it makes no context with {variant}")


def shape_of(prompts: list[list[int]], num_tokens: int) -> Shape:
    return len(prompts), max(map(len, prompts)), num_tokens


def _set(params: Any, settings: Settings) -> Any:
    for name, value in settings.items():
        setattr(params, name, value)
    return params
