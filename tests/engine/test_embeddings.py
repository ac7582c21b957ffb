"""A text's vector depends on the text alone, and is what transformers' states give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

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


def test_vectors_are_those_of_transformers(smollm2_path: Path) -> None:
    folder, file = str(smollm2_path.parent), smollm2_path.name
    theirs = AutoModel.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    with freedive.load("smollm2") as model:
        means, lasts = model.embed(TEXTS[:2]), model.embed(TEXTS[:2], pooling="last")
    for text, mean, last in zip(TEXTS[:2], means, lasts, strict=True):
        with torch.no_grad():
            states = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        for ours, want in ((mean, states.mean(0)), (last, states[-1])):
            assert ours @ want / np.linalg.norm(want) > 0.995
