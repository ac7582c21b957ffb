"""A text's embedding depends on the text alone, and pools the states of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import to_batch

import freedive

TEXTS = ["The capital of France is Paris.", "Paris", "A long day's journey into night. " * 60]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_do_not_depend_on_chunks_batches_or_the_cache(pooling: str) -> None:
    with freedive.load("smollm2", prefill_chunk=512) as model:
        together = model.embed(TEXTS, pooling=pooling)
        again = model.embed(TEXTS[::-1], pooling=pooling)[::-1]
    with freedive.load("smollm2", prefill_chunk=33, max_batch=2) as model:
        alone = np.concatenate([model.embed([text], pooling=pooling) for text in TEXTS])
    np.testing.assert_array_equal(together, again)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_vectors_pool_what_the_model_makes_of_each_token() -> None:
    with freedive.load("smollm2") as model:
        means, lasts = model.embed(TEXTS[:2]), model.embed(TEXTS[:2], pooling="last")
        encode, runner = model.tokenizer.encode, model.runner
    for text, mean, last in zip(TEXTS[:2], means, lasts, strict=True):
        tokens = encode(text, add_special=True)
        runner.step(to_batch([tokens], [(0, len(tokens))], [0], [[0]], [len(tokens)]))
        states = runner.embed(np.arange(len(tokens), dtype=np.int32)).astype(np.float64)
        np.testing.assert_allclose(mean, states.mean(0) / np.linalg.norm(states.mean(0)), atol=1e-6)
        np.testing.assert_allclose(last, states[-1] / np.linalg.norm(states[-1]), atol=1e-6)
